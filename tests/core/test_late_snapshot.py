"""Where results run away from a learner, the members wait once, for a late snapshot, and not longer than agreed."""

import pytest
from msgspec.structs import replace

from chaos.core.events import Tick
from chaos.core.fallback import JoinMeter
from chaos.core.learner import Phase
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_fetch import traces, wide_run


def run_of_three() -> tuple[World, list[SimPeer]]:
    world = World(seed=1)
    peers = [world.found(0)]
    world.run_until(lambda: peers[0].node.steps.finished >= 3)
    for index in (1, 2):
        peers.append(world.join(index, 0))
        world.run_until(lambda: peers[-1] in world.members())
    return world, peers


def lose_track_twice(world: World, learner: SimPeer) -> None:
    world.shard_s = 0.1
    for _ in range(2):
        world.run_until(lambda: learner.node.learner.phase in (Phase.LOAD, Phase.VERIFY))
        learner.node.lost_track("the test says so")
        world.run(world.now + 0.05)


def test_the_members_pause_for_a_late_snapshot():
    world, peers = run_of_three()
    joiner = world.join(3, 1)
    lose_track_twice(world, joiner)
    reasons = [fields for _, kind, fields in joiner.trace if kind == "catch_up_mode"]
    assert reasons[-1]["mode"] == "late" and "pause" in reasons[-1]["reason"]
    world.run_until(lambda: joiner in world.members(), 10)
    at = peers[0].node.steps.finished
    world.run_until(lambda: peers[0].node.steps.finished > at + 5, 10)
    world.promises.equal_states()
    loaded = [t for t, kind, _ in joiner.trace if kind == "state_loaded"][-1]
    asked = [t for t, kind, _ in peers[0].trace if kind == "pause"][-1]
    commits = [t for t, kind, _ in peers[0].trace if kind == "commit" and asked < t < loaded]
    assert loaded - asked > 0.25, "long enough for ten steps"
    assert len(commits) <= 1, "only the round that was open already may end in the pause"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_learner_that_dies_does_not_keep_the_members_waiting(sealed: bool):
    world, peers = run_of_three()
    joiner = world.join(3, 1)
    lose_track_twice(world, joiner)
    world.kill(joiner, seal=sealed)
    at = peers[0].node.steps.finished
    world.run_until(lambda: peers[0].node.steps.finished > at + 5, 8)


def test_the_pause_ends_by_itself():
    world, peers = run_of_three()
    joiner = world.join(3, 1)
    lose_track_twice(world, joiner)
    joiner.handle = lambda _event: None  # alive to its links, deaf to everything
    at = peers[0].node.steps.finished
    world.run_until(lambda: peers[0].node.steps.finished > at + 5, 40)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_whose_scripts_change_gradients_by_hand_pauses_for_a_joiner(seed: int):
    """Replayed results would give another state, as would an update that the script never saw."""
    world = World(seed=seed)
    world.by_hand = True
    peers = [world.found(0)]
    world.run_until(lambda: peers[0].node.steps.finished >= 3)
    for index in (1, 2, 3):
        peers.append(world.join(index, 0))
        world.run_until(lambda: peers[-1] in world.members(), 10)
    world.kill_worker(peers[1])
    world.run_until(lambda: peers[1] not in world.members(), 10)
    world.run_until(lambda: peers[1] in world.members(), 10)
    at = peers[0].node.steps.finished
    world.run_until(lambda: all(p.node.steps.finished > at + 5 for p in peers), 10)
    modes = [fields for _, kind, fields in peers[3].trace if kind == "catch_up_mode"]
    assert [m["mode"] for m in modes] == ["late"] and "sync()" in modes[0]["reason"]
    assert not [kind for _, kind, _ in peers[3].trace if kind == "digests_differ"]


def test_a_learner_says_how_it_catches_up_and_why():
    """In the trace and in `chaos status`, by what it measured of the transfer so far; nothing once it is a member."""
    world, _ = wide_run([4e5] * 2)
    joiner = world.join(2, 0)
    world.run_until(lambda: bool(traces(joiner, "catch_up_mode")), 10)
    line = traces(joiner, "catch_up_mode")[-1]
    assert line["mode"] == "replay" and line["reason"].startswith("the snapshot takes 1.2")
    assert joiner.node.status()["catch_up"] == line["reason"]
    world.run_until(lambda: len(world.members()) == 3, 20)
    assert len(traces(joiner, "catch_up_mode")) == 1 and not joiner.node.status()["catch_up"]


def slow_join(uplink: float, seconds: float) -> tuple[World, SimPeer, SimPeer]:
    """A joiner beside two members with these uplinks (B/s), which pull 1 MB of state; steps take 25 ms. Runs until it
    is a member, or so long."""
    world, peers = wide_run([uplink] * 2)
    joiner = world.join(2, 0)
    world.reaches(lambda: joiner in world.members(), seconds)
    return world, peers[0], joiner


