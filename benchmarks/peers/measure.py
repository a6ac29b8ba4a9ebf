"""The same events for every system, and what the workers' logs say of them.

Three hosts train. A fourth joins and leaves again; one of the first is killed and started again; one is frozen and
goes on; at last the coordinator is killed, or, where there is none, the host that came first. All times are the
workers' own. What a system doesn't do within the patience is a failure, and is told as one; the events that are left
are then tried with the system started anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import median

import psutil

from benchmarks.peers.churn import EVERY_S, Churn, schedule
from benchmarks.peers.hosts import Host, Printed, TooLate
from benchmarks.peers.log import BATCH
from benchmarks.peers.systems import System
from benchmarks.report import progress

HOSTS = System.together
NAMES = tuple(f"h{number}" for number in range(HOSTS))
STEADY_STEPS, STEADY_S = 12, 40.0
"""So many steps, or at least a third of them once so many seconds have passed."""
ENDING_S = 30.0
STANDSTILL_S = 60.0
"""A system that does no step for so long has failed."""
EVENTS = ("join", "kill", "freeze", "coordinator", "churn")


@dataclass(frozen=True)
class Plan:
    """What is to happen to a system."""

    events: tuple[str, ...] = EVENTS
    rounds: int = 3
    """Of joins, kills and freezes; the others happen once."""
    churn_s: float = 240.0
    every_s: float = EVERY_S
    """Between two events of the churn."""
    seed: int = 1
    patience_s: float = 120.0

    def all(self) -> list[str]:
        """In order."""
        repeated = [event for event in self.events if event in ("join", "kill", "freeze")]
        return repeated * self.rounds + [event for event in self.events if event not in repeated]


@dataclass
class Noted:
    """Of one event."""

    event: str
    values: dict[str, list[float]] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    failed: str = ""


Note = Callable[[Noted], None]
Opened = Callable[[], AbstractContextManager[System]]


def measure(opened: Opened, plan: Plan, note: Note) -> None:
    """All events of the plan; `opened` starts the system anew, without hosts."""
    left = plan.all()
    while True:
        with opened() as system:
            trial = Trial(system, plan, note)
            if not trial.begin():
                return
            while left:
                event = left.pop(0)
                if not trial.do(event):
                    left = [other for other in left if other != event]
                    break
                if event in ("coordinator", "churn") and left:
                    break  # what is left of the system after it is nothing to measure
            else:
                return
        if not left:
            return


class Trial:
    """One system under measurement, from its start to its first failure."""

    def __init__(self, system: System, plan: Plan, note: Note) -> None:
        self.system = system
        self._plan = plan
        self._note = note
        self._usual = 0.0
        self._joined = 0

    def begin(self) -> bool:
        """Hosts start, and a while nothing happens. False if that failed."""
        return self._try(self._begin)

    def do(self, event: str) -> bool:
        """False if it failed."""
        events = {
            "join": self._join_and_leave,
            "kill": self._kill_and_return,
            "freeze": self._freeze_and_thaw,
            "coordinator": self._lose_coordinator,
            "churn": self._churn,
        }
        return self._try(events[event])

    # --- events --------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        with self._noting("steady") as noted:
            for name in NAMES:
                self.system.start(name)
                self._wait(self.system.hosts[name].log.path.exists, [name], "imports")
            for host in self._hosts():
                self._wait(partial(together, host, 3), NAMES, "steps with all")
            noted.values = self._steady()

    def _steady(self) -> dict[str, list[float]]:
        """A while in which nothing happens."""
        hosts = self._hosts()
        first, began, sent, before = hosts[0], time.monotonic(), self.system.place.sent(), [h.used() for h in hosts]
        steps, samples = len(first.steps()), sum(s["samples"] for s in first.steps())

        def enough() -> bool:
            least = STEADY_STEPS if time.monotonic() < began + STEADY_S else STEADY_STEPS // 3
            return len(first.steps()) >= steps + least

        self._wait(enough, NAMES, "steps")
        done, now = first.steps(), [h.used() for h in hosts]
        count = len(done) - steps
        new_samples = sum(s["samples"] for s in done) - samples
        values = {
            "step": [b["t"] - a["t"] for a, b in pairwise(done[-count - 1 :])],
            "processor": [sum(b.seconds - a.seconds for a, b in zip(before, now, strict=True)) / count],
            "own_processor": [sum(b.own_seconds - a.own_seconds for a, b in zip(before, now, strict=True)) / count],
            "memory": [usage.memory for usage in now],
            "own_memory": [usage.own_memory for usage in now],
        }
        if sent is not None and (sent_now := self.system.place.sent()) is not None:
            values["bytes_per_sample"] = [(sent_now - sent) / new_samples]
        self._usual = median(values["step"])
        progress(f"{self.system.name}: a step takes {self._usual:.3f} s")
        return values

    def _join_and_leave(self) -> None:
        name = f"j{self._joined}"
        self._joined += 1
        incumbents, count, steps = self._hosts(), HOSTS + 1, self._several()
        with self._noting("join") as noted:
            since = time.monotonic()
            joiner = self.system.start(name)
            everybody = [*NAMES, name]
            self._wait(lambda: len(with_all(joiner, count, since)) >= steps, everybody, "steps with all")
            imported, steps_of_all = joiner.imported(since), with_all(joiner, count, since)
            usual = max(self._usual, usual_of(steps_of_all, self._usual))
            stalls = [lost(host, imported, steps_of_all[steps - 1]["t"], usual) for host in incumbents]
            noted.values = {"join": [steps_of_all[0]["t"] - imported], "join_stall": [max(stalls)]}
        with self._noting("leave") as noted:
            asked = time.monotonic()
            joiner.ask_to_leave()
            self._wait(lambda: all(len(with_all(h, HOSTS, asked)) >= steps for h in incumbents), NAMES, "a leave")
            ends = [with_all(h, HOSTS, asked)[steps - 1]["t"] for h in incumbents]
            stalls = [lost(h, asked, end, usual) for h, end in zip(incumbents, ends, strict=True)]
            noted.values = {"leave_stall": [max(stalls)]}
            if not joiner.ends(ENDING_S):
                noted.failed = f"the process had not ended after {ENDING_S:.0f} s, and was killed"
            self.system.kill(name)

    def _kill_and_return(self) -> None:
        name = NAMES[-1]
        with self._noting("kill") as noted:
            killed = time.monotonic()
            self.system.kill(name)
            noted.values = {"kill": [self._next_step(killed)]}
        self._come_back(name)

    def _come_back(self, name: str) -> None:
        with self._noting("rejoin") as noted:
            since = time.monotonic()
            host = self.system.start(name)
            self._wait(lambda: len(with_all(host, HOSTS, since)) >= self._several(), NAMES, "steps with all")
            noted.values = {"rejoin": [with_all(host, HOSTS, since)[0]["t"] - host.imported(since)]}

    def _freeze_and_thaw(self) -> None:
        name = NAMES[-2]  # not the one that is killed: who is lost again and again may be kept waiting for it
        host = self.system.hosts[name]
        others = [other for other in self._hosts() if other is not host]
        failed = False
        try:
            with self._noting("freeze") as noted:
                frozen = time.monotonic()
                host.freeze(True)
                noted.values = {"freeze": [self._next_step(frozen, others)]}
                self._wait(lambda: all(len(after(h, frozen)) >= self._several() for h in others), NAMES, "more steps")
        except TooLate:
            failed = True
        thawed = time.monotonic()
        host.freeze(False)
        try:
            with self._noting("thaw") as noted:
                other = others[0]  # the host itself may first tell of the step in which it was stopped
                self._wait(lambda: len(with_all(other, HOSTS, thawed)) >= self._several(), NAMES, "steps with all")
                back = with_all(other, HOSTS, thawed)[0]["t"] - thawed
                if failed:
                    noted.failed = f"steps after {back:.2f} s, as the others had waited for it"
                else:
                    noted.values = {"thaw": [back]}
        except TooLate:
            self.system.kill(name)
            self._come_back(name)
        if failed:
            raise TooLate("the others did not go on")

    def _lose_coordinator(self) -> None:
        """One step more proves little: it may have been agreed on before."""
        with self._noting("coordinator") as noted:
            killed = time.monotonic()
            self.system.kill_coordinator()
            noted.values = {"coordinator": [self._next_step(killed, count=self._several())]}

    def _churn(self) -> None:
        plan = self._plan
        with self._noting("churn") as noted:
            happenings = schedule(plan.churn_s, plan.every_s, plan.seed, NAMES)
            churn = Churn(self.system, plan.churn_s, happenings)
            found = churn.run()
            undisturbed = HOSTS * BATCH / self._usual
            noted.values = {
                "goodput": [found.samples_per_s],
                "goodput_share": [found.samples_per_s / undisturbed],
                "gap": [found.longest_gap_s],
                "restarts": [float(churn.restarts)],
            }
            noted.failed = "" if found.longest_gap_s < STANDSTILL_S else f"no step for {found.longest_gap_s:.0f} s"

    # --- waiting -------------------------------------------------------------------------------------------

    def _try(self, what: Callable[[], None]) -> bool:
        try:
            what()
        except TooLate:
            return False
        return True

    @contextmanager
    def _noting(self, event: str) -> Iterator[Noted]:
        """Notes what comes of it, a failure as well, and passes that on as TooLate: nothing sensible can follow."""
        noted, printed = Noted(event), Printed(self.system.directory)
        try:
            yield noted
        except (TooLate, RuntimeError, OSError, psutil.Error) as error:
            noted.failed = str(error) or type(error).__name__
            raise TooLate(noted.failed) from error
        finally:
            noted.printed = printed.telling()
            shown = "; ".join(f"{key} {median(each):.2f}" for key, each in noted.values.items())
            progress(f"{self.system.name}: {event}: {noted.failed or shown}")
            self._note(noted)

    def _hosts(self) -> list[Host]:
        return list(self.system.hosts.values())

    def _several(self) -> int:
        """Steps that show that something has been settled."""
        return 5 if self._usual < 1.0 else 3

    def _next_step(self, since: float, hosts: Sequence[Host] | None = None, count: int = 1) -> float:
        """How much later than usual these hosts' step number `count` comes, from half a step after `since` on."""
        hosts = self._hosts() if hosts is None else hosts
        start = since + 0.5 * self._usual
        names = [host.name for host in hosts]
        self._wait(lambda: all(len(after(host, start)) >= count for host in hosts), names, "further steps of others")
        return max(after(host, start)[count - 1] for host in hosts) - since - count * self._usual

    def _wait(self, until: Callable[[], bool], names: Sequence[str], what: str) -> None:
        """Raises TooLate: it did not come, or one of these hosts has ended."""
        deadline = time.monotonic() + self._plan.patience_s
        while not until():
            for name in names:
                if (host := self.system.hosts.get(name)) and (how := host.ended()):
                    raise TooLate(how)
            if time.monotonic() > deadline:
                raise TooLate(f"no {what} in {self._plan.patience_s:.0f} s")
            time.sleep(0.05)


def with_all(host: Host, count: int, since: float = 0.0) -> list[dict[str, float]]:
    """Its steps since then in which so many took part."""
    return [step for step in host.steps() if step["participants"] == count and step["t"] > since]


def together(host: Host, steps: int) -> bool:
    """Whether it has done so many with all that the trial begins with."""
    return len(with_all(host, HOSTS)) >= steps


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
