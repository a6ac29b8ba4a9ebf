"""Who was cut off goes on from what its worker holds, where the results since are fewer bytes than a snapshot."""

from __future__ import annotations

import pytest

from chaos.core.context import Role
from chaos.core.events import AnyEvent, ShardsHeld
from chaos.core.learner import Phase
from chaos.sim.peer import SimPeer
from chaos.sim.symbols import LAYOUT
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, start, traces

RESULTS = 3
"""A state is as large as so many results: parameters and two moments, as of Adam."""


def slow_run(compute: float = 1.0, results: int = RESULTS) -> tuple[World, list[SimPeer]]:
    """Three members whose steps take about `compute` seconds."""
    world, peers = start(3)
    slow_down(world, peers, compute, results)
    return world, peers


def slow_down(world: World, peers: list[SimPeer], compute: float, results: int) -> None:
    """Their steps take so long from now on, and their state is as large as so many results."""
    world.state_bytes = results * LAYOUT.nbytes
    for peer in peers:
        peer.node.donor.on_prepared(world.state_bytes)
    world.compute = compute
    advance(world, peers[0], 2, 20)
    forget(world)


def forget(world: World) -> None:
    """What happened so far is not of interest."""
    world.shards_sent = 0
    for peer in world.peers.values():
        peer.trace.clear()


def part(world: World, one: SimPeer, seconds: float) -> None:
    """`one` is cut off from all others for so long."""
    others = [p.index for p in world.peers.values() if p is not one]
    for other in others:
        world.cut_link(one.index, other)
    world.run(world.now + seconds)
    for other in others:
        world.restore_link(one.index, other)


def comes_back(world: World, one: SimPeer, limit: float = 60.0) -> dict[str, object]:
    """Runs until it is a member again; the trace's line on where it started from."""
    world.run_until(lambda: one.node.ctx.role != Role.MEMBER, limit)
    world.run_until(lambda: one in world.members(), limit)
    advance(world, one, 2, limit)
    check(world)
    return traces(one, "catch_up_from")[-1]


@pytest.mark.parametrize("who", [0, 2])
@pytest.mark.parametrize("seconds", [1.0, 2.0, 3.0])
def test_after_a_short_cut_nothing_of_the_state_travels(who: int, seconds: float) -> None:
    world, peers = slow_run()
    part(world, peers[who], seconds)
    line = comes_back(world, peers[who])
    assert line["source"] == "own state"
    assert world.shards_sent == 0 and not traces(peers[who], "fetched_state")


def test_after_a_long_one_a_snapshot_is_cheaper() -> None:
    """Members do not even keep more results than a snapshot has bytes."""
    world, peers = slow_run()
    part(world, peers[2], 12.0)
    assert all(len(p.node.steps.history) <= RESULTS + 2 for p in peers[:2])
    line = comes_back(world, peers[2])
    assert line["source"] == "snapshot" and "no member keeps" in str(line["reason"])
    assert traces(peers[2], "fetched_state")


def test_how_many_results_are_kept_follows_from_the_sizes() -> None:
    """The same cut, where a snapshot is as large as twenty results."""
    world, peers = slow_run(results=20)
    part(world, peers[2], 12.0)
    line = comes_back(world, peers[2])
    assert line["source"] == "own state" and world.shards_sent == 0
    kinds = [(kind, fields.get("phase")) for _, kind, fields in peers[2].trace]
    before = kinds[: kinds.index(("learner", "verify"))]
    assert before.count(("fetched", None)) > RESULTS, "it is compared once all that it missed is here"


def test_a_small_ring_of_results_has_room_for_the_run_first() -> None:
    """Of four slots two are for who is behind. The disk is for learners: to fill it makes steps wait for slots."""
    world = World(0)
    world.result_slots, world.disk_slots = 4, 10
    peers = [world.found(0)]
    for index in (1, 2):
        peers.append(world.join(index, 0))
        world.run_until(lambda n=index: len(world.members()) == n + 1, 10)
    slow_down(world, peers, 1.0, 20)
    part(world, peers[2], 5.0)
    assert all(len(p.reducer.results) <= 3 and not p.reducer._on_disk for p in peers[:2])
    assert comes_back(world, peers[2])["source"] == "snapshot"


def test_void_attempts_take_the_room_of_results_that_are_kept() -> None:
    """Their slots are freed with their step: with both a small ring would be full, and the run would stand still."""
    world, peers = slow_run(results=20)
    part(world, peers[2], 1.0)
    node = peers[0].node
    left = node.returning._left[peers[2].id]
    node.ctx.result_slots = 6
    assert node.ctx.kept_results == 3 and sum(view.abort for view in left.views) == 1
    assert node.returning.floor(left.step + 2) == left.step
    left.views.append(left.views[-1])
    assert node.returning.floor(left.step + 2) == left.step + 2


