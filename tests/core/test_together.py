"""Several learners at one time: one snapshot for all, shards from each other, one view."""

from __future__ import annotations

from itertools import pairwise

import pytest

from chaos.core.fetch import from_bitmap, to_bitmap
from chaos.core.learner import Phase
from chaos.core.messages import SnapshotAt
from chaos.sim.peer import SimPeer
from chaos.sim.symbols import peer_id
from chaos.sim.world import World
from tests.core.test_fetch import STATE, fetched, wide_run
from tests.core.test_outcomes import check, start, traces

MESH = 1e6
"""B/s up and down of everybody."""


def come_in(donors: int, joiners: int, seed: int = 0) -> tuple[World, list[SimPeer], float]:
    """So many joiners at once on a mesh of equal links; seconds until the last has fetched the state."""
    world, _ = wide_run([MESH] * donors, MESH, seed)
    began = world.now
    peers = [world.join(donors + number, 0) for number in range(joiners)]
    world.run_until(lambda: all(traces(p, "fetched_state") for p in peers), 60)
    return world, peers, world.now - began


def test_many_joiners_take_about_the_time_of_one():
    """Two donors alone would need twice as long for four."""
    _, _, alone = come_in(2, 1)
    world, peers, together = come_in(2, 4)
    assert together < 1.35 * alone, f"{together:.2f} s for four, {alone:.2f} s for one"
    assert len({traces(p, "fetched_state")[-1]["step"] for p in peers}) == 1, "one snapshot for all"
    from_each_other = [b for p in peers for name, b in traces(p, "fetched_state")[-1]["sources"].items() if name > "p1"]
    assert sum(from_each_other) > STATE
    assert world.shards_sent < 1.1 * 4 * 100, "hardly anything is sent twice"
    for peer in peers:
        world.run_until(lambda p=peer: p in world.members(), 10)
    check(world)


@pytest.mark.parametrize("seed", range(4))
def test_those_that_are_ready_in_one_moment_come_in_by_one_view(seed: int):
    world, peers, _ = come_in(3, 3, seed)
    world.run_until(lambda: all(p in world.members() for p in peers), 10)
    ready = {p.info.name: max(t for t, kind, line in p.trace if line.get("phase") == "ready") for p in peers}
    first = min(ready.values())
    soon = {name for name, at in ready.items() if at - first < 0.1}
    views = [view["members"] for view in traces(world.peers[peer_id(0)], "view")]
    entered = next(set(after) - set(before) for before, after in pairwise(views) if ready.keys() & after)
    assert entered >= soon, (ready, entered)


def test_one_that_comes_a_little_later_takes_the_same_snapshot():
    world, _ = wide_run([MESH / 2] * 2, MESH / 2)
    first = world.join(2, 0)
    world.run_until(lambda: first.node.learner.phase == Phase.FETCH, 10)
    world.compute = 0.5
    second = world.join(3, 0)
    fetched(world, second)
    steps = [traces(p, "fetched_state")[-1]["step"] for p in (first, second)]
    assert steps[0] == steps[1]
    views = [v["first_step"] for v in traces(second, "view")]
    assert views[0] > steps[1] + 1, "it was no learner yet at that step"
    assert traces(second, "fetched"), "it asked for the results since"
    for peer in (first, second):
        world.run_until(lambda p=peer: p in world.members(), 20)
    check(world)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_fellow_that_dies_costs_the_others_little(sealed: bool):
    world, _ = wide_run([MESH] * 2, MESH)
    peers = [world.join(2 + number, 0) for number in range(3)]
    world.run_until(lambda: all(p.node.learner.phase == Phase.FETCH for p in peers), 10)
    world.run(world.now + 0.3)
    world.kill(peers[1], seal=sealed)
    for peer in (peers[0], peers[2]):
        world.run_until(lambda p=peer: p in world.members(), 20)
    check(world)


def test_a_fellow_that_passes_nothing_on_is_worked_around():
    """Its uplink is blocked for bulk: what it was to relay comes from the donors after all."""
    world, _ = wide_run([MESH] * 2, MESH)
    peers = [world.join(2 + number, 0) for number in range(3)]
    peers[0]._send_next = lambda _dst, _serving: None
    for peer in peers:
        fetched(world, peer, 30)
        world.run_until(lambda p=peer: p in world.members(), 20)
    check(world)


def test_a_corrupt_shard_of_a_fellow_comes_from_a_donor():
    world, _ = wide_run([MESH] * 2, MESH)
    peers = [world.join(2 + number, 0) for number in range(3)]
    liar = peers[0]
    send, shard = liar._send_next, world.shard

    def lie(sender: SimPeer, dst: str, step: int, number: int) -> None:
        world.corrupt_shards = 1 if sender is liar else 0
        shard(sender, dst, step, number)

    world.shard = lie
    for peer in peers:
        world.run_until(lambda p=peer: p in world.members(), 30)
    assert send is not None
    assert any(p.node.learner.corrupt.get(liar.id) for p in peers[1:])
    check(world)


@pytest.mark.parametrize("shards", [frozenset(), frozenset({0}), frozenset({7, 8, 99}), frozenset(range(64))])
def test_bitmaps(shards: frozenset[int]):
    assert from_bitmap(to_bitmap(shards), 100) == shards
    assert from_bitmap(to_bitmap(shards), 5) == frozenset(s for s in shards if s < 5)


def test_a_snapshot_that_is_still_to_come_is_not_offered_to_another():
    """Of a run that waits for peers it never came: one learner waited for it, and kept the donor busy for the other."""
    world = World(1)
    world.min_peers = 3
    founder = world.found(0)
    world.run(0.1)
    first = world.join(1, 0)
    world.run_until(lambda: first.node.learner.phase == Phase.VERIFY, 5)
    donor = founder.node.donor
    first.freeze()
    world.run(world.now + 0.2)
    donor.give_up()
    donor.on_snapshot_at(first.id, SnapshotAt(1))
    second = world.join(2, 0)
    world.run_until(lambda: second.node.learner.phase == Phase.OFFER, 5)
    first.wake()
    world.run_until(lambda: len(world.members()) == 3, 10)
    assert second in world.members()
    check(world)


def test_a_donor_whose_worker_dies_pulls_the_very_snapshot_that_it_served():
    """It was a donor and a fellow in one plan, which no plan allows: the joiner's agent ended."""
    world, peers = start(3)
    world.shard_s = 0.5
    joiner = world.join(3, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.FETCH, 10)
    world.kill_worker(peers[1])
    world.run(world.now + 0.05)
    peers[1].node.steps.history.clear()  # so its own memory is of no use to it
    for peer in (peers[1], joiner):
        world.run_until(lambda p=peer: p in world.members(), 30)
    assert any("learners" in line for line in traces(joiner, "shards_together"))
    check(world)
