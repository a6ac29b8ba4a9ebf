"""One small schedule for each way in which the protocol once went wrong, or would if a rule were missing."""

from __future__ import annotations

import pytest

from chaos.core import events as ev
from chaos.core.context import Role
from chaos.core.learner import Phase
from chaos.core.messages import Ack, Decide, FinishedStep, Ready, ResultMissing
from chaos.sim.peer import SimPeer
from chaos.sim.symbols import peer_id
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, start, stops, traces

# --- promises, quorums, views -----------------------------------------------------------------------------------


def test_a_founder_founds_only_once() -> None:
    """Left behind while alone, and given a new worker, it used to found the run a second time."""
    world, (founder, *rest) = start(3)
    world.cut_link(0, 1)
    world.cut_link(0, 2)
    world.run(world.now + 5)
    world.restore_link(0, 1)
    world.run_until(lambda: founder.node.ctx.role == Role.JOINER, 5)
    world.kill_worker(founder, restart=0.01)
    world.run_until(lambda: len(world.members()) == 3, 10)
    assert len(traces(founder, "view")) > 2
    assert [v["reason"] for v in traces(founder, "view")].count("founded") == 1
    advance(world, rest[0], 3)
    check(world)


@pytest.mark.parametrize("gap", [0.0005, 0.001, 0.0015, 0.002, 0.003])
def test_a_promise_that_nobody_answers_does_not_freeze_the_run(gap: float) -> None:
    """The proposer loses its links in mid-ballot, then trusts the suspect again: nobody saw a reason to go on."""
    world, peers = start(3)
    peers[0].node.views.suspect(peers[2].info.id, "a test says so")
    peers[0].handle(ev.Tick())
    world.run(world.now + gap)
    for other in (1, 2):
        world.cut_link(0, other)
    peers[0].node.views.trust(peers[2].info.id)
    for other in (1, 2):
        world.restore_link(0, other)
    for peer in peers:
        advance(world, peer, 3, limit=6)
    check(world)


def test_a_learner_that_missed_an_aborting_view_is_not_promoted() -> None:
    """It may hold the result of a round that this view made void. docs/spec: ours-but-no-catch-up."""
    world, (founder, other) = start(2)
    learner = world.join(2, 0)
    world.run_until(lambda: learner.node.ctx.role == Role.LEARNER, 5)
    world.compute = 20.0
    world.run(world.now + 0.1)
    learner.freeze()
    world.kill(other)
    world.run_until(lambda: founder.node.ctx.view.abort, 5)
    aborting, steps = founder.node.ctx.view, founder.node.steps
    founder.handle(ev.Received(learner.info.id, Ack(steps.finished, steps.head)))
    founder.handle(ev.Received(learner.info.id, Ready(learner.info.id, 8)))
    world.run(world.now + 0.3)
    assert founder.node.ctx.view == aborting
    learner.wake()
    world.compute = 0.02
    world.run_until(lambda: learner.node.ctx.role == Role.MEMBER, 20)
    check(world)


def test_who_was_promoted_a_step_behind_does_not_go_on_alone() -> None:
    """Steps that were stable before it became a member died with the others: it says so instead of redoing them."""
    world = World(1)
    world.network.bulk_delay = 0.1
    founder = world.found(0)
    joiner = world.join(1, 0)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 20)
    assert joiner.node.steps.finished < joiner.node.ctx.view.first_step - 1
    assert founder.node.steps.stable > joiner.node.steps.finished
    world.cut_link(0, 1)
    world.kill(founder)
    world.run_until(lambda: joiner.stopped is not None, 10)
    assert stops(world)["p1"] == 5
    check(world)


@pytest.mark.parametrize("seal", [True, False])
def test_a_restarted_agent_is_a_new_incarnation(seal: bool) -> None:
    """It asks to join before its former self is known dead, and brings that one's last words itself."""
    world, peers = start(2)
    world.kill(peers[1], seal=seal)
    again = world.restart(peers[1], 0)
    world.run_until(lambda: again.node.ctx.role == Role.MEMBER, 10)
    assert [m.incarnation for m in peers[0].node.ctx.view.members] == [1, 2]
    advance(world, again, 3)
    check(world)


