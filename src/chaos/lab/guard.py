"""Ends whatever a demo or a lab started, whatever way that ends: `python -m chaos.lab.guard DIRECTORY`.

The guard waits until the pipe on its standard input closes, which the kernel does for a process that was killed as
well. Then it kills every process whose CHAOS_RUNTIME_DIR is DIRECTORY/runtime or below, and removes DIRECTORY and
the control groups that are named after it.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from chaos.lab import cgroups

MARK = "CHAOS_RUNTIME_DIR"
PATIENCE_S = 10.0
"""Killed processes are gone within milliseconds, unless they hang in the kernel."""


def runtime_of(directory: Path) -> Path:
    """What a demo in `directory` gives its peers as their runtime directory; a lab gives each host one below it."""
    return directory / "runtime"


def marked(runtime: Path) -> Iterator[psutil.Process]:
    """This user's living processes whose environment says that they belong to `runtime`."""
    for process in psutil.process_iter():
        try:
            home = Path(process.environ().get(MARK, "/"))
            if runtime in (home, *home.parents) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended just now, or belongs to somebody else


def kill_all(runtime: Path) -> bool:
    """Kill until none is left: one that starts meanwhile is found by the next look. False if some won't go."""
    deadline = time.monotonic() + PATIENCE_S
    while found := list(marked(runtime)):
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it ended just now
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def clean(directory: Path) -> bool:
    """Leave nothing of a demo or lab. False if some process won't go."""
    gone = kill_all(runtime_of(directory))
    cgroups.remove(directory.name)
    shutil.rmtree(directory, ignore_errors=not gone)
    return gone


def main() -> int:
    sys.stdin.buffer.read()
    return 0 if clean(Path(sys.argv[1])) else 1


if __name__ == "__main__":
    sys.exit(main())
