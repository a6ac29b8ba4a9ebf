"""The same events for every system, and what the workers' logs say of them.

Three hosts train. A fourth joins and leaves again; one of the first is killed and started again; at last the
coordinator is killed, or, where there is none, the host that came first. All times are the workers' own. What a
system doesn't do within `PATIENCE_S` is a failure, and is told as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.peers.hosts import Host
from benchmarks.peers.systems import System
from benchmarks.report import progress

HOSTS = 3
STEADY_STEPS = 12
AFTER_STEPS = 5
PATIENCE_S = 300.0


class TooLate(Exception):
    """What was waited for did not come."""


@dataclass
class Measured:
    """Seconds, if not said otherwise; one value per event."""

    step: list[float] = field(default_factory=list)
    """Between two steps of three hosts."""
    bytes_per_sample: list[float] = field(default_factory=list)
    """Sent over loopback by all hosts together."""
    processor: list[float] = field(default_factory=list)
    """Time of all hosts together, per step."""
    memory: list[float] = field(default_factory=list)
    """Bytes per host."""
    join: list[float] = field(default_factory=list)
    """From the joiner's imports to the first step with it."""
    join_stall: list[float] = field(default_factory=list)
    """What the slowest incumbent lost meanwhile: see `lost`."""
    leave_stall: list[float] = field(default_factory=list)
    kill: list[float] = field(default_factory=list)
    """From SIGKILL to the next step of the slowest survivor, beyond a usual step."""
    rejoin: list[float] = field(default_factory=list)
    """From the imports of the host that was started again to the first step with it."""
    coordinator: list[float] = field(default_factory=list)
    """From SIGKILL to the fifth step from there, beyond five usual ones."""
    failures: dict[str, str] = field(default_factory=dict)
    """Event -> what did not happen, and what the system printed."""


def measure(system: System, rounds: int, patience_s: float = PATIENCE_S) -> Measured:
    """All events, `rounds` times over; the coordinator dies once, at the end."""
    trial = Trial(system, patience_s)
    try:
        with trial.step_of("start"):
            for number in range(HOSTS):
                trial.start(f"h{number}")
                trial.wait_listening(f"h{number}")
            trial.wait_together(HOSTS, STEADY_STEPS + 3)
            trial.steady()
            for number in range(rounds):
                trial.join_and_leave(f"j{number}")
                trial.kill_and_return(list(system.hosts)[-1])
            trial.lose_coordinator()
    except TooLate:
        pass
    return trial.measured


