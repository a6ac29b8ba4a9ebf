"""Joins that once waited for ever, each told as the shortest schedule that leads there."""

from __future__ import annotations

from msgspec.structs import replace

from chaos.core import events as ev
from chaos.core.learner import Phase
from chaos.sim.peer import SimPeer
from chaos.sim.symbols import peer_id
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, start


def test_a_joiner_that_was_linked_before_its_contact_knew_the_run_is_told_later() -> None:
    """The handshake of two joiners names no run; theirs was the last chance to hear of it."""
    world, (founder,) = start(1)
    world.network.cut(peer_id(0), peer_id(1))
    between = world.join(1, 0)
    last = world.join(2, 1)
    world.run_until(lambda: peer_id(1) in last.node.ctx.linked, 5)
    assert not between.node.ctx.run and not last.node.ctx.run
    world.network.restore(peer_id(0), peer_id(1))
    world.run_until(lambda: len(world.members()) == 3, 30)
    advance(world, founder, 3)
    check(world)


def test_who_comes_back_is_not_cut_off_by_an_order_of_long_ago() -> None:
    """Let in over the link that had been cut, it lost it at once, was lost itself, let in again, and so on."""
    world, (first, between, last) = start(3)
    first.handle(ev.LinkWanted(last.id, False))
    world.run_until(lambda: bool(last.node.ctx.view.cut), 5)
    for peer in (last, between):
        world.kill(peer)
        world.run_until(lambda gone=peer: first.node.ctx.view.member(gone.id) is None, 10)
    assert first.node.ctx.view.cut
    back = world.restart(last, contact=0)
    world.run_until(lambda: back in world.members(), 20)
    assert not back.node.ctx.view.cut
    advance(world, back, 3)
    check(world)


def test_an_order_that_split_the_run_is_undone_from_the_side_that_was_left_out() -> None:
    """The others don't know this peer any more; it still knows them, and dials the link at once."""
    world, (first, between, last) = start(3)
    first.handle(ev.LinkWanted(last.id, False))
    world.run_until(lambda: bool(last.node.ctx.view.cut), 5)
    world.kill_worker(between, restart=None)
    world.run_until(lambda: last.node.ctx.view.member(between.id) is None, 5)
    world.kill(between)  # the only way between the two members
    world.run_until(lambda: any(len(p.node.ctx.view.members) == 1 for p in (first, last)), 10)
    other, left_out = sorted((first, last), key=lambda p: len(p.node.ctx.view.members))
    world.run(world.now + 3)
    assert other.node.ctx.view.member(left_out.id) is None
    left_out.handle(ev.LinkWanted(other.id, True))
    world.run_until(lambda: other.node.ctx.view.member(left_out.id) is not None, 15)
    advance(world, other, 3)
    check(world)


def waits_for_an_offer(world: World) -> SimPeer:
    """A learner that has ordered a snapshot of a step that will not end soon."""
    world.compute = 20.0
    world.run(world.now + 0.1)  # the step that was under way ends as soon as ever
    learner = world.join(2, 0)
    world.run_until(lambda: learner.node.learner.phase == Phase.OFFER, 30)
    world.run(world.now + 0.1)
    return learner


def test_a_donor_that_is_no_member_any_more_is_not_waited_for() -> None:
    """The learner had missed the view in between, which would have made it begin anew."""
    world, (first, second) = start(2)
    learner = waits_for_an_offer(world)
    learner.node.learner._ready.pop(first.id)
    base = learner.node.ctx.view
    learners = (second.info, learner.info)
    learner.node.views.install(replace(base, id=base.id + 2, members=(first.info,), learners=learners))
    assert second.id not in learner.node.learner._ready
    assert learner.node.learner.phase == Phase.PREPARE


def test_a_donor_hears_that_it_is_not_used_although_a_link_swallowed_the_release() -> None:
    """It served nobody else meanwhile: it has room for one snapshot, and this one was in use."""
    world, (first, _) = start(2)
    learner = waits_for_an_offer(world)
    assert first.node.donor._snapshot is not None
    learner.node.learner._ready.pop(first.id)
    world.network.reset(first.id, learner.id)
    world.run_until(lambda: first.node.donor._snapshot is None, 3)
