"""What each worker writes, whichever system it runs under: a line per event, in the time of the monotonic clock.

Only the standard library: it runs in every system's own environment.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

BATCH = 4
"""Samples that a worker computes per step."""


class Log:
    """Appends lines to a file; each is there for a reader at once."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._write({"what": "imported", "pid": os.getpid()})

    def step(self, step: int, participants: int, samples: int, mine: bool = True) -> None:
        """A step is done, of so many participants and samples in all; `mine`: this worker was one of them."""
        self._write({"what": "step", "step": step, "participants": participants, "samples": samples, "mine": mine})

    def _write(self, line: dict[str, object]) -> None:
        os.write(self._fd, json.dumps({"t": time.monotonic(), **line}).encode() + b"\n")


class Lines:
    """The whole lines of such a file; a look reads only what is new since the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[dict[str, object]] = []
        self._read = 0

    def all(self) -> list[dict[str, object]]:
        """So far. Not to be changed."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._read += len(whole)
            self._lines += [json.loads(line) for line in whole.splitlines()]
        return self._lines


def arguments() -> argparse.Namespace:
    """Of every worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log-steps", required=True)
    parser.add_argument("--millions", type=int, required=True, help="parameters")
    parser.add_argument("--compute", type=float, default=0.0, help="seconds of each step in which it only sleeps")
    parser.add_argument("--timeout", type=float, default=0.0, help="seconds for communication; 0: the defaults")
    parser.add_argument("--name", default="")
    parser.add_argument("--store", default="", help="where what has to survive a worker lies")
    parser.add_argument("--address", default="127.0.0.1", help="of its host")
    parser.add_argument("--contact", default="", help="an address of the system's own, if it needs one")
    return parser.parse_args()
