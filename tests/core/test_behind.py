"""Learners that are behind: what memory does not hold lies on disk, and what neither holds is fetched later."""

from __future__ import annotations

from chaos.core.actions import MoveResults
from chaos.core.context import Role
from chaos.core.events import ResultMemory
from chaos.core.learner import Phase
from chaos.core.messages import SnapshotAt
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_scenarios import check, traces


def run_with(disk_slots: int, slots: int = 4, seed: int = 1) -> tuple[World, list[SimPeer]]:
    world = World(seed)
    world.result_slots, world.disk_slots = slots, disk_slots
    founder = world.found(0)
    world.run_until(lambda: founder.node.steps.finished >= 3)
    second = world.join(1, 0)
    world.run_until(lambda: len(world.members()) == 2, 10)
    return world, [founder, second]


def become_member(world: World, joiner: SimPeer) -> None:
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 60)
    check(world)


def snapshots(joiner: SimPeer) -> int:
    return len(traces(joiner, "catch_up"))


def slow_shards(world: World, shard_s: float) -> SimPeer:
    world.shard_s = shard_s
    joiner = world.join(2, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.FETCH, 5)
    return joiner


def test_with_disk_one_snapshot_is_enough_where_memory_holds_four_results() -> None:
    """Without disk the results since are gone by the time the state is there, and the joiner has to begin anew."""
    world, members = run_with(disk_slots=400)
    joiner = slow_shards(world, 1.0)
    before = members[0].node.steps.finished
    become_member(world, joiner)
    assert members[0].node.steps.finished > before + 50
    assert snapshots(joiner) == 1 and not traces(joiner, "results_dropped")

    world, _ = run_with(disk_slots=0)
    joiner = slow_shards(world, 1.0)
    world.run_until(lambda: snapshots(joiner) > 1, 20)


def test_members_results_for_a_learner_leave_their_memory() -> None:
    """They lie on disk, so the run finds room for the next steps; and only while somebody may ask for them."""
    world, members = run_with(disk_slots=400)
    joiner = slow_shards(world, 1.0)
    world.run(world.now + 3.0)
    for member in members:
        assert len(member.reducer.results) - len(member.reducer._on_disk) <= 4
        assert member.reducer._on_disk, "nothing had to go to disk"
    become_member(world, joiner)
    world.run(world.now + 1.0)
    assert not any(member.reducer._on_disk for member in members)


def test_what_a_learner_had_no_room_for_is_fetched_once_it_has() -> None:
    """Its own disk is smaller than theirs: it says so, drops what comes, and still needs no second snapshot."""
    world, members = run_with(disk_slots=400)
    world.disk_slots = 10
    joiner = slow_shards(world, 1.0)
    before = members[0].node.steps.finished
    become_member(world, joiner)
    assert members[0].node.steps.finished > before + 50
    assert snapshots(joiner) == 1
    assert len(traces(joiner, "results_dropped")) == 1
    assert any("falls behind" in line["text"] for line in traces(joiner, "told"))


def test_who_can_not_keep_up_is_told_why() -> None:
    world, _ = run_with(disk_slots=0)
    joiner = slow_shards(world, 1.0)
    world.run_until(lambda: bool(traces(joiner, "told")), 20)
    world.run_until(lambda: snapshots(joiner) > 1, 20)
    assert any("can't keep up: the result of step" in line["text"] for line in traces(joiner, "told"))


def test_a_joiner_that_comes_back_is_not_limited_to_what_memory_keeps() -> None:
    """Its agent dies in mid-transfer; when it is back, many more than 32 steps have passed; its shards still count."""
    world, members = run_with(disk_slots=400, slots=64)
    joiner = slow_shards(world, 1.0)
    world.run(world.now + 4.0)
    held = joiner.node.learner._fetch
    assert held is not None
    world.kill(joiner)
    world.run(world.now + 3.0)
    behind = members[0].node.steps.finished - held.offer.step
    assert behind > 64
    world.shard_s = 0.001
    again = world.restart(joiner, 0)
    world.run_until(lambda: bool(traces(again, "fetched_state")), 20)
    line = traces(again, "fetched_state")[-1]
    assert line["step"] == held.offer.step and line["held"] > 0
    become_member(world, again)


def test_a_disk_that_gets_full_is_not_counted_on() -> None:
    world, (founder, _) = run_with(disk_slots=400)
    assert founder.node.ctx.kept_for_learners == 402
    founder.handle(ResultMemory(4, 0))
    assert founder.node.ctx.kept_for_learners == 2
    joiner = slow_shards(world, 1.0)
    moved: list[MoveResults] = []
    founder.reducer.move = lambda step: moved.append(MoveResults(step))  # type: ignore[method-assign]
    become_member(world, joiner)
    assert not moved


def test_results_that_a_healed_members_worker_has_read_leave_its_memory() -> None:
    """It caught up without its script going on, so it never said what it had read: promoted with its memory full of
    results, it had no room for the next one, and the run stood still."""
    world, (founder, _) = run_with(disk_slots=60, slots=6)
    third = world.join(2, 0)
    world.run_until(lambda: third in world.members(), 10)
    world.corrupt.add((2, third.node.steps.finished + 2))
    world.run_until(lambda: third.node.learner.phase == Phase.VERIFY, 10)
    third.node.learner._announce_ready = lambda: None  # type: ignore[method-assign]
    begun = founder.node.steps.finished
    world.run_until(lambda: founder.node.steps.finished > begun + 20, 20)
    assert third.node.ctx.role == Role.LEARNER
    world.run(world.now + 0.1)
    assert len(third.reducer.results) <= 6
    del third.node.learner._announce_ready
    become_member(world, third)


def test_results_that_a_learner_lacks_are_kept_though_it_asks_for_a_snapshot_to_compare_with() -> None:
    """They were let go as if it had that snapshot's state already: with a long queue it never got there."""
    world, members = run_with(disk_slots=400)
    joiner = slow_shards(world, 1.0)
    joiner.freeze()
    world.run(world.now + 0.3)
    member = next(m for m in members if joiner.id in m.node.donor._floors)
    donor, steps = member.node.donor, member.node.steps
    base = joiner.node.learner.base_step
    donor.on_snapshot_at(joiner.id, SnapshotAt(steps.finished + 2, compares=True))
    assert donor.learners_floor(steps.finished, steps._acks) == max(base, steps.held_by(joiner.id))
    donor.on_snapshot_at(joiner.id, SnapshotAt(steps.finished + 2))
    assert donor.learners_floor(steps.finished, steps._acks) > base