@pytest.mark.parametrize("seed", range(6))
def test_a_new_incarnation_is_not_suspected_for_the_old_one(seed: int) -> None:
    """It came back while a step of the view with its old self was still fetched: admitted, taken for lost, dropped,
    80 times a second."""
    world, peers = start(3, seed)
    world.network.bulk_delay = 0.3
    world.run_until(lambda: len({p.node.steps.finished for p in peers}) > 1, 5)
    world.kill(peers[2])
    world.run_until(lambda: all(p.node.ctx.view.member(peers[2].id) is None for p in peers[:2]), 2)
    before = peers[0].node.ctx.view.id
    again = world.restart(peers[2], 0)
    world.run_until(lambda: again.node.ctx.role == Role.MEMBER, 20)
    assert peers[0].node.ctx.view.id <= before + 4
    check(world)


def test_a_member_without_worker_waits_for_one_that_is_silent() -> None:
    """It has the quorum alone, by its weight, and took the run to be lost, while the other was only stopped."""
    world, (first, second) = start(2)
    second.freeze()
    world.kill_worker(first, restart=0.5)
    world.run_until(lambda: bool(first.node.pause.reason), 5)
    second.wake()
    world.run_until(lambda: len(world.members()) == 2, 20)
    assert not stops(world)
    check(world)


def test_false_suspicion_is_taken_back() -> None:
    """A link that breaks for long enough to be suspected, and not for long enough to decide anything."""
    world, peers = start(2)
    world.cut_link(0, 1)
    world.run_until(lambda: bool(peers[1].node.views.suspects), 5)
    before = peers[1].node.ctx.view.id
    world.restore_link(0, 1)
    for peer in peers:
        advance(world, peer, 3)
    world.run_until(lambda: len(world.members()) == 2, 10)
    assert peers[1].node.ctx.view.id >= before
    check(world)


def test_a_cut_link_among_three_is_relayed_around() -> None:
    """As long as a third one hears both, nobody is suspected and no view changes."""
    world, peers = start(3)
    view = peers[0].node.ctx.view.id
    world.cut_link(0, 1)
    for peer in peers:
        advance(world, peer, 20)
    assert {p.node.ctx.view.id for p in peers} == {view}


@pytest.mark.parametrize("seed", range(12))
def test_what_a_flapping_link_swallows_is_said_again(seed: int) -> None:
    """Contributions and acknowledgements under way are lost with a link; no view change repairs that."""
    world, peers = start(2, seed)
    view = peers[0].node.ctx.view.id
    for _ in range(10):
        world.run(world.now + world.random.uniform(0.0, 0.1))
        world.cut_link(0, 1)
        world.restore_link(0, 1)
    for peer in peers:
        advance(world, peer, 5, limit=3)
    assert peers[0].node.ctx.view.id == view
    check(world)


def test_a_flap_while_one_leaves() -> None:
    """The wish to leave is lost with the link."""
    world, peers = start(2)
    world.cut_link(0, 1)
    peers[1].handle(ev.LeaveRequested("asked to"))
    world.restore_link(0, 1)
    world.run_until(lambda: peers[1].stopped is not None, 5)
    assert stops(world) == {"p1": 0}
    advance(world, peers[0], 3)


# --- joining ------------------------------------------------------------------------------------------------------


def test_a_joiner_far_away_gets_into_a_run_of_fast_steps() -> None:
    """Steps are shorter than the way to the joiner: it always lags by several, and is promoted all the same."""
    world = World(2, latency=0.1)
    world.compute = 0.01
    founder, joiner = world.found(0), world.join(1, 0)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 20)
    advance(world, founder, 3)
    check(world)


def test_a_joiner_whose_contact_dies_goes_to_the_others() -> None:
    world, peers = start(3)
    joiner = world.join(3, 2)
    world.run_until(lambda: joiner.node.ctx.role == Role.LEARNER, 5)
    world.kill(peers[2])
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 10)
    check(world)


def test_several_joiners_at_once() -> None:
    world, peers = start(2)
    joiners = [world.join(index, index % 2) for index in (2, 3, 4)]
    world.run_until(lambda: len(world.members()) == 5, 20)
    for peer in [*peers, *joiners]:
        advance(world, peer, 2)
    check(world)


