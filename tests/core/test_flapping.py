"""Links that come and go, or work in one direction only: how often the view changes, and that steps go on."""

from __future__ import annotations

import pytest

from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, start, traces

FIRST_MINUTE, LATER = 6 * 3, 2 * 3
"""Views that one bad link may cost: losses times (left out, learner, member). docs/protocol.md, section 8."""


def newest(world: World) -> int:
    return max(p.node.ctx.view.id for p in world.peers.values() if p.node.ctx.views)


def flap(world: World, a: SimPeer, b: SimPeer, up: float, down: float, seconds: float) -> int:
    """The link goes down and up for so long; how many views that cost."""
    before, end = newest(world), world.now + seconds
    while world.now < end:
        world.cut_link(a.index, b.index)
        world.run(world.now + down)
        world.restore_link(a.index, b.index)
        world.run(world.now + up)
    return newest(world) - before


@pytest.mark.parametrize(("up", "down"), [(1.0, 0.5), (2.0, 2.0)])
def test_a_flapping_link_between_two_hosts_costs_few_views(up: float, down: float) -> None:
    """It made 120 views a minute: each time nobody heard the other one, and each time it was let in at once."""
    world, peers = start(2)
    assert flap(world, *peers, up, down, 60) <= FIRST_MINUTE
    assert flap(world, *peers, up, down, 60) <= LATER
    world.run_until(lambda: len(world.members()) == 2, 60)
    for peer in peers:
        advance(world, peer, 3)
    check(world)


def test_one_flapping_link_of_three_costs_none() -> None:
    world, peers = start(3)
    assert flap(world, peers[1], peers[2], 0.7, 1.3, 30) == 0
    advance(world, peers[0], 3)


@pytest.mark.parametrize("direction", ["to", "from"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_link_that_works_one_way_only(count: int, direction: str) -> None:
    """Three: it is ended and relayed around; only the sync plan changes. Two: the lighter half is left out, once."""
    world, peers = start(count)
    before, stood = newest(world), peers[0].node.steps.stable
    world.disturb()
    ends = (peers[0].id, peers[1].id) if direction == "to" else (peers[1].id, peers[0].id)
    world.network.block(*ends)
    for _ in range(20):
        world.disturb()
        world.run(world.now + 1)
    assert newest(world) - before == 1
    assert len(peers[0].node.ctx.view.members) == (3 if count == 3 else 1)
    assert peers[0].node.steps.stable > stood + 100
    if count == 2:
        assert peers[1].node.pause.reason or not peers[1].node.ctx.views
    world.disturb()
    world.network.unblock(*ends)
    world.run_until(lambda: [len(p.node.ctx.view.members) for p in world.members()] == [count] * count, 60)
    for peer in peers:
        advance(world, peer, 3)
    check(world)


def test_who_is_lost_once_is_let_in_at_once() -> None:
    world, peers = start(3)
    for other in (0, 1):
        world.cut_link(2, other)
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 2, 5)
    for other in (0, 1):
        world.restore_link(2, other)
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 3, 5)
    assert not traces(peers[0], "join_refused")
    check(world)
