"""The hosts of one system: a group of processes each, started, killed and asked to leave alike for all systems."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.log import read

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Host:
    """What one host of a system runs."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    printed: Path

    def steps(self) -> list[dict[str, float]]:
        """Those in which it took part, in order."""
        return [line for line in read(self.log) if line["what"] == "step" and line["mine"]]  # type: ignore[misc]

    def imported(self) -> float:
        """When its worker's imports were done. ValueError if they are not."""
        return max(float(line["t"]) for line in read(self.log) if line["what"] == "imported")  # type: ignore[arg-type]

    def kill(self) -> None:
        """SIGKILL to all its processes, and to what they have started in groups of their own."""
        everything = self.tree()
        for process in everything:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        psutil.wait_procs(everything, timeout=10)

    def ask_to_leave(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ends(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def tree(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [*top.children(recursive=True), top]
        except psutil.NoSuchProcess:
            return []

    def used(self) -> tuple[float, float]:
        """Seconds of processor time, and bytes of memory (shared pages by their share)."""
        seconds = memory = 0.0
        for process in self.tree():
            try:
                times = process.cpu_times()
                memory += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
            seconds += times.user + times.system
        return seconds, memory

    def last_words(self, lines: int = 3) -> list[str]:
        """The last it printed."""
        text = self.printed.read_text(errors="replace")
        return [line.strip()[:240] for line in text.splitlines() if line.strip()][-lines:]


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