class Trial:
    """One system under measurement."""

    def __init__(self, system: System, patience_s: float) -> None:
        self.system = system
        self.measured = Measured()
        self._patience = patience_s
        self._usual = 0.0

    # --- events --------------------------------------------------------------------------------------------

    def start(self, name: str) -> Host:
        return self.system.start(name)

    def steady(self) -> None:
        """A while in which nothing happens."""
        hosts = list(self.system.hosts.values())
        first, sent, used = hosts[0], loopback_bytes(), sum(host.used()[0] for host in hosts)
        steps, samples = len(first.steps()), sum(s["samples"] for s in first.steps())
        self._wait(lambda: len(first.steps()) >= steps + STEADY_STEPS, first.name, "steps")
        done = first.steps()
        count = len(done) - steps
        new_samples = sum(s["samples"] for s in done) - samples
        self.measured.bytes_per_sample.append((loopback_bytes() - sent) / new_samples)
        self.measured.processor.append((sum(host.used()[0] for host in hosts) - used) / count)
        self.measured.memory += [host.used()[1] for host in hosts]
        self.measured.step += [b["t"] - a["t"] for a, b in pairwise(done[-count - 1 :])]
        self._usual = median(self.measured.step)
        progress(f"{self.system.name}: a step takes {self._usual:.3f} s")

    def join_and_leave(self, name: str) -> None:
        with self.step_of("join"):
            incumbents = list(self.system.hosts.values())
            since = time.monotonic()
            joiner = self.start(name)
            count = HOSTS + 1
            self._wait(lambda: len(with_all(joiner, count, since)) >= AFTER_STEPS, name, "steps with all")
            imported, first = joiner.imported(), with_all(joiner, count, since)[0]["t"]
            after = usual_of(with_all(joiner, count, since), self._usual)
            end = with_all(joiner, count, since)[AFTER_STEPS - 1]["t"]
            self.measured.join.append(first - imported)
            self.measured.join_stall.append(max(lost(h, imported, end, max(self._usual, after)) for h in incumbents))
            progress(f"{self.system.name}: join {first - imported:.2f} s, stall {self.measured.join_stall[-1]:.2f}")
        with self.step_of("leave"):
            asked = time.monotonic()
            joiner.ask_to_leave()
            self._wait(lambda: all(len(with_all(h, HOSTS, asked)) >= AFTER_STEPS for h in incumbents), name, "a leave")
            ends = [with_all(h, HOSTS, asked)[AFTER_STEPS - 1]["t"] for h in incumbents]
            usual = max(self._usual, after)
            stalls = [lost(h, asked, end, usual) for h, end in zip(incumbents, ends, strict=True)]
            self.measured.leave_stall.append(max(stalls))
            if not joiner.ends(30.0):
                self.measured.failures.setdefault("leave", "the process had not ended after 30 s, and was killed")
            self.system.kill(name)
            progress(f"{self.system.name}: leave, stall {max(stalls):.2f}")

    def kill_and_return(self, name: str) -> None:
        with self.step_of("kill"):
            killed = time.monotonic()
            self.system.kill(name)
            self.measured.kill.append(self._next_step(killed))
            progress(f"{self.system.name}: next step {self.measured.kill[-1]:.2f} s after the kill")
        with self.step_of("rejoin"):
            since = time.monotonic()
            host = self.start(name)
            self._wait(lambda: len(with_all(host, HOSTS, since)) >= AFTER_STEPS, name, "steps with all")
            self.measured.rejoin.append(with_all(host, HOSTS, since)[0]["t"] - host.imported())

    def lose_coordinator(self) -> None:
        """One step more proves little: it may have been agreed on before."""
        with self.step_of("coordinator"):
            killed = time.monotonic()
            self.system.kill_coordinator()
            self.measured.coordinator.append(self._next_step(killed, AFTER_STEPS))

    # --- waiting -------------------------------------------------------------------------------------------

    @contextmanager
    def step_of(self, event: str) -> Iterator[None]:
        """Notes under this event what failed. Raises TooLate: nothing sensible can follow."""
        try:
            yield
        except TooLate as error:
            if "noted" not in error.args:
                words = {host.name: host.last_words() for host in self.system.hosts.values()}
                told = "; ".join(f"{name}: {' / '.join(lines)}" for name, lines in words.items())
                self.measured.failures[event] = f"{error}; last printed: {told}"
                progress(f"{self.system.name}: {event} failed: {error}")
            raise TooLate("noted") from error

    def wait_listening(self, name: str) -> None:
        """Until its imports are done: the next one can find it then."""
        self._wait(self.system.hosts[name].log.exists, name, "imports")

    def wait_together(self, count: int, steps: int) -> None:
        for host in list(self.system.hosts.values()):
            self._wait(lambda host=host: len(with_all(host, count, 0.0)) >= steps, host.name, "steps with all")

    def _next_step(self, since: float, count: int = 1) -> float:
        """How much later than usual the survivors' step number `count` comes, from half a step after `since` on."""
        hosts = list(self.system.hosts.values())
        start = since + 0.5 * self._usual
        self._wait(lambda: all(len(after(host, start)) >= count for host in hosts), "survivors", "further steps")
        return max(after(host, start)[count - 1] for host in hosts) - since - count * self._usual

    def _wait(self, until: Callable[[], bool], who: str, what: str) -> None:
        deadline = time.monotonic() + self._patience
        while not until():
            if time.monotonic() > deadline:
                raise TooLate(f"no {what} of {who} in {self._patience:.0f} s")
            time.sleep(0.05)


def with_all(host: Host, count: int, since: float) -> list[dict[str, float]]:
    """Its steps since then in which so many took part."""
    return [step for step in host.steps() if step["participants"] == count and step["t"] > since]


def after(host: Host, since: float) -> list[float]:
    return [step["t"] for step in host.steps() if step["t"] > since]


def usual_of(steps: list[dict[str, float]], otherwise: float) -> float:
    """The median time between these steps."""
    times = [b["t"] - a["t"] for a, b in pairwise(steps)]
    return median(times) if times else otherwise


def lost(host: Host, start: float, end: float, usual: float) -> float:
    """By how much this host's steps between these times took longer than the usual, summed."""
    times = [step["t"] for step in host.steps()]
    return sum(max(0.0, b - a - usual) for a, b in pairwise(times) if b > start and a < end)


def loopback_bytes() -> int:
    """Sent over loopback in this network namespace since it exists."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":", 1)[1].split()[8])
