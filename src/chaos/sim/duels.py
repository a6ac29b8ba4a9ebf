"""Runs that strike at agreement: a change of the view is under way, and whoever proposes it is hit in its midst."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from chaos.core.agreement import Acceptor
from chaos.sim.peer import ClockSkew, SimPeer
from chaos.sim.runs import DrawnRun
from chaos.sim.schedule import Schedule

START_S = 30.0


class DuelRun(DrawnRun):
    """A few changes, each with its proposer killed, stopped or cut off between two messages; those are its faults."""

    @staticmethod
    def stream() -> str:
        return "duel"

    @staticmethod
    def few() -> range:
        return range(3, 6)

    def _set_up(self, random: Random) -> Schedule:
        network = self.world.network
        network.latency = random.choice([0.001, 0.01])
        network.bulk_delay = random.choice([0.001, 0.02])
        self.world.compute = random.choice([0.05, 0.2])
        self.world.samples = random.choice([400, 10_000])
        return Schedule(self.faults, self.tally.note, self._initial + 2, skewed=False)

    def run(self) -> None:
        world = self.world
        world.found(0, ClockSkew())
        world.run_until(lambda: bool(world.members()), 1.0)
        for _ in range(self._initial - 1):
            self.schedule.join(self._random)
        world.run_until(lambda: len(world.members()) == self._initial, START_S)
        world.run(world.now + 1.0)
        for number in range(self._random.randrange(1, 4)):
            dice = Random(f"duel {world.seed} {number}")
            if number not in self._omit and (self._limit is None or number < self._limit):
                self._duel(dice)
            world.run(world.now + dice.choice([0.01, 0.5, 2.0, 3.0]))
        world.run(world.now + self._random.choice([0.0, 3.0]))
        self.lost = not self.calm.settle()

    def _duel(self, dice: Random) -> None:
        """Give a reason for another view; once somebody proposes one, hit it, and perhaps the next one too."""
        self.schedule.draw(dice, ("worker", "leave", "join", "crash", "partition"))
        for _ in range(dice.choice([1, 1, 2, 3])):
            self.world.reaches(self._moment(dice), 1.0)
            candidates = self._ahead() or self._proposers()
            if not candidates:
                return
            done = self._strike(dice, dice.choice(candidates))
            if done:
                self.tally.note(self.world.now, "strike", done)

    def _moment(self, dice: Random) -> Callable[[], bool]:
        """A proposal is out; some voted, not all; or it is decided, and the others are still to hear of it."""
        late = self.world.now + dice.uniform(0.0, 7.0) * self.world.network.latency
        votes = dice.randrange(1, 4)
        return dice.choice([
            lambda: bool(self._proposers()) and self.world.now >= late,
            lambda: any((c := p.node.views.proposal) is not None and c.value is not None for p in self._proposers()),
            lambda: sum(a is not None and a.accepted is not None for a in self._acceptors()) >= votes,
            lambda: bool(self._ahead()),
            lambda: bool(self._ahead()),
        ])  # fmt: skip

    def _acceptors(self) -> list[Acceptor | None]:
        return [p.node.views.acceptor for p in self.faults.living()]

    def _ahead(self) -> list[SimPeer]:
        """Members that know of a newer view than others do."""
        views = {p.node.ctx.view.id for p in self.world.members()}
        newest = max(views, default=0)
        return [p for p in self.world.members() if len(views) > 1 and p.node.ctx.view.id == newest]

    def _proposers(self) -> list[SimPeer]:
        return [p for p in self.faults.living() if p.node.views.proposal is not None and not p.frozen]

    def _strike(self, dice: Random, victim: SimPeer) -> str:
        others = [p.id for p in self.faults.living() if p is not victim]
        some = dice.sample(others, dice.choice([len(others), dice.randrange(1, len(others) + 1)])) if others else []
        seconds = dice.choice([0.5, 2.0, 5.0])
        how = dice.choice(["crash", "between", "freeze", "mute", "deaf", "partition"])
        if how in ("crash", "between") and not self.schedule.spare([victim]):
            return ""
        match how:
            case "crash":
                self.faults.block([(victim.id, other) for other in others], 0.1)  # its last messages are lost
                self.faults.crash(victim, dice.choice([None, 0.5, 2.0]))
            case "between":
                self.faults.crash_between(victim, dice.randrange(1, 12))
            case "freeze":
                self.faults.freeze(victim, seconds)
            case "mute":
                self.faults.block([(victim.id, other) for other in some], seconds)
            case "deaf":
                self.faults.block([(other, victim.id) for other in some], seconds)
            case "partition":
                self.faults.partition([victim.id, *some[: len(others) // 2]], seconds)
        return f"{victim.info.name}, which proposes: {how}"