def test_what_the_worker_may_still_read_is_not_released() -> None:
    """It computes on through the cut: nobody knows whether it has read the last result yet."""
    world, peers = slow_run(compute=6.0)
    alone = peers[2].node
    world.run(world.now + 0.5)
    released: list[tuple[int, int]] = []
    release = peers[2].reducer.release

    def note(step: int) -> None:
        assert alone.worker.worker is not None
        released.append((step, alone.worker.worker.holds))
        release(step)

    peers[2].reducer.release = note  # type: ignore[method-assign]
    part(world, peers[2], 1.0)
    assert comes_back(world, peers[2], 120)["source"] == "own state"
    assert released and all(step <= holds for step, holds in released)


def test_what_was_loaded_over_is_held_no_more() -> None:
    world, peers = slow_run()
    part(world, peers[2], 12.0)
    comes_back(world, peers[2])
    assert peers[2].node.worker.worker is not None and peers[2].node.worker.worker.former is None


def test_a_step_that_is_not_stable_is_none_to_go_on_from() -> None:
    """It could still be rolled back, if those that hold it are lost."""
    world, peers = slow_run()
    part(world, peers[2], 1.0)
    donor, own = peers[0].node, peers[2].node.steps
    step, head = own.finished, own.head
    assert donor.returning.views_since(peers[2].id, step, head)
    donor.steps.stable = step - 1
    assert not donor.returning.views_since(peers[2].id, step, head)


def test_they_are_kept_for_nobody_who_is_a_member_again() -> None:
    world, peers = slow_run(results=20)
    part(world, peers[2], 6.0)
    comes_back(world, peers[2])
    world.run(world.now + 4.0)
    assert all(len(p.node.steps.history) <= 3 for p in peers)


def test_a_dead_peer_s_successor_starts_from_a_snapshot() -> None:
    """Its agent was killed while it was cut off: the new one's worker holds nothing, and nothing is kept for it."""
    world, peers = slow_run(results=20)
    part(world, peers[2], 3.0)
    world.kill(peers[2])
    again = world.restart(peers[2], 0)
    world.run_until(lambda: again in world.members(), 60)
    check(world)
    assert not traces(again, "catch_up_from") and traces(again, "fetched_state")


def test_a_state_that_was_rolled_back_is_not_used() -> None:
    """The one that is cut off has finished a step whose result the others never got: they do that step again."""
    world, peers = slow_run(results=20)
    alone, others = peers[2], peers[:2]
    step = alone.node.steps.finished + 1
    receive = {p.id: p.reducer.receive for p in others}

    def deaf(peer: SimPeer) -> None:
        def take(kind: str, src: str, view: int, at: int, parts: object) -> None:
            if not (kind == "final" and src != peer.id and at == step and view == alone.node.ctx.view.id):
                receive[peer.id](kind, src, view, at, parts)  # type: ignore[arg-type]

        peer.reducer.receive = take  # type: ignore[method-assign]

    for other in others:
        deaf(other)
    world.run_until(lambda: alone.node.steps.finished == step, 10)
    assert all(p.node.steps.finished == step - 1 for p in others)
    head = alone.node.steps.head
    part(world, alone, 4.0)
    line = comes_back(world, alone)
    assert others[0].node.steps.finished > step and head not in world.promises.stable.values()
    assert line["source"] == "snapshot" and traces(alone, "fetched_state")


def test_a_state_that_differs_is_found_out_before_promotion() -> None:
    """Its bytes are not what its lineage says: the shards that differ are fetched after the comparison."""
    world, peers = slow_run()
    world.state_bytes = 192
    part(world, peers[2], 2.0)
    peers[2].worker.chain = b"a bit flipped in its memory"
    world.promises.applied = lambda *_: None  # type: ignore[method-assign]
    line = comes_back(world, peers[2])
    assert line["source"] == "own state"
    assert traces(peers[2], "digests_differ") and world.shards_sent > 0


def test_a_worker_that_dies_meanwhile_takes_its_state_with_it() -> None:
    world, peers = slow_run(results=20)
    part(world, peers[2], 6.0)
    world.run_until(lambda: bool(traces(peers[2], "catch_up_from")), 10)
    assert traces(peers[2], "catch_up_from")[-1]["source"] == "own state"
    assert peers[2].node.ctx.role == Role.LEARNER
    world.kill_worker(peers[2])
    world.run_until(lambda: peers[2] in world.members(), 60)
    check(world)
    assert traces(peers[2], "fetched_state")


def test_keepers_that_die_meanwhile_leave_the_way_by_a_snapshot() -> None:
    """The results that it needs are gone with the members that kept them: only a newer one is left."""
    world, peers = slow_run(results=20)
    part(world, peers[2], 6.0)
    alone = peers[2]
    world.run_until(lambda: alone.node.ctx.role == Role.LEARNER, 10)
    for peer in peers[:2]:
        peer.node.steps.history.clear()
    world.run_until(lambda: alone in world.members(), 60)
    check(world)
    assert traces(alone, "fetched_state")


def test_scripts_that_change_gradients_by_hand_can_not_be_replayed() -> None:
    _, peers = start(3)
    for peer in peers:
        assert peer.node.worker.worker is not None
        peer.node.worker.worker.by_hand = True
    assert peers[0].node.returning.own_state() is None


