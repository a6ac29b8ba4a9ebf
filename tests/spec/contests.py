"""Runs in which several members propose at once: messages take longer than a member waits before it takes over."""

from __future__ import annotations

from chaos.core.context import Role
from chaos.sim.world import World


class Contest:
    """Five members of one run, of whom some die or fall silent one after the other."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)

    def run(self) -> None:
        world, random = self.world, self.world.random
        world.found(0)
        for index in range(1, 5):
            world.join(index, 0)
        world.run_until(lambda: len(world.members()) == 5, 60.0)
        for _ in range(3):
            world.network.latency = random.choice([0.1, 0.2, 0.3, 0.5])
            members = [p for p in world.members() if p.node.ctx.role == Role.MEMBER]
            if len(members) < 2:
                return
            victim = random.choice(members[1:])
            if len(members) > 3 and random.random() < 0.7:
                world.kill(victim, later=random.uniform(0.0, 2.0))
            else:
                others = [p.index for p in members if p is not victim]
                for other in others:
                    world.cut_link(victim.index, other)
                world.run(world.now + random.uniform(1.0, 4.0))
                for other in others:
                    world.restore_link(victim.index, other)
            world.run(world.now + 6.0)