def test_the_members_wait_for_the_last_part_of_a_snapshot_whose_results_find_no_room():
    """It takes 10 s, and there is room for 224 results: before, all of it had come in vain before anybody waited, for
    as long as a whole one takes."""
    world, member, joiner = slow_join(5e4, 14.0)
    assert joiner in world.members()
    world.run(world.now + 1.0)
    assert len(traces(joiner, "catch_up")) == 1 and world.shards_sent <= 101
    line = traces(joiner, "catch_up_mode")[-1]
    assert line["mode"] == "late" and "of 224 results wait; the members pause" in str(line["reason"])
    paused = next(t for t, kind, _ in member.trace if kind == "pause")
    steps = sum(kind == "commit" and t < paused for t, kind, _ in member.trace)
    assert steps > 0.9 * 224, "they went on as long as there was room"
    resumed = next(t for t, kind, _ in member.trace if kind == "commit" and t > paused + 1.0)
    assert resumed - paused < 7.0, "a whole snapshot takes 10 s"
    world.promises.equal_states()


def test_the_members_wait_as_well_where_results_do_not_get_through_to_the_learner():
    """There would be room for them here, but the members keep no more than 96."""
    world, member, joiner = slow_join(5e4, 2.0)
    node = joiner.node
    assert node.learner.phase == Phase.FETCH and not traces(member, "pause")
    for peer, beat in node.liveness.progress.items():
        node.liveness.progress[peer] = replace(beat, finished=node.steps.finished + 90)
    node.learner.course._looked_at = 0.0
    joiner.handle(Tick())
    assert str(traces(joiner, "catch_up_mode")[-1]["reason"]).startswith("it lags 90 results; the members pause")
    world.run_until(lambda: bool(traces(member, "pause")), 1.0)


def test_nobody_waits_where_waiting_is_of_no_use():
    """The state takes 50 s, the members wait 30 s at most: the joiner is told, and the run goes on without a pause."""
    world, member, joiner = slow_join(1e4, 160.0)
    assert joiner not in world.members()
    assert not traces(member, "pause")
    told = [str(line["text"]) for line in traces(joiner, "told")]
    assert any("they wait for 30 s at most, so they are not asked to" in text for text in told)


def test_a_pause_that_is_over_is_none():
    """Else a learner would compare with the present step of a run that goes on, which it can meet by luck only."""
    world, _ = run_of_three()
    joiner = world.join(3, 1)
    lose_track_twice(world, joiner)
    course = joiner.node.learner.course
    world.run_until(lambda: course.late, 5)
    joiner.node.ctx.now = course._paused_until
    assert not course.late


def test_while_the_run_stands_it_is_compared_where_the_members_stand():
    """Not where a learner does that still lacks results: members have no snapshot of a step that is past."""
    world, _ = run_of_three()
    joiner = world.join(3, 1)
    lose_track_twice(world, joiner)
    world.run_until(lambda: joiner.node.learner.phase == Phase.LOAD, 5)
    learner, progress = joiner.node.learner, joiner.node.liveness.progress
    assert learner.course.late
    for peer, beat in progress.items():
        progress[peer] = replace(beat, finished=joiner.node.steps.finished + 3)
    learner._start_verify()
    assert learner._target == joiner.node.steps.finished + 3


def test_what_can_not_work_is_said_before_it_fails():
    meter = JoinMeter(state_bytes=100_000)
    assert meter.foresee(10.0, 200, 1000, 32, 1e5) is None, "the run's pace is not known"
    meter.saw(0.0, 100)
    assert meter.foresee(10.0, 200, 1000, 32, 0.0) is None, "nothing has come"
    fits = meter.foresee(10.0, 200, 1000, 32, 1.1e5)
    assert fits is not None and fits.mode == "replay"
    fails = meter.foresee(10.0, 200, 1000, 32, 2e4)
    assert fails is not None and fails.mode == "late" and "100 results" in fails.reason
    starved = meter.foresee(10.0, 200, 1000, 32, 9e3)
    assert starved is not None and starved.mode == "late" and "results alone need" in starved.reason


def test_the_meter_decides_by_what_it_measured():
    meter = JoinMeter()
    meter.saw(0.0, 100)
    assert meter.decide(10.0, 200, 1000, 32) is None, "nothing was lost yet"
    meter.losses, meter.state_bytes, meter.link = 1, 100_000, 1.1e5
    replay = meter.decide(10.0, 200, 1000, 32)
    assert replay is not None and replay.mode == "replay", "10 results of 1000 bytes fit the queue"
    full = meter.decide(10.0, 200, 1000, 5)
    assert full is not None and full.mode == "late" and "queue" in full.reason
    meter.losses = 2
    again = meter.decide(10.0, 200, 1000, 32)
    assert again is not None and again.mode == "late" and again.pause_s > 0