def test_two_that_are_cut_off_together_both_go_on_from_their_own() -> None:
    world, peers = start(5)
    slow_down(world, peers, 1.0, RESULTS)
    for a in (3, 4):
        for b in (0, 1, 2):
            world.cut_link(a, b)
    world.run(world.now + 2.0)
    for a in (3, 4):
        for b in (0, 1, 2):
            world.restore_link(a, b)
    world.run_until(lambda: len(world.members()) == 5 and all(traces(p, "catch_up_from") for p in peers[3:]), 60)
    assert [traces(p, "catch_up_from")[-1]["source"] for p in peers[3:]] == ["own state"] * 2
    assert world.shards_sent == 0
    check(world)


# --- a worker that is started anew while its agent holds a snapshot ---------------------------------------------


def serving_run(shard_s: float = 0.5) -> tuple[World, list[SimPeer], SimPeer]:
    """Three members, of which each serves shards of a snapshot, one every `shard_s`, to the fourth peer."""
    world, peers = start(3)
    world.shard_s = shard_s
    joiner = world.join(3, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.FETCH, 10)
    forget(world)
    return world, peers, joiner


def test_a_restarted_worker_takes_the_snapshot_that_its_agent_serves() -> None:
    world, peers, joiner = serving_run()
    served = peers[1].node.donor.served_step()
    world.kill_worker(peers[1])
    world.run_until(lambda: peers[1].node.ctx.role == Role.LEARNER, 5)
    world.run_until(lambda: peers[1] in world.members(), 10)
    line, loaded = traces(peers[1], "catch_up_from")[-1], traces(peers[1], "fetched_state")[-1]
    assert (line["source"], line["step"]) == ("own snapshot", served)
    assert loaded["held"] == loaded["bytes"] and not loaded["sources"]
    world.run_until(lambda: joiner in world.members(), 30)
    check(world)


def test_results_since_are_kept_for_a_worker_that_takes_its_time_to_start() -> None:
    world, peers, _ = serving_run()
    served = peers[1].node.donor.served_step()
    world.kill_worker(peers[1], restart=1.5)
    world.run_until(lambda: bool(traces(peers[1], "catch_up_from")), 10)
    assert peers[1].node.steps.finished > served + 32
    assert traces(peers[1], "catch_up_from")[-1]["source"] == "own snapshot"
    world.run_until(lambda: peers[1] in world.members(), 10)
    check(world)


def test_results_that_went_to_disk_for_a_learner_and_are_read_by_a_new_worker_are_moved_no_further() -> None:
    """The former worker had read them all, so they were on their way; the new one reads them from the start."""
    world, peers, _ = serving_run()
    peer = peers[1]
    served = peer.node.donor.served_step()
    assert served is not None
    world.run_until(lambda: peer.reducer.moves_to > served + 5, 10)
    world.kill_worker(peer)
    world.run_until(lambda: peer in world.members() and bool(traces(peer, "fetched_state")), 10)
    assert traces(peer, "catch_up_from")[-1]["source"] == "own snapshot"
    check(world)


def test_a_snapshot_is_of_no_use_where_scripts_change_gradients_by_hand() -> None:
    world, peers, _ = serving_run()
    for peer in peers:
        assert peer.node.worker.worker is not None
        peer.node.worker.worker.by_hand = True
    world.kill_worker(peers[1], restart=None)
    world.run(world.now + 0.1)
    assert peers[1].node.donor.own_offer() is None


def test_they_are_not_kept_for_ever() -> None:
    world, peers, joiner = serving_run()
    world.kill_worker(peers[1], restart=None)
    world.kill(joiner)
    world.run(world.now + 8.0)
    assert peers[1].node.donor.served_step() is None
    assert len(peers[1].node.steps.history) <= 3


def test_a_snapshot_that_is_not_in_memory_any_more_comes_from_the_others() -> None:
    world, peers, _ = serving_run(0.1)
    world.kill_worker(peers[1])
    held: list[bool] = []
    receive = peers[1]._receive

    def lost(step: int, hashes: tuple[bytes, ...]) -> None:
        receive(step, hashes)
        world.disks[peers[1].index].clear()
        peers[1]._stored[1].clear()
        held.append(True)

    later = peers[1]._later

    def none(delay: float, event: AnyEvent) -> None:
        later(delay, ShardsHeld(event.step, ()) if isinstance(event, ShardsHeld) else event)

    peers[1]._receive, peers[1]._later = lost, none  # type: ignore[method-assign]
    world.run_until(lambda: bool(traces(peers[1], "catch_up_from")), 10)
    world.run_until(lambda: peers[1] in world.members(), 30)
    check(world)
    assert held and traces(peers[1], "fetched_state")[-1]["sources"]


def test_a_snapshot_before_a_step_that_is_not_kept_is_of_no_use() -> None:
    world, peers, _ = serving_run()
    world.kill_worker(peers[1])
    world.run(world.now + 0.05)
    peers[1].node.steps.history.clear()
    world.run_until(lambda: peers[1] in world.members(), 30)
    check(world)
    assert not traces(peers[1], "catch_up_from") and traces(peers[1], "fetched_state")[-1]["sources"]
