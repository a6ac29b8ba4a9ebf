"""Random runs with faults: one seed, one schedule. Shared by the test and by whoever searches more seeds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from chaos.core import events as ev
from chaos.core.context import Role
from chaos.sim.peer import SimPeer
from chaos.sim.world import World

CALM = 45.0
"""Seconds after the last fault by which everything has to have healed: a few time-outs one after the other."""


class FaultRun:
    """A run of 2 to 5 peers and joiners in which things break at random, and then a calm in which all must heal."""

    def __init__(self, seed: int, verbose: bool = False) -> None:
        self.world = World(seed, verbose=verbose)
        self.random = self.world.random
        self.world.network.latency = self.random.choice([0.0005, 0.002, 0.02])
        self.world.compute = self.random.choice([0.02, 0.05, 0.2])
        self.world.network.bulk_delay = self.random.choice([0.001, 0.02, 0.06])
        self.world.network.hiccups = self.random.choice([0.0, 0.0, 0.02])
        self.world.samples = self.random.choice([60, 400, 10_000])
        self.world.by_hand = seed % 4 == 3
        if seed % 5 == 2 and not self.world.by_hand:
            self.world.straggler_limit_s = self.random.choice([0.3, 1.0, 4.0])
            self.world.slow_steps = self.random.choice([0.01, 0.03, 0.1])
        self.next_index = 0
        self.lost_hosts: list[SimPeer] = []
        self.leavers: list[SimPeer] = []
        self.flaps: set[tuple[int, int]] = set()

    # --- what may happen -------------------------------------------------------------------------------------

    def living(self) -> list[SimPeer]:
        return [p for p in self.world.peers.values() if p.alive and p.stopped is None]

    def staying(self) -> list[SimPeer]:
        return [p for p in self.living() if p not in self.leavers]

    def trained(self) -> list[SimPeer]:
        """Members whose workers hold the state: without one of them, the run is lost."""
        result = []
        newest = max((p.node.ctx.view.id for p in self.world.members()), default=0)
        for peer in self.world.members():
            if peer.node.ctx.view.id < newest:
                continue
            worker = peer.node.worker.worker
            if worker is not None and worker.applied is not None and peer.worker.alive and peer in self.staying():
                result.append(peer)
        return result

    def join(self) -> None:
        contacts = [p for p in self.staying() if p.node.ctx.role == Role.MEMBER]
        if contacts and len(self.living()) < 6:
            self.world.join(self.next_index, self.random.choice(contacts).index)
            self.next_index += 1

    def spare(self, victims: list[SimPeer]) -> bool:
        """Whether the run can live without these: a quorum of present members that hold the state stays.

        A host that is lost for ever takes its vote with it, so those must stay few.
        """
        left = [p for p in self.trained() if p not in victims]
        return len(left) >= 2 or (len(left) == 1 and not self.lost_hosts)

    def kill_agents(self, count: int) -> None:
        candidates = self.living()
        if len(candidates) <= count:
            return
        victims = self.random.sample(candidates, count)
        if not self.spare(victims):
            return
        for victim in victims:
            fate = self.random.random()
            if fate < 0.5:
                self.world.kill(victim)
            elif fate < 0.8:
                self.world.kill(victim, later=self.random.uniform(0.1, 4.0))
            elif not self.lost_hosts and len(self.trained()) >= 4:
                self.world.kill(victim, seal=False)
                self.lost_hosts.append(victim)
            else:
                self.world.kill(victim)
                if self.random.random() < 0.7:
                    self.world.heap.at(self.random.uniform(0.05, 3.0), partial(self.restart, victim))

    def restart(self, dead: SimPeer) -> None:
        contacts = [p for p in self.staying() if p.node.ctx.role == Role.MEMBER]
        if contacts and dead.info.id not in self.world.peers:
            self.world.restart(dead, self.random.choice(contacts).index)

    def kill_workers(self, count: int) -> None:
        candidates = [p for p in self.living() if p.worker.alive and not p.worker.ended]
        if len(candidates) >= count:
            victims = self.random.sample(candidates, count)
            if self.spare(victims):
                for victim in victims:
                    self.world.kill_worker(victim, restart=self.random.uniform(0.01, 1.0))

    def kill_mixed(self) -> None:
        """An agent and another peer's worker in one moment."""
        candidates = self.living()
        if len(candidates) < 3:
            return
        one, two = self.random.sample(candidates, 2)
        if self.spare([one, two]) and two.worker.alive and not two.worker.ended:
            self.world.kill(one)
            self.world.kill_worker(two, restart=self.random.uniform(0.01, 1.0))

    def leave(self) -> None:
        candidates = self.staying()
        if len(candidates) > 2:
            leaver = self.random.choice(candidates)
            if self.spare([leaver]):
                self.leavers.append(leaver)
                leaver.handle(ev.LeaveRequested("asked to"))

    def flap(self) -> None:
        """A link breaks, and comes back: at once, or after long enough to be noticed."""
        pairs = [tuple(sorted((int(a, 16), int(b, 16)))) for a, b in self.world.network.links]
        if pairs:
            a, b = self.random.choice(sorted(set(pairs) - self.flaps) or sorted(pairs))
            self.world.cut_link(a, b)
            self.world.heap.at(self.random.choice([0.01, 0.3, 2.0, 6.0]), lambda: self.world.restore_link(a, b))

    def isolate(self) -> None:
        """A host drops off the network and comes back: its peers may have gone on without it."""
        candidates = self.living()
        victim = self.random.choice(candidates)
        others = [p.index for p in candidates if p is not victim]
        for other in others:
            self.world.cut_link(victim.index, other)

        def back() -> None:
            for other in others:
                self.world.restore_link(victim.index, other)

        self.world.heap.at(self.random.choice([0.2, 1.5, 4.0, 9.0]), back)

    def moment(self) -> Callable[[], bool]:
        """A state that does not last: the next fault comes in its midst."""
        phase = self.random.choice(["offer", "fetch", "load", "verify", "ready"])
        ballot = self.random.choice([True, False])
        return self.random.choice([
            lambda: any(str(p.node.learner.phase) == phase for p in self.living()),
            lambda: any((c := p.node.views.proposal) and (c.value is None) == ballot for p in self.living()),
            lambda: any(p.node.steps.frozen for p in self.living()),
            lambda: len({p.node.steps.finished for p in self.world.members()}) > 1,
            lambda: len({p.node.ctx.view.id for p in self.living() if p.node.ctx.views}) > 1,
            lambda: any(p.node.ctx.role == Role.LEAVER for p in self.living()),
            lambda: any(r.fetching for p in self.living() for r in p.node.steps._rounds.values()),
        ])  # fmt: skip

    # --- a run -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        world = self.world
        world.found(0)
        self.next_index = 1
        for _ in range(self.random.randrange(1, 5)):
            self.join()
        world.run(world.now + self.random.uniform(0.05, 3.0))
        faults = [
            (self.join, 4),
            (lambda: self.kill_agents(1), 4),
            (lambda: self.kill_agents(2), 2),
            (lambda: self.kill_workers(1), 4),
            (lambda: self.kill_workers(2), 2),
            (self.kill_mixed, 2),
            (self.leave, 2),
            (self.flap, 2),
            (self.isolate, 1),
        ]
        kinds, weights = [f for f, _ in faults], [w for _, w in faults]
        for _ in range(self.random.randrange(4, 18)):
            self.random.choices(kinds, weights)[0]()
            if self.random.random() < 0.5:
                world.run(world.now + self.random.choice([0.001, 0.01, 0.05, 0.3, 1.0, 3.0]))
            else:
                world.reaches(self.moment(), 1.0)
            world.promises.equal_states()
            if not self.living():
                return
        self.settle()

    def settle(self) -> None:
        """Faults have ceased: all that can must have become members, and steps go on."""
        world = self.world
        world.slow_steps = 0.0
        world.run(world.now + 8.0)
        if self.is_lost():
            return
        for joiner in self.living():
            if (
                joiner.node.ctx.role == Role.JOINER and not joiner.node.ctx.linked
            ):  # its contact died before it knew anybody else: its user tries another
                contact = self.random.choice(world.members()).info.id
                world.contact(joiner, contact)
        world.run_until(self.is_healthy, CALM)
        before, epoch = max(world.promises.stable, default=0), world.epoch()
        peers = self.living()
        world.run_until(lambda: min(p.node.steps.stable for p in peers) >= before + 5, CALM)
        if world.samples < 500:
            world.run_until(lambda: world.epoch() > epoch + 1, 240.0)
        world.promises.equal_states()
        self.end()

    def end(self) -> None:
        """All scripts come to their end."""
        world, peers = self.world, self.living()
        furthest = max(p.node.steps.finished for p in peers)
        for peer in peers:
            world.ends[peer.index] = furthest + self.random.choice([2, 2, 3, 5])
        world.run_until(lambda: all(p.stopped is not None for p in peers), CALM)
        codes = {p.info.name: p.stopped for p in peers if p.stopped is not None and p.stopped.code != 0}
        assert not codes, f"seed {world.seed}: {codes}"

    def is_lost(self) -> bool:
        """All workers with the state died at once, or the quorum is gone for good: nobody can go on."""
        stops = [p.stopped for p in [*self.world.peers.values(), *self.world.dead] if p.stopped is not None]
        return any(stop.code == 5 for stop in stops)

    def is_healthy(self) -> bool:
        peers = self.living()
        if not peers:
            return True
        for peer in peers:
            if peer in self.leavers or peer.node.ctx.role != Role.MEMBER or peer.node.views.suspects:
                return False
        views = {p.node.ctx.view.id for p in peers}
        present = {p.info.id for p in peers}
        return len(views) == 1 and set(peers[0].node.ctx.view.member_ids()) == present
