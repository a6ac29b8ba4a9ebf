"""Links by order of an operator, links that break, and the sync plan that follows them."""

from __future__ import annotations

import pytest

from chaos.core import events as ev
from chaos.core.overlay import SETTLED_S
from chaos.core.types import pair
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, start, traces


def order(peer: SimPeer, other: SimPeer, connect: bool) -> None:
    peer.handle(ev.LinkWanted(other.info.id, connect))


def linked(a: SimPeer, b: SimPeer) -> bool:
    return b.info.id in a.node.ctx.linked


def ends(a: SimPeer, b: SimPeer) -> tuple[str, str]:
    return pair(a.info.id, b.info.id)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_link_is_cut_and_made_again(who: int) -> None:
    """Either end may ask, whatever its rank; nobody is suspected, no round is void, and training goes on."""
    world, peers = start(3)
    one, other = peers[who], peers[(who + 1) % 3]
    third = peers[(who + 2) % 3]
    order(one, other, connect=False)
    world.run_until(lambda: all(ends(one, other) in p.node.ctx.view.cut for p in peers), 1)
    world.run_until(lambda: not linked(one, other) and not linked(other, one), 1)
    advance(world, one, 20)
    assert not linked(one, other)
    assert not [1 for p in peers for _, kind, _ in p.trace if kind in ("doubt", "suspect")]
    assert not [1 for p in peers for _, kind, fields in p.trace if kind == "view" and fields["abort"]]
    shares = dict(zip(one.node.ctx.view.member_ids(), one.node.ctx.view.root_shares(), strict=True))
    assert shares[third.info.id] == sum(shares.values()), "all goes over the third, so it sums everything"

    order(other, one, connect=True)
    world.run_until(lambda: linked(one, other) and linked(other, one), 1)
    advance(world, one, 5)
    world.run(world.now + SETTLED_S + 1)
    assert one.node.ctx.view.cut == () and one.node.ctx.view.shares == ()
    check(world)


def test_a_link_that_is_wanted_back_is_dialed_before_anybody_agrees() -> None:
    """The one that relayed died: without that link the two that are left never hear each other again."""
    world, peers = start(3)
    peers[2].handle(ev.LinkWanted(peers[1].id, False))
    world.run_until(lambda: all(p.node.ctx.view.cut for p in peers), 5)
    world.kill(peers[0])
    world.run_until(lambda: all(p.node.pause.reason for p in peers[1:]), 10)
    peers[2].handle(ev.LinkWanted(peers[1].id, True))
    world.run_until(lambda: all(len(p.node.ctx.view.members) == 2 and not p.node.pause.reason for p in peers[1:]), 10)
    advance(world, peers[1], 3)
    check(world)


def test_both_ends_give_up_a_link_of_which_one_end_heard_nothing() -> None:
    """The other end hears that peer by way of the third, so it never misses it; what it sends directly is lost."""
    world, peers = start(3)
    one, other, _third = peers
    began = world.now
    world.disturb()
    world.network.block(one.info.id, other.info.id)
    world.run(began + 0.5)
    world.network.block(other.info.id, one.info.id)
    world.run_until(lambda: not linked(other, one), 2)
    world.run_until(lambda: not linked(one, other), 2)
    advance(world, one, 20)
    assert world.now - began < 3.5
    assert not [1 for p in peers for _, kind, _ in p.trace if kind == "suspect"]
    world.network.heal()
    world.run_until(lambda: linked(one, other) and linked(other, one), 10)
    advance(world, one, 5)
    check(world)


def test_what_is_so_already_needs_no_view() -> None:
    world, peers = start(3)
    view = peers[0].node.ctx.view.id
    order(peers[0], peers[1], connect=True)
    order(peers[0], peers[0], connect=False)
    peers[0].handle(ev.LinkWanted("f" * 16, False))
    advance(world, peers[0], 5)
    assert peers[0].node.ctx.view.id == view


def test_a_cut_lasts_when_an_end_was_away() -> None:
    """The operator's word outlives a restart of one end."""
    world, peers = start(4)
    order(peers[1], peers[2], connect=False)
    world.run_until(lambda: all(ends(peers[1], peers[2]) in p.node.ctx.view.cut for p in peers), 1)
    world.kill(peers[2])
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 3, 2)
    back = world.restart(peers[2], contact=0)
    world.run_until(lambda: back in world.members(), 20)
    advance(world, back, 5)
    assert ends(peers[1], back) in back.node.ctx.view.cut
    assert not linked(back, peers[1]) and not linked(peers[1], back)
    check(world)


def test_a_link_that_breaks_gets_a_plan_and_loses_it_when_it_is_back() -> None:
    """Nobody ordered it: the plan follows once the overlay has settled, between two steps."""
    world, peers = start(3)
    world.cut_link(0, 1)
    world.run_until(lambda: peers[0].node.ctx.view.shares != (), SETTLED_S + 3)
    view = peers[0].node.ctx.view
    assert view.shares[2] == sum(view.shares) and not view.abort and view.cut == ()
    assert "sync plan" in view.reason
    world.restore_link(0, 1)
    world.run_until(lambda: peers[0].node.ctx.view.shares == (), SETTLED_S + 8)
    views = len(traces(peers[0], "view"))
    world.run(world.now + 5)
    assert len(traces(peers[0], "view")) == views, "a plan that fits is left alone"
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_on_a_ring_a_broken_link_makes_nobody_suspect(seed: int) -> None:
    """The others are no witnesses for a peer to whom they never had a link."""
    world, peers = start(4, seed)
    for a, b in ((0, 2), (1, 3)):
        order(peers[a], peers[b], connect=False)
    world.run_until(lambda: all(len(p.node.ctx.view.cut) == 2 for p in peers), 3)
    advance(world, peers[0], 5)
    world.cut_link(0, 1)
    advance(world, peers[0], 20)
    assert [len(p.node.ctx.view.members) for p in peers] == [4] * 4
    assert not [1 for p in peers for _, kind, _ in p.trace if kind == "suspect"]
    world.kill(peers[2])
    world.run_until(lambda: len(peers[0].node.ctx.view.members) < 4, 5)
    check(world)


@pytest.mark.parametrize("kind", ["chain", "ring", "star"])
def test_a_run_on_an_overlay_that_is_not_complete(kind: str) -> None:
    """Joins, a death and a leave where most pairs have no link."""
    links = {
        "chain": {(0, 1), (1, 2), (2, 3), (3, 4)},
        "ring": {(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)},
        "star": {(0, 1), (0, 2), (0, 3), (0, 4)},
    }[kind]
    world = World(seed=5)
    for a in range(5):
        for b in range(a + 1, 5):
            if (a, b) not in links:
                world.cut_link(a, b)
    peers = [world.found(0)]
    world.run_until(lambda: peers[0].node.steps.finished >= 3)
    for index in range(1, 5):
        contact = next(a for a in range(index) if (a, index) in links)
        peers.append(world.join(index, contact))
        world.run_until(lambda: peers[-1] in world.members(), 20)
    advance(world, peers[0], 10)
    assert [len(p.node.ctx.view.members) for p in peers] == [5] * 5
    world.kill(peers[4])
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 4, 10)
    peers[3].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 3, 10)
    advance(world, peers[0], 10)
    check(world)
