"""What a host has of a snapshot already is not fetched again: after a restart, and where states differ."""

from __future__ import annotations

from msgspec.structs import replace

from chaos.core.events import SnapshotHashed
from chaos.core.learner import Phase, flaw, own_bytes
from chaos.core.messages import SnapshotOffer
from chaos.core.types import DataState, Fingerprint, StateManifest, TensorSpec
from chaos.core.worker_desk import Worker
from chaos.sim.peer import SimPeer
from chaos.sim.symbols import LAYOUT
from chaos.sim.world import World
from tests.core.test_fetch import fetched, join, wide_run
from tests.core.test_outcomes import check, traces


def half_way(world: World, index: int) -> SimPeer:
    joiner = join(world, index)
    world.compute = 0.6
    world.run_until(lambda: len(joiner.node.learner._fetch._missing) <= 50, 20)
    return joiner


def test_a_joiner_whose_agent_restarts_goes_on_with_the_shards_it_has():
    world, peers = wide_run([2e5] * 2)
    joiner = half_way(world, 2)
    step = joiner.node.learner._fetch.offer.step
    world.kill(joiner)
    again = world.restart(joiner, 0)
    line = fetched(world, again)
    assert line["step"] == step and line["held"] >= 49 * 10_000
    assert world.shards_sent <= 104, "what was on the wire when it died is all that comes twice"
    assert traces(again, "fetched"), "results since came from the members"
    world.compute = 0.02
    world.run_until(lambda: again in world.members(), 10)
    check(world)
    assert all(p.node.donor.served_step() is None for p in peers)


def test_a_snapshot_is_not_kept_for_ever_for_one_that_does_not_return():
    world, peers = wide_run([2e5] * 2)
    joiner = half_way(world, 2)
    world.kill(joiner)
    world.run(world.now + 5)
    assert peers[0].node.donor.served_step() is not None
    world.run(world.now + 30)
    assert peers[0].node.donor.served_step() is None


def test_its_memory_goes_to_another_learner_that_wants_a_newer_one():
    world, peers = wide_run([2e5] * 2)
    joiner = half_way(world, 2)
    world.kill(joiner)
    world.compute = 0.02
    world.run(world.now + 1.5)
    at = peers[0].node.steps.finished
    other = world.join(3, 0)
    line = fetched(world, other)
    assert line["step"] >= at
    world.run_until(lambda: other in world.members(), 10)
    check(world)


def test_a_state_that_differs_is_mended_at_the_step_at_which_it_was_compared():
    """Not with a new snapshot from all: only the shards whose hashes differ come, from the one it was compared with."""
    world, _ = wide_run([1e6] * 2)
    joiner = join(world, 2)
    world.run_until(lambda: joiner.node.learner.phase == Phase.VERIFY, 10)
    hashed = joiner.node.learner.on_own_hashed

    def wrong(event: SnapshotHashed) -> None:
        hashes = tuple(b"x" if i in (3, 50, 99) else one for i, one in enumerate(event.hashes))
        del joiner.node.learner.on_own_hashed
        hashed(replace(event, hashes=hashes))

    joiner.node.learner.on_own_hashed = wrong
    world.run_until(lambda: len(traces(joiner, "fetched_state")) == 2, 10)
    again, differ = traces(joiner, "fetched_state")[1], traces(joiner, "digests_differ")[0]
    assert differ["shards"] == 3 and again["step"] == differ["step"]
    assert again["held"] == 97 * 10_000 and sum(again["sources"].values()) == 3 * 10_000
    assert len(traces(joiner, "catch_up")) == 1, "it did not begin anew"
    world.run_until(lambda: joiner in world.members(), 10)
    check(world)


def test_a_large_frozen_model_with_small_gradients_is_no_flaw():
    """What is trained may be a thousandth of the model: the offered state has all of it."""
    fingerprint = Fingerprint((TensorSpec("frozen", "float32", (10**9,)),), (), "sgd", "2", "")
    offer = SnapshotOffer(7, b"", DataState(), StateManifest(7, 4 * 10**9, (), b""), 2**22, (b"",) * 1000)
    assert flaw(offer, own_bytes(Worker(fingerprint, LAYOUT))) == ""
    tiny = Fingerprint((), (), "sgd", "2", "")
    assert "a model of" in flaw(offer, own_bytes(Worker(tiny, LAYOUT)))


def test_a_member_without_memory_for_a_snapshot_is_no_donor_and_says_why():
    world, peers = wide_run([1e6] * 3)
    world.without_memory = {1}
    peers[1].node.donor._prepared = False
    joiner = join(world, 3)
    line = fetched(world, joiner)
    assert set(line["sources"]) == {"p0", "p2"}
    assert traces(peers[1], "donor_declines") == [{"reason": "no memory for a snapshot"}]
    world.run_until(lambda: joiner in world.members(), 10)
    check(world)


def test_a_joiner_without_memory_is_told_so():
    world, _ = wide_run([1e6] * 2)
    world.without_memory = {2}
    joiner = world.join(2, 0)
    world.run_until(lambda: joiner.stopped is not None, 20)
    assert "no memory for a snapshot" in joiner.stopped.reason
