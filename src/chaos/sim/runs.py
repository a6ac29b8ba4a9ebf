"""Whole simulated runs, what they gave, and the shortest schedule that still breaks a promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random

from chaos.core.context import Role
from chaos.sim.bandwidth import Pipes
from chaos.sim.calm import Calm
from chaos.sim.faults import Faults
from chaos.sim.heap import Runaway
from chaos.sim.promises import PromiseBroken
from chaos.sim.schedule import Schedule
from chaos.sim.symbols import LAYOUT
from chaos.sim.world import World

JOINS_ONLY = 8
"""Each so-manieth seed has no faults but joins, so that they can be seen to stall nobody (I5)."""
BY_HAND = 5
"""In each so-manieth, scripts change the reduced gradients before each update."""
LATE = 5
"""In each so-manieth (others than those), late workers are left out of a step."""
MOST_FAULTS = 18


@dataclass(frozen=True, kw_only=True)
class Violation:
    seed: int
    promise: str
    at: float
    """Virtual seconds."""
    text: str


@dataclass
class RunResult:
    seed: int
    events: int = 0
    messages: int = 0
    views: int = 0
    steps: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str, str]] = field(default_factory=list)
    lost: bool = False
    """All holders of the state died: legitimate, and the run's end."""
    violation: Violation | None = None
    digest: bytes = b""


@dataclass
class Tally:
    """The faults of a run, as they happened."""

    counts: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str, str]] = field(default_factory=list)
    """(virtual time, kind, what was done)."""

    def note(self, now: float, kind: str, what: str) -> None:
        self.counts[kind] += 1
        self.log.append((now, kind, what))


class Run(ABC):
    """One run of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = Faults(world)
        self.tally = Tally()
        self.lost = False
        """Set at the end: nobody was left to go on."""

    @abstractmethod
    def run(self) -> None:
        """Raises PromiseBroken."""


class DrawnRun(Run):
    """A run whose faults are drawn from its seed.

    Args:
        seed: of everything.
        peers: at the beginning; of a range, or of the usual ones (None), some number is drawn.
        steps: at least so many become stable.
        omit: numbers of faults that are left out.
        limit: only so many faults are drawn.
    """

    def __init__(
        self,
        seed: int,
        peers: int | range | None = None,
        steps: int = 0,
        omit: Collection[int] = (),
        limit: int | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(World(seed, verbose=verbose))
        self._random = Random(f"{self.stream()} {seed}")
        memory = Random(f"memory {seed}")
        self.world.result_slots, self.world.disk_slots = memory.choice((6, 64)), memory.choice((20, 64))
        results = memory.choice((1, 3, 40))  # that are as many bytes as the state
        self.world.state_bytes, self.world.shard_bytes = results * LAYOUT.nbytes, results * LAYOUT.nbytes // 8
        self._omit, self._limit = omit, limit
        self._initial = peers if isinstance(peers, int) else self._random.choice(peers or self.few())
        self.schedule = self._set_up(self._random)
        self.calm = Calm(self.faults, self._random, steps)

    @staticmethod
    @abstractmethod
    def stream() -> str:
        """Names the random numbers of this kind of run."""

    @staticmethod
    @abstractmethod
    def few() -> range:
        """How many peers there may be at the beginning, where nobody says."""

    @abstractmethod
    def _set_up(self, random: Random) -> Schedule:
        """Draw the world's properties; give what draws its faults."""


Factory = Callable[[Collection[int], int | None], Run]
"""Makes a run anew, without the faults of these numbers and with only so many of the first."""