def test_a_restarted_catch_up_frees_its_donors() -> None:
    """A donor that still held the snapshot of the first attempt used to be busy for ever after."""
    world, _ = start(2)
    joiner = world.join(2, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.OFFER, 5)
    joiner.node.learner.restart("a test says so")
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 5)
    check(world)


def test_a_load_that_was_overtaken_does_not_count() -> None:
    """The worker was still loading the first snapshot when a second catch-up began."""
    world, _ = start(2)
    joiner = world.join(2, 0)
    world.run_until(lambda: bool((w := joiner.node.worker.worker) and w.loading), 5)
    joiner.node.learner.restart("a test says so")
    world.run_until(lambda: not joiner.node.worker.worker.loading, 5)
    assert joiner.node.worker.worker.applied is None
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 5)
    check(world)


def test_a_worker_that_dies_at_its_promotion() -> None:
    """It becomes a member without state, says so at once, and catches up again."""
    world, peers = start(2)
    joiner = world.join(2, 0)
    world.run_until(lambda: peers[0].node.views.proposal is not None and bool(joiner.node.learner.phase == "ready"), 10)
    world.kill_worker(joiner)
    world.run_until(lambda: len(world.members()) == 3 and joiner.worker.alive and joiner.worker.applied > 0, 10)
    for peer in (*peers, joiner):
        advance(world, peer, 3)
    check(world)


def test_a_lost_decision_is_told_again() -> None:
    """One member hears nothing of the new view but the heartbeats of those that have it."""
    world, peers = start(3)
    peers[2].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: peers[0].node.views.proposal is not None, 2)
    world.run_until(lambda: peers[0].node.ctx.view.member(peers[2].info.id) is None, 2)
    for other in (0, 2):
        world.cut_link(1, other)
        world.restore_link(1, other)
    world.run_until(lambda: peers[1].node.ctx.view.id == peers[0].node.ctx.view.id, 2)
    advance(world, peers[1], 3)
    world.run_until(lambda: peers[2].stopped is not None, 12)
    check(world)


def test_a_learner_that_heard_no_heartbeat_yet_does_not_aim_far_ahead() -> None:
    """It took the run to stand still, compared a step that was past, and doubled the distance with every attempt."""
    world = World(0, latency=0.02)
    world.found(0)
    world.run(1.0)
    joiner = world.join(1, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.LOAD, 5)
    began = world.now
    while joiner.node.learner.phase != Phase.READY and world.now < began + 2:
        if world.now < began + 0.5:
            joiner.node.liveness.progress.clear()
        world.run(world.now + 0.005)
    assert joiner.node.learner.phase == Phase.READY
    world.run_until(lambda: len(world.members()) == 2, 2)
    check(world)


def test_a_learner_that_heard_no_heartbeat_yet_of_a_run_that_waits_for_it() -> None:
    """It waited for the snapshot of a step that could not come, and kept its donor from others."""
    world = World(0)
    world.min_peers = 2
    world.found(0)
    world.run(1.0)
    joiner = world.join(1, 0)
    while joiner.node.learner.phase != Phase.VERIFY:
        joiner.node.liveness.progress.clear()
        world.run(world.now + 0.001)
    world.run_until(lambda: len(world.members()) == 2, 2)
    check(world)


def promote_a_dead_learner(world: World, dead: SimPeer, seal: bool) -> SimPeer:
    """A learner dies, which the founder alone does not notice: it promotes it, with a joiner. Gives the joiner."""
    founder = world.peers[peer_id(0)]
    world.kill_worker(dead, restart=None)
    joiner = world.join(9, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.VERIFY, 10)
    founder.node.liveness._doubt = lambda *_: None  # type: ignore[method-assign]
    founder.node.views.add_gone = lambda *_: False  # type: ignore[method-assign]
    world.kill(dead, seal=seal)
    world.run_until(lambda: joiner.node.learner.phase == Phase.READY, 10)
    for peer in world.peers.values():
        if peer is not founder:
            peer.node.views.suspect(dead.id, "a test says so")
    assert dead.id in joiner.node.ctx.wishes.lost_learners
    founder.node.ctx.wishes.ready.update({dead.id: 1, joiner.id: 1})
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 1)
    assert joiner.node.ctx.view.member(dead.id) is not None
    return joiner


