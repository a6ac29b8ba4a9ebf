"""I4, once faults have ceased: all that can must have become members, steps go on, and the run comes to its end."""

from __future__ import annotations

from random import Random

from chaos.core import events as ev
from chaos.core.context import Role
from chaos.core.departure import DONE, LOST, UNCONFIRMED
from chaos.sim.faults import Faults
from chaos.sim.peer import SimPeer

BOUND = 45.0
"""Seconds after the last fault by which everything has to have healed: a few time-outs one after the other."""
EPOCHS_S = 240.0
"""Seconds for two epochs, where they are short."""
SHORT_EPOCH = 500


class Calm:
    def __init__(self, faults: Faults, random: Random, steps: int) -> None:
        self._faults = faults
        self._world = faults.world
        self._random = random
        self._steps = steps

    def is_lost(self) -> bool:
        """All workers with the state died at once, or the quorum is gone for good: nobody can go on.

        Where one of those that held the last stable step died without a word, the others can't know, and wait for it.
        """
        everybody = [*self._world.peers.values(), *self._world.dead]
        if any(p.stopped is not None and p.stopped.code == LOST for p in everybody):
            return True
        members = self._world.members()
        return bool(members) and not any(p.node.steps.report().grounded for p in members)

    def is_over(self) -> bool:
        """All members of the newest view were asked to leave, and did: nobody is left who could let others in."""
        views = [p.node.ctx.view for p in (*self._world.peers.values(), *self._world.dead) if p.node.ctx.views]
        newest = max(views, key=lambda view: view.id)
        leavers = {p.info: p for p in self._faults.leavers}
        return all(info in leavers and leavers[info].stopped is not None for info in newest.members)

    def settle(self) -> bool:
        """Faults cease: heal, go on, end. False if the run is lost or over. Raises PromiseBroken (I4)."""
        world = self._world
        self._faults.cease()
        world.run(world.now + 8.0)
        self._faults.cease()  # what a fault had planned for later
        if self.is_lost() or self.is_over() or not self._faults.living():
            return False
        self._help_joiners()
        world.run_until(self._is_healthy, BOUND)
        self._go_on()
        world.promises.equal_states()
        self._end()
        return True

    def _help_joiners(self) -> None:
        """Where all that a joiner knew of have died meanwhile, its user names another member."""
        members = self._world.members()
        present = {peer.id for peer in members}
        for peer in self._faults.living():
            if peer.node.ctx.role == Role.JOINER and members and not present & peer.node.ctx.linked.keys():
                self._faults.contact(peer, self._random.choice(members).index)

    def _is_healthy(self) -> bool:
        peers = self._faults.living()
        if any(not self._is_well(peer) for peer in peers):
            return False
        views = {p.node.ctx.view.id for p in peers}
        present = {p.info.id for p in peers}
        return len(views) == 1 and set(peers[0].node.ctx.view.member_ids()) == present

    def _is_well(self, peer: SimPeer) -> bool:
        return peer not in self._faults.leavers and peer.node.ctx.role == Role.MEMBER and not peer.node.views.suspects

    def _go_on(self) -> None:
        world, peers = self._world, self._faults.living()
        before, epoch = max(world.promises.stable, default=0), world.epoch()
        target = max(before + 5, self._steps)
        limit = BOUND + 10 * world.compute * max(0, self._steps - before)
        world.run_until(lambda: min(p.node.steps.stable for p in peers) >= target, limit)
        if world.samples < SHORT_EPOCH:
            world.run_until(lambda: world.epoch() > epoch + 1, EPOCHS_S)

    def _end(self) -> None:
        """All scripts come to their end, at one step or at several; or all are asked to leave; or one dies then."""
        world, peers = self._world, self._faults.living()
        furthest = max(p.node.steps.finished for p in peers)
        how = self._random.choice(["alike", "apart", "leave", "crash"])
        for peer in peers:
            if how == "leave":
                peer.handle(ev.LeaveRequested("all are to end"))
                world.run(world.now + self._random.choice([0.0, 0.0, 0.003, 0.05]))
            else:
                world.ends[peer.index] = furthest + (2 if how == "alike" else self._random.choice([2, 2, 3, 5]))
        if how == "crash" and len(peers) > 1:
            world.run(world.now + self._random.uniform(0.0, 5 * world.compute))
            world.kill(self._random.choice(peers))
        world.run_until(lambda: all(p.stopped is not None or not p.alive for p in peers), BOUND)
        fine = (DONE, UNCONFIRMED) if how == "crash" else (DONE,)
        for stop, name in [(p.stopped, p.info.name) for p in peers if p.stopped is not None]:
            if stop.code not in fine:
                world.promises.broken("I4", f"{name} ends with code {stop.code}: {stop.reason}")
