"""Short runs that are told, not drawn: each leads to the one moment in which a rule of the core is needed.

Without planted bugs each comes to a good end, and all promises hold. Random runs reach these moments too rarely.
"""

from __future__ import annotations

from collections.abc import Callable

from chaos.core import events as ev
from chaos.core.context import Role
from chaos.sim.runs import Run
from chaos.sim.symbols import peer_id
from chaos.sim.world import World

Teller = Callable[[World], None]
HEALS_S = 45.0


class Story(Run):
    """One of the stories below, with the seed's delays and computing times."""

    def __init__(self, teller: Teller, seed: int) -> None:
        super().__init__(World(seed, latency=0.01))
        self._teller = teller

    def run(self) -> None:
        self._teller(self.world)


def started(world: World, count: int) -> None:
    """So many members that train together."""
    world.found(0)
    world.run_until(lambda: bool(world.members()), 2)
    for index in range(1, count):
        world.join(index, 0)
    world.run_until(lambda: len(world.members()) == count, 30)
    world.run(world.now + 0.5)


def silence(world: World, src: int, *to: int) -> None:
    """Nothing that `src` says or has just said arrives at these."""
    world.disturb()
    for dst in to:
        world.network.block(peer_id(src), peer_id(dst))


def heals(world: World) -> None:
    """The network is whole again: all that live become members, and five more steps become stable."""
    world.disturb()
    world.network.heal()
    living = list(world.peers.values())
    world.run_until(lambda: all(p.node.ctx.role == Role.MEMBER for p in living), HEALS_S)
    target = max(world.promises.stable) + 5
    world.run_until(lambda: min(p.node.steps.stable for p in living) >= target, HEALS_S)
    world.promises.equal_states()


def decided_in_secret(world: World, count: int, voters: tuple[int, ...]) -> None:
    """p0 has a view decided by these votes and its own; nobody else hears of the decision, nor, ever, of the value.

    Then p0 is cut off.
    """
    started(world, count)
    leader, others = world.peers[peer_id(0)], list(range(1, count))
    base = leader.node.ctx.view.id
    leader.handle(ev.LinkWanted(peer_id(1), False))
    world.run_until(lambda: (c := leader.node.views.proposal) is not None and c.value is not None, 5)
    silence(world, 0, *(i for i in others if i not in voters))
    world.run_until(lambda: leader.node.ctx.view.id > base, 5)
    silence(world, 0, *others)


def voters_live(world: World) -> None:
    """A value that a member voted for may be decided: whoever proposes next has to propose it again."""
    decided_in_secret(world, 5, (1, 2))
    world.run(world.now + 8)
    heals(world)


def voters_die(world: World) -> None:
    """The same, but those that voted die: their last words hold their votes, and the rest are a quorum."""
    decided_in_secret(world, 5, (1, 2))
    for index in (1, 2):
        world.kill(world.peers[peer_id(index)])
    world.run(world.now + 8)
    heals(world)


def a_voter_starts_again(world: World) -> None:
    """The one that voted loses its disk and starts anew: it has no vote any more, so the third alone is no quorum."""
    decided_in_secret(world, 3, (1,))
    world.kill(world.peers[peer_id(1)], seal=False)
    world.run(world.now + 0.5)
    world.join(1, 2, incarnation=2)
    world.run(world.now + 8)
    heals(world)


def a_minority_with_learners(world: World) -> None:
    """One member of three is cut off with three learners: they are many, but they have no voice."""
    started(world, 3)
    world.shard_s = 5.0
    for index in range(3, 6):
        world.join(index, 0)
    world.run_until(lambda: len(world.peers[peer_id(0)].node.ctx.view.learners) == 3, 5)
    for side in (0, 3, 4, 5):
        silence(world, side, 1, 2)
    for other in (1, 2):
        silence(world, other, 0, 3, 4, 5)
    world.run(world.now + 8)
    world.shard_s = 0.002
    heals(world)


def slow_donors(world: World) -> None:
    """A donor that was given up as too slow kept its snapshot for who had given it up, and was busy for all others:
    learners waited for one another at two such donors for ever."""
    started(world, 3)
    world.shard_s = 5.0
    for index in range(3, 6):
        world.join(index, 0)
    world.run_until(lambda: len(world.peers[peer_id(0)].node.ctx.view.learners) == 3, 5)
    for other in (1, 2):
        silence(world, 0, other)
        silence(world, other, 0)
    world.run(world.now + 8)
    world.shard_s = 0.002
    heals(world)


def a_state_takes_long(world: World) -> None:
    """A joiner fetches for seconds, and the members train on."""
    started(world, 3)
    world.compute, world.shard_s = 0.2, 1.0
    joiner = world.join(3, 0)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 30)
    world.run(world.now + 1)
    heals(world)


def a_link_swallows_both_parts(world: World) -> None:
    """Two members' contributions are lost with their link, which is back at once: nobody is suspected."""
    started(world, 2)
    one, other = (world.peers[peer_id(index)].node.steps for index in (0, 1))

    def crossing() -> bool:
        step = one.finished + 1
        mine = one.finished == other.finished and one.opened == other.opened == step
        return mine and one.contributed(step) and other.contributed(step) and not one.others_contribute(step)

    world.run_until(crossing, 30)
    world.disturb()
    world.network.reset(peer_id(0), peer_id(1))
    heals(world)


def a_first_step_is_tried_again(world: World) -> None:
    """Two come in at a time, and one is lost in the step with which they begin: what the other computed counts."""
    started(world, 2)
    for index in (2, 3):
        world.join(index, 0)
    world.run_until(lambda: len(world.members()) == 4, 30)
    view = world.peers[peer_id(0)].node.ctx.view
    gone, other = (world.peers[peer] for peer in view.member_ids()[2:])
    world.run_until(lambda: other.node.steps.contributed(view.first_step), 5)
    world.disturb()
    world.kill(gone)
    heals(world)


def a_finished_first_step_is_lost(world: World) -> None:
    """p1 alone has finished the step with which p2 began, and is lost once a view said to fetch that from it."""
    started(world, 2)
    world.network.bulk_delay = 0.06
    last = world.join(2, 0)
    world.run_until(lambda: last.node.ctx.role == Role.MEMBER, 30)
    first, holder = world.peers[peer_id(0)], world.peers[peer_id(1)]
    step = last.node.ctx.view.first_step
    world.run_until(lambda: all(p.node.steps.contributed(step) for p in (first, holder, last)), 5)
    world.run(world.now + 0.08)  # parts have arrived at their roots, sums are under way
    silence(world, 0, 2)
    silence(world, 2, 0)
    world.run_until(lambda: holder.node.steps.finished >= step, 2)
    world.network.heal()
    world.kill_worker(holder, restart=None)
    world.run_until(lambda: first.node.ctx.view.abort, 2)
    world.kill(holder)
    world.network.bulk_delay = 0.0
    heals(world)


def a_root_dies_when_half_have_its_sum(world: World) -> None:
    """p0 got the dead root's final chunks, p1 did not: p1 has to fetch that step from p0."""
    started(world, 3)
    first, second = (world.peers[peer_id(index)].node.steps for index in (0, 1))
    silence(world, 2, 1)
    world.run_until(lambda: first.finished > second.finished, 5)
    world.kill(world.peers[peer_id(2)])
    heals(world)


STORIES: tuple[Teller, ...] = (
    voters_live, voters_die, a_voter_starts_again, a_minority_with_learners, slow_donors, a_state_takes_long,
    a_link_swallows_both_parts, a_first_step_is_tried_again, a_finished_first_step_is_lost,
    a_root_dies_when_half_have_its_sum,
)  # fmt: skip