def test_a_learner_that_is_dead_when_it_becomes_a_member_is_proven_gone() -> None:
    """Only members wrote last words: with the founder dead too, its silent vote blocked the run for ever."""
    world, (founder,) = start(1)
    dead = world.join(1, 0)
    world.run_until(lambda: dead.node.ctx.role == Role.LEARNER, 5)
    joiner = promote_a_dead_learner(world, dead, seal=True)
    world.run_until(lambda: joiner.node.steps.report().grounded, 0.2)
    world.kill(founder)
    world.run_until(lambda: joiner.node.ctx.view.member_ids() == (joiner.id,), 5)
    advance(world, joiner, 3)
    check(world)


def test_who_suspected_a_learner_suspects_the_member() -> None:
    """A host that was lost as a learner: those who knew waited for the new member's promise for ever."""
    world, (founder, other) = start(2)
    dead = world.join(2, 0)
    world.run_until(lambda: dead.node.ctx.role == Role.LEARNER, 5)
    joiner = promote_a_dead_learner(world, dead, seal=False)
    world.kill(founder)
    world.run_until(lambda: set(joiner.node.ctx.view.member_ids()) == {other.id, joiner.id}, 5)
    advance(world, other, 3)
    check(world)


def test_a_learner_frees_what_its_worker_has_read() -> None:
    """Its worker waits at one boundary until it is promoted: the memory for results was full before that."""
    world, (founder,) = start(1)
    joiner = world.join(1, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.VERIFY, 5)
    joiner.node.learner._compare = lambda: None  # type: ignore[method-assign]
    before = founder.node.steps.finished
    world.run_until(lambda: founder.node.steps.finished > before + 80, 10)
    assert joiner.node.steps.finished > before + 70
    del joiner.node.learner._compare
    joiner.node.learner.restart("a test says so")
    world.run_until(lambda: len(world.members()) == 2, 5)
    check(world)


def test_a_learner_that_needs_long_does_not_fill_the_members_memory() -> None:
    """Of large results only a few are kept; members kept them all for a learner, and had no room for the next step."""
    world = World(1)
    world.result_slots = 4
    founder = world.found(0)
    world.run_until(lambda: founder.node.steps.finished >= 3)
    world.shard_s = 1.0
    joiner = world.join(1, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.FETCH, 5)
    before = founder.node.steps.finished
    world.run(world.now + 4)
    assert joiner.node.learner.phase == Phase.FETCH and founder.node.steps.finished > before + 50
    world.shard_s = 0.002
    world.run_until(lambda: len(world.members()) == 2, 30)
    check(world)


def test_who_lags_is_not_promoted_with_another() -> None:
    """A view made members of all that had said to be ready, also of one whose link had swallowed the steps since."""
    world, (founder,) = start(1)
    slow = world.join(1, 0)
    world.run_until(lambda: slow.node.learner.phase == Phase.VERIFY, 5)
    steps = founder.node.steps
    keeps_up = steps.keeps_up
    steps.keeps_up = lambda peer: peer != slow.id and keeps_up(peer)  # type: ignore[method-assign]
    quick = world.join(2, 0)
    world.run_until(lambda: quick.node.ctx.role == Role.MEMBER, 5)
    assert slow.id in founder.node.ctx.wishes.ready and founder.node.ctx.view.learner(slow.id) is not None
    del steps.keeps_up
    world.run_until(lambda: len(world.members()) == 3, 5)
    check(world)


# --- state and samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_a_flipped_bit_in_a_result_is_found_and_healed(count: int) -> None:
    """One peer's result of one step differs: its lineage does, it is outvoted (of two, by the lower rank)."""
    world, peers = start(count)
    hurt = peers[-1]
    step = peers[0].node.steps.finished + 2
    world.corrupt.add((hurt.index, step))
    world.run_until(lambda: hurt.node.ctx.role == Role.LEARNER, 5)
    world.run_until(lambda: len(world.members()) == count, 10)
    for peer in peers:
        advance(world, peer, 3)
    assert traces(peers[0], "diverged")
    check(world)


