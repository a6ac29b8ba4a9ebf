"""One real peer: a `chaos run` with everything it started."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import psutil

from chaos.core.errors import ChaosError

LISTENS = re.compile(r"^chaos: peer \S+ listens at (\S+)$", re.MULTILINE)
START_S = 90.0
"""How long a peer may take until it listens: a second on an idle machine; its launcher gives up after 60."""


class Peer:
    """One `chaos run` and everything it started."""

    def __init__(self, name: str, party: str, process: subprocess.Popen[bytes], log: Path, started: float) -> None:
        self.name = name
        self.party = party
        self.started = started
        """Seconds on the monotonic clock."""
        self._process = process
        self._log = log
        self._usage = (0.0, 0)

    def address(self) -> str:
        """HOST:PORT, once it listens."""
        deadline = time.monotonic() + START_S
        while (found := LISTENS.search(self._log.read_text(errors="replace"))) is None:
            code = self.exit_code()
            if code is not None or time.monotonic() > deadline:
                raise ChaosError(f"{self.name} does not listen ({self._ending()})")
            time.sleep(0.05)
        return found.group(1)

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL to agent, worker and launcher, the agent first: it would leave properly if its launcher died."""
        for process in (*psutil.Process(self._process.pid).children(recursive=True), self._process):
            process.kill()
        self._process.wait()

    def kill_part(self, what: str) -> bool:
        """SIGKILL to its 'agent' or its 'worker'; the launcher starts both again. False if there is none just now."""
        agents = [p for p in self._children() if "chaos.agent.process" in p.cmdline()]
        parts = agents if what == "agent" else [p for p in self._children() if p not in agents]
        for process in parts:
            process.kill()
        return bool(parts)

    def freeze(self, frozen: bool) -> None:
        """SIGSTOP to all of it, or SIGCONT."""
        number = signal.SIGSTOP if frozen else signal.SIGCONT
        for process in (self._process, *psutil.Process(self._process.pid).children(recursive=True)):
            process.send_signal(number)

    def ask_to_leave(self) -> None:
        """SIGTERM to the launcher, as a user or an operating system that shuts down would send it."""
        self._process.send_signal(signal.SIGTERM)

    def usage(self) -> tuple[float, int]:
        """Seconds of processor time of its agent and worker so far, and bytes of memory the agent holds now.

        Once they have ended: what the last call said.
        """
        try:
            children = self._children()
            used = sum(sum(p.cpu_times()[:2]) for p in children)
            held = sum(p.memory_info().rss for p in children if "chaos.agent.process" in p.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            return self._usage
        self._usage = max(self._usage, (used, held))
        return self._usage

    def check(self) -> None:
        """Raises ChaosError if it failed."""
        if self.exit_code() not in (None, 0):
            raise ChaosError(f"{self.name} failed ({self._ending()})")

    def _children(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self._process.pid).children()
        return found

    def _ending(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        how = "is silent" if self.exit_code() is None else f"ended with exit code {self.exit_code()}"
        return f"{how}; its last line: {lines[-1] if lines else 'none'}"
