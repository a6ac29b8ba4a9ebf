"""A while in which hosts come, leave, freeze and are killed, by the same schedule for every system.

The host that came first is spared: for some systems it is the coordinator, whose loss is a row of its own. What ends
without having been asked to is started again, as any supervisor would.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from benchmarks.peers.hosts import Host, TooLate
from benchmarks.peers.systems import System
from benchmarks.report import progress

EVERY_S = 15.0
"""Between two events, if nothing else is asked for."""
JITTER = 0.2
"""By so much of the time between two events each comes earlier or later."""
FROZEN_S = 8.0
LEAVING_S = 12.0
"""After it a host that was asked to leave is taken away, whether it has ended or not."""
RESTART_S = 1.0
LEAST, MOST = 2, 4
"""Hosts that are to be there."""
BAG = ("join", "kill", "join", "leave", "freeze")
"""What happens, as often as it is in here, in a drawn order."""
LOOK_S = 0.05


@dataclass(frozen=True)
class Happening:
    at: float
    """Seconds from the beginning."""
    do: str
    host: str


def schedule(seconds: float, every_s: float, seed: int, hosts: Iterable[str]) -> list[Happening]:
    """The same for the same arguments. The first host is never touched; `LEAST` to `MOST` are to be there always."""
    random = Random(seed)
    present, bag, found = list(hosts), list[str](), list[Happening]()
    for turn in range(1, int(seconds / every_s - JITTER) + 1):
        if not bag:
            bag = random.sample(BAG, len(BAG))
        allowed = [do for do in bag if LEAST <= len(present) + {"join": 1, "freeze": 0}.get(do, -1) <= MOST]
        do = allowed[0] if allowed else "freeze"
        if do in bag:
            bag.remove(do)
        host = f"c{turn}" if do == "join" else random.choice(present[1:])
        if do == "join":
            present.append(host)
        elif do != "freeze":
            present.remove(host)
        found.append(Happening(every_s * (turn + random.uniform(-JITTER, JITTER)), do, host))
    return found


@dataclass(frozen=True)
class Goodput:
    samples_per_s: float
    longest_gap_s: float
    """Without a step."""


def goodput(logs: Mapping[str, list[dict[str, float]]], start: float, seconds: float) -> Goodput:
    """Of all hosts' steps: a step counts once, when it is first logged, however often it is done."""
    first: dict[int, tuple[float, float]] = {}
    for step in sorted((step for steps in logs.values() for step in steps), key=lambda step: step["t"]):
        first.setdefault(int(step["step"]), (step["t"], step["samples"]))
    inside = [(t, samples) for t, samples in first.values() if start <= t < start + seconds]
    times = sorted([start, *(t for t, _ in inside), start + seconds])
    return Goodput(sum(samples for _, samples in inside) / seconds, max(b - a for a, b in pairwise(times)))


@dataclass
class Churn:
    """Does to a system what the schedule says, and keeps what should run running."""

    system: System
    seconds: float
    happenings: list[Happening]
    restarts: int = 0
    ever: dict[str, Host] = field(default_factory=dict)
    """All hosts that there were, for their logs."""
    _due: list[tuple[float, str, str]] = field(default_factory=list)
    """When, what and to whom: what follows from what was done."""

    def run(self) -> Goodput:
        start = time.monotonic()
        self.ever.update(self.system.hosts)
        self._due = [(start + each.at, each.do, each.host) for each in self.happenings]
        self._leaving: set[str] = set()
        while (now := time.monotonic()) < start + self.seconds:
            for item in sorted(item for item in self._due if item[0] <= now):
                self._due.remove(item)
                self._do(*item[1:], now)
            self._restart(now)
            time.sleep(LOOK_S)
        return goodput({name: host.steps() for name, host in self.ever.items()}, start, self.seconds)

    def _do(self, do: str, name: str, now: float) -> None:
        progress(f"{self.system.name}: {do} {name}")
        if do in ("join", "restart"):
            try:
                self.ever[name] = self.system.start(name)
            except TooLate:  # nobody is there whom it could ask
                self._due.append((now + RESTART_S, "restart", name))
            return
        host = self.system.hosts.get(name)
        if host is None:
            return  # it left by itself before it was taken away
        match do:
            case "kill" | "take away":
                self._leaving.discard(name)
                self.system.kill(name)
            case "leave":
                self._leaving.add(name)
                host.ask_to_leave()
                self._due.append((now + LEAVING_S, "take away", name))
            case "freeze":
                host.freeze(True)
                self._due.append((now + FROZEN_S, "thaw", name))
            case "thaw":
                host.freeze(False)

    def _restart(self, now: float) -> None:
        """What ended without having been asked to comes back."""
        waiting = {name for _, do, name in self._due if do == "restart"}
        for name, host in self.system.hosts.items():
            if host.ended() and name not in self._leaving | waiting:
                self.restarts += 1
                self._due.append((now + RESTART_S, "restart", name))