@pytest.mark.parametrize("ahead", [1, 6])
@pytest.mark.parametrize("seed", range(3))
def test_a_bit_that_flips_at_a_learner_that_was_compared_already(seed: int, ahead: int) -> None:
    """It became a member that had diverged, could finish nothing, and asked for a step that nobody kept."""
    world = World(seed, latency=0.02)
    world.network.bulk_delay = 0.02
    world.found(0)
    joiner = world.join(1, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.VERIFY, 5)
    world.corrupt.add((joiner.index, joiner.node.learner._target + ahead))
    world.run_until(lambda: len(world.members()) == 2, 5)
    advance(world, joiner, 10)
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_a_learner_is_found_to_differ_while_its_worker_is_dead(seed: int) -> None:
    """Its next worker got the old snapshot, which led nowhere: what followed was forgotten with the difference."""
    world = World(seed, latency=0.02)
    world.network.bulk_delay = 0.02
    world.found(0)
    joiner = world.join(1, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.VERIFY, 5)
    world.corrupt.add((joiner.index, joiner.node.steps.finished + 3))
    world.kill_worker(joiner, restart=0.5)
    world.run_until(lambda: bool(traces(joiner, "diverged")), 5)
    assert joiner.node.worker.worker is None
    world.run_until(lambda: len(world.members()) == 2, 10)
    advance(world, joiner, 3)
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_a_restarted_worker_does_not_write_over_what_is_still_to_be_sent(seed: int) -> None:
    """The dead worker's contribution counts in the retry, and its gradients were those of its successor by then."""
    world, (first, second) = start(2, seed)
    world.network.bulk_delay = 0.1
    world.run_until(lambda: second.node.steps.contributed_bytes(second.node.steps.finished + 1), 5)
    first.freeze()
    world.kill_worker(second, restart=0.01)
    world.run(world.now + 0.05)
    there = second.node.worker.worker
    assert there is not None and not there.welcomed
    first.wake()
    world.run_until(lambda: len(world.members()) == 2 and second.worker.applied > 0, 10)
    advance(world, second, 3)
    check(world)


@pytest.mark.parametrize("seed", range(6))
def test_small_epochs_with_dying_workers(seed: int) -> None:
    """Every sample counts exactly once in each finished epoch, whoever held it when its worker died."""
    world = World(seed)
    world.samples = 50
    peers = [world.found(0), world.join(1, 0), world.join(2, 0)]
    world.run_until(lambda: len(world.members()) == 3, 10)
    for victim in (1, 0, 2, 1):
        world.run(world.now + world.random.uniform(0.1, 0.4))
        world.kill_worker(peers[victim], restart=0.05)
        world.run_until(lambda: len(world.members()) == 3, 10)
    epoch = world.epoch()
    world.run_until(lambda: world.epoch() >= epoch + 3, 60)
    check(world)


def ahead_with_slow_frames(seed: int) -> World:
    """Two members, and the second has just finished a step whose frames are still under way to the first."""
    world, peers = start(2, seed)
    world.network.bulk_delay = 0.06
    world.run_until(lambda: peers[1].node.steps.finished > peers[0].node.steps.finished, 5)
    return world


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_step_whose_only_holder_dies_is_redone(seed: int) -> None:
    """The view said to fetch it from a peer without a worker, which died too: the survivor used to wait for ever."""
    world = ahead_with_slow_frames(seed)
    first, second = world.members()
    world.kill_worker(second)
    world.run_until(lambda: second.node.ctx.role == Role.LEARNER, 1)
    world.kill(second)
    advance(world, first, 3)
    check(world)