class RandomRun(DrawnRun):
    """A run in which things break at random, and then a calm in which all must heal."""

    @staticmethod
    def stream() -> str:
        return "schedule"

    @staticmethod
    def few() -> range:
        return range(2, 6)

    def _set_up(self, random: Random) -> Schedule:
        world, network = self.world, self.world.network
        network.latency = random.choice([0.0005, 0.002, 0.02])
        network.bulk_delay = random.choice([0.001, 0.02, 0.06])
        network.hiccups = random.choice([0.0, 0.0, 0.02])
        world.compute = random.choice([0.02, 0.05, 0.2])
        world.samples = random.choice([60, 400, 10_000])
        world.by_hand = world.seed % BY_HAND == BY_HAND - 1
        if world.seed % LATE == LATE - 3:
            world.straggler_limit_s = random.choice([0.3, 1.0, 4.0])
            world.slow_steps = random.choice([0.01, 0.03, 0.1])
        if random.random() < 0.2:
            world.pipes = Pipes(world.heap, random.choice([30_000.0, 300_000.0]))
        joins_only = world.seed % JOINS_ONLY == JOINS_ONLY - 1
        if joins_only:
            network.hiccups = 0.0
        skewed = random.random() < 0.5
        return Schedule(self.faults, self.tally.note, self._initial + 3, skewed, joins_only)

    def run(self) -> None:
        world, random = self.world, self._random
        world.found(0, self.schedule.new_clock(random))
        world.run_until(lambda: bool(world.members()), 1.0)
        for _ in range(self._initial - 1):
            self.schedule.join(random)
        world.run(world.now + random.uniform(0.05, 3.0))
        planned = random.randrange(4, MOST_FAULTS)
        for number in range(planned if self._limit is None else min(planned, self._limit)):
            dice = Random(f"fault {world.seed} {number}")
            if number not in self._omit and self.faults.living():
                self.schedule.draw(dice)
            if dice.random() < 0.5:
                world.run(world.now + dice.choice([0.001, 0.01, 0.05, 0.3, 1.0, 3.0]))
            else:
                world.reaches(self._moment(dice), 1.0)
            if not self.faults.living():
                self.lost = True
                return
        world.run(world.now + random.choice([0.0, 0.0, 1.5, 6.0]))
        self.lost = not self.calm.settle()

    def _moment(self, dice: Random) -> Callable[[], bool]:
        """A state that does not last: the next fault comes in its midst."""
        phase = dice.choice(["offer", "fetch", "load", "verify", "ready"])
        ballot = dice.choice([True, False])
        living, members = self.faults.living, self.world.members
        return dice.choice([
            lambda: any(str(p.node.learner.phase) == phase for p in living()),
            lambda: any((c := p.node.views.proposal) is not None and (c.value is None) == ballot for p in living()),
            lambda: any(p.node.steps.frozen for p in living()),
            lambda: len({p.node.steps.finished for p in members()}) > 1,
            lambda: len({p.node.ctx.view.id for p in living() if p.node.ctx.views}) > 1,
            lambda: any(p.node.ctx.role == Role.LEAVER for p in living()),
            lambda: any(r.fetching for p in living() for r in p.node.steps.rounds.values()),
        ])  # fmt: skip


def finish(run: Run) -> RunResult:
    """Run it to its end, or to the first broken promise."""
    world, violation = run.world, None
    try:
        run.run()
    except PromiseBroken as broken:
        violation = Violation(seed=broken.seed, promise=broken.promise, at=round(broken.at, 4), text=broken.text)
    except Runaway as runaway:
        violation = Violation(seed=world.seed, promise="I4", at=round(world.now, 4), text=str(runaway))
    return RunResult(
        seed=world.seed,
        events=world.events,
        messages=world.network.sent,
        views=len(world.promises.views),
        steps=max(world.promises.stable, default=0),
        seconds=world.now,
        faults=run.tally.counts,
        log=run.tally.log,
        lost=run.lost,
        violation=violation,
        digest=world.trace_digest,
    )


def shorten(result: RunResult, again: Factory) -> RunResult:
    """The run with the fewest first faults that still breaks the same promise, then with as few of these as possible.

    At most two runs per fault of the original.
    """
    assert result.violation is not None
    wanted, best, limit = result.violation.promise, result, MOST_FAULTS

    def fails(omit: Collection[int], first: int) -> RunResult | None:
        tried = finish(again(omit, first))
        return tried if tried.violation is not None and tried.violation.promise == wanted else None

    for first in range(len(result.log) + 1):
        if (shorter := fails((), first)) is not None:
            best, limit = shorter, first
            break
    omit: set[int] = set()
    for number in range(limit):
        if (shorter := fails({*omit, number}, limit)) is not None:
            best = shorter
            omit.add(number)
    return best
