"""The hosts of one system: a group of processes each, started, stopped and asked to leave alike for all systems."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.log import Lines

ROOT = Path(__file__).resolve().parents[2]
ALARMING = re.compile(r"error|fail|exception|timed? ?out|warn|lost|dead|died|killed|abort|ended", re.IGNORECASE)
CALM = re.compile(r"\b(INFO|DEBUG)\b")
"""A system's own word that a line is not alarming."""
TELLING = re.compile(r"join|left|leav|quorum|restart|member|silent|suspect|reconfig|shrink|paus|wait", re.IGNORECASE)
SAID_CHARACTERS = 240
COORDINATOR = "coordinator"
"""The name of a process of a system that belongs to no host."""


class TooLate(Exception):
    """What was waited for did not come, or can't come any more."""


@dataclass(frozen=True)
class Usage:
    """Of one host at one moment, or between two."""

    seconds: float
    """Of processor time."""
    own_seconds: float
    """Of it, what is spent outside the worker's process."""
    memory: float
    """Bytes; shared pages by their share."""
    own_memory: float


@dataclass
class Host:
    """What one host of a system runs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Lines
    printed: Path
    printed_before: int = 0
    """Bytes of that file which are of an earlier process of this name."""

    def steps(self) -> list[dict[str, float]]:
        """Those in which it took part, in order."""
        return [line for line in self.log.all() if line["what"] == "step" and line["mine"]]  # type: ignore[misc]

    def imported(self, since: float = 0.0) -> float:
        """When its worker's imports were first done after that time. ValueError if they are not."""
        return min(float(line["t"]) for line in self._imports() if float(line["t"]) > since)  # type: ignore[arg-type]

    def said(self) -> str:
        """What it printed so far."""
        return self.printed.read_bytes()[self.printed_before :].decode(errors="replace")

    def kill(self) -> None:
        """SIGKILL to all its processes, and to what they have started in groups of their own."""
        everything = self.tree()
        for process in everything:
            send(process, signal.SIGKILL)
        self.process.wait()
        psutil.wait_procs(everything, timeout=10)

    def freeze(self, frozen: bool) -> None:
        """SIGSTOP to all its processes, or SIGCONT."""
        for process in self.tree():
            send(process, signal.SIGSTOP if frozen else signal.SIGCONT)

    def ask_to_leave(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> str:
        """How, if it did."""
        code = self.process.poll()
        return "" if code is None else f"{self.name} ended with exit code {code}"

    def ends(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def tree(self) -> list[psutil.Process]:
        """Children first: a launcher whose death they see would have them leave in good order."""
        try:
            top = psutil.Process(self.process.pid)
            return [*top.children(recursive=True), top]
        except psutil.NoSuchProcess:
            return []

    def used(self) -> Usage:
        seconds = memory = worker_seconds = worker_memory = 0.0
        workers = {line.get("pid") for line in self._imports()[-1:]}
        for process in self.tree():
            try:
                times = process.cpu_times()
                held = process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
            seconds += times.user + times.system
            memory += held
            if process.pid in workers:
                worker_seconds += times.user + times.system
                worker_memory += held
        return Usage(seconds, seconds - worker_seconds, memory, memory - worker_memory)

    def _imports(self) -> list[dict[str, object]]:
        return [line for line in self.log.all() if line["what"] == "imported"]


def send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it ended just now


def start(
    directory: Path, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A process in a session of its own; what it prints goes to `name.txt`."""
    with (directory / f"{name}.txt").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            },
        )


class Printed:
    """What all processes of a system print from now on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._before = {path: path.stat().st_size for path in directory.glob("*.txt")}

    def lines(self) -> dict[str, list[str]]:
        """By process, what came since."""
        found = {}
        for path in sorted(self._directory.glob("*.txt")):
            new = path.read_bytes()[self._before.get(path, 0) :]
            found[path.stem] = [line for line in new.decode(errors="replace").splitlines() if line.strip()]
        return found

    def telling(self, each: int = 3) -> list[str]:
        """The lines that say most about what happened, `NAME: line`; what people watch comes first."""
        found = sorted(self.lines().items(), key=lambda item: item[0] == COORDINATOR)
        return [f"{name}: {line}" for name, lines in found for line in telling(lines, each)]


def telling(lines: Iterable[str], count: int) -> list[str]:
    """The last lines, of different kinds, that are alarming; without any, that tell of hosts; without any, the last."""
    everything = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in lines]
    alarming = [line for line in everything if ALARMING.search(line) and not CALM.search(line)]
    kinds = dict[str, str]()
    for line in alarming or [line for line in everything if TELLING.search(line)] or everything:
        kind = re.sub(r"[\W\d_]+", "", line)[:60]
        kinds.pop(kind, None)
        kinds[kind] = line[:SAID_CHARACTERS]
    return list(kinds.values())[-count:]