def test_a_member_that_is_refused_a_step_by_all_takes_a_snapshot() -> None:
    """It asked for a step that nobody kept, and had view after view made without anybody being lost."""
    world, (first, second) = start(2)
    steps, results, before = first.node.steps, first.node.results, first.node.ctx.view.id
    world.run_until(lambda: steps.running, 1)
    results._sources = {second.id}
    results.fetch(steps.opened, second.id)
    first.handle(ev.Received(second.id, ResultMissing(steps.opened)))
    world.run_until(lambda: first.node.ctx.role == Role.LEARNER, 2)
    world.run_until(lambda: len(world.members()) == 2, 5)
    assert first.node.ctx.view.id <= before + 3
    check(world)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_planned_view_begins_no_earlier_than_the_one_before(seed: int) -> None:
    """A joiner is admitted while the only member still fetches a step: that step must not run a second time."""
    world = ahead_with_slow_frames(seed)
    first, second = world.members()
    world.kill_worker(second)
    joiner = world.join(2, 0)
    world.run_until(lambda: joiner.node.ctx.role == Role.LEARNER, 1)
    world.run_until(lambda: len(world.members()) == 3, 10)
    advance(world, first, 3)
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_a_contribution_whose_bytes_are_overwritten_is_forgotten(seed: int) -> None:
    """Its worker died before the step was opened; promoted again before it was, the peer used to announce it anew,
    while the next worker wrote where those bytes had been."""
    world, peers = start(3, seed)
    world.by_hand = True
    joiner = world.join(3, 0)
    ready = peers[2].node.steps
    world.run_until(lambda: bool(ready._pauses) and ready.contributed_bytes(ready.finished + 1), 5)
    before = ready.finished
    world.kill_worker(peers[2], restart=0.01)
    world.run_until(lambda: all(peers[2].id in p.node.steps._pauses for p in peers[:2]), 5)
    world.kill(joiner)
    world.run_until(lambda: peers[2].node.ctx.role == Role.MEMBER, 20)
    advance(world, peers[2], 3)
    assert before > 0
    check(world)


def test_a_late_word_of_an_older_view_brings_nobody_back() -> None:
    """A joiner that the run had gone on without took up the view in which it had been a learner, and then the next."""
    world, _ = start(2)
    world.compute = 20.0
    learner = world.join(2, 0)
    world.run_until(lambda: learner.node.ctx.role == Role.LEARNER, 5)
    old = learner.node.ctx.view
    for other in (0, 1):
        world.cut_link(other, 2)
    world.run(world.now + 5)
    for other in (0, 1):
        world.restore_link(other, 2)
    world.run_until(lambda: learner.node.ctx.role == Role.JOINER, 5)
    learner.handle(ev.Received(peer_id(0), Decide(old)))
    assert learner.node.ctx.role == Role.JOINER
    world.compute = 0.02
    world.run_until(lambda: learner.node.ctx.role == Role.MEMBER, 60)
    check(world)


@pytest.mark.parametrize("seed", [0, 5, 6])
def test_two_that_differ_are_judged_again_when_the_third_is_gone(seed: int) -> None:
    """It might have agreed with either, so neither was outvoted; it died without saying, and both waited for ever.

    Of seeds in which its word does not get through first."""
    world, (first, second, third) = start(3, seed)
    flipped = second.node.steps.finished + 3
    world.corrupt.add((1, flipped))
    world.run_until(lambda: any(p.node.steps.finished >= flipped for p in (first, second, third)), 3)
    for other in (0, 1):
        world.network.block(third.id, peer_id(other))
    world.run_until(lambda: all(len(traces(p, "diverged")) == 2 for p in (first, second)), 3)
    world.kill(third)  # that step and the next were judged while it might still have voted
    world.run_until(lambda: not first.node.ctx.view.knows(third.id), 5)
    world.run_until(lambda: len(world.members()) == 2 and bool(traces(second, "catch_up")), 20)
    advance(world, first, 3)
    check(world)


def test_who_fetches_a_result_and_gets_other_bytes_heals() -> None:
    """It charged the first of the round's members with them, who was gone, and waited for others to agree."""
    world, (_, second, third) = start(3)
    steps = third.node.steps
    world.run_until(lambda: steps.running and steps.contributed(steps.opened), 1)
    current = steps.rounds[steps.opened]
    told = FinishedStep(current.view.id, steps.opened, (), b"what p1 finished", ())
    current.fetching, current.fetched, current.mark = second.id, told, current.view.id
    world.run_until(lambda: third.node.ctx.role == Role.LEARNER, 2)
    world.run_until(lambda: len(world.members()) == 3, 10)
    advance(world, third, 3)
    check(world)
