"""Leaving, and the end of runs: who goes when, with which exit code, and what is never lost by it."""

from __future__ import annotations

import pytest

from chaos.core import events as ev
from chaos.core import worker_messages as wm
from chaos.core.context import Role
from chaos.core.learner import Phase
from tests.core.test_outcomes import advance, check, start, stops, traces


@pytest.mark.parametrize("gap", [0.0, 0.001, 0.003, 0.01, 0.03])
def test_two_leave_at_once(gap: float) -> None:
    """A leaver that still waits for its last step to be stable hears of a second view without it."""
    world, peers = start(4)
    peers[1].handle(ev.LeaveRequested("asked to"))
    world.run(world.now + gap)
    peers[2].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: peers[1].stopped is not None and peers[2].stopped is not None, 5)
    assert stops(world) == {"p1": 0, "p2": 0}
    assert not traces(peers[1], "rejoin")
    advance(world, peers[0], 3)
    check(world)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_everybody_leaves(seed: int, count: int) -> None:
    """Nobody makes up empty steps while the workers end (a peer alone did so without end), nor drops a contribution."""
    world, peers = start(count, seed)
    world.run(world.now + seed * 0.004)
    for peer in peers:
        peer.handle(ev.LeaveRequested("asked to"))
    pending = {p.index: p.node.steps.finished + 1 for p in peers if p.node.steps.contributed(p.node.steps.finished + 1)}
    end = max(p.node.steps.finished for p in peers)
    world.run_until(lambda: len(stops(world)) == count, 12)
    assert set(stops(world).values()) == {0}
    assert max(world.promises.stable) <= end + 2
    assert all(step in world.promises.stable for step in pending.values())
    check(world)


@pytest.mark.parametrize("seed", [2, 4, 8, 13])
@pytest.mark.parametrize("gap", [0.0, 0.01, 0.05])
def test_the_last_member_ends_before_the_leaver_holds_its_last_step(seed: int, gap: float) -> None:
    """The result of the step that both contributed to dies with the other: the leaver ends with the one before."""
    world, peers = start(2, seed)
    world.network.bulk_delay, world.network.latency, world.compute = 0.06, 0.0005, 0.2
    world.run(world.now + 0.3)
    peers[0].handle(ev.LeaveRequested("asked to"))
    world.run(world.now + gap)
    peers[1].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: len(stops(world)) == 2, 5)
    assert set(stops(world).values()) == {0}
    check(world)


def test_a_leaver_whose_worker_dies_is_gone_all_the_same() -> None:
    """It used to be demoted, to catch up, and to forget that it wanted out."""
    world, peers = start(3)
    peers[2].handle(ev.LeaveRequested("asked to"))
    world.kill_worker(peers[2])
    world.run_until(lambda: peers[2].stopped is not None, 5)
    advance(world, peers[0], 3)
    check(world)


def test_a_leaver_whose_worker_dies_in_the_midst_of_its_last_step() -> None:
    """Bytes of its part are in the others' sums: it can't say any more that it has none, so the attempt is void."""
    world, peers = start(3)
    leaver = peers[2]
    leaver.handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: leaver.node.ctx.role == Role.LEAVER, 5)
    step = leaver.node.steps.finished + 1
    leaver.handle(ev.WorkerSaid(wm.BucketReady(step, 0, 4.0)))
    world.kill_worker(leaver, restart=None)
    world.run_until(lambda: leaver.stopped is not None, 5)
    assert not leaver.node.steps.contributed(step)
    world.run_until(lambda: peers[0].node.ctx.view.abort, 5)
    advance(world, peers[0], 3)
    check(world)


def test_scripts_that_end_at_different_steps() -> None:
    """Who is through contributes nothing for those that go on until a view lets it go."""
    world, peers = start(3)
    now = peers[0].node.steps.finished
    world.ends = {0: now + 3, 1: now + 10, 2: now + 20}
    world.run_until(lambda: len(stops(world)) == 3, 20)
    assert set(stops(world).values()) == {0}
    assert max(world.promises.stable) == now + 20
    check(world)


@pytest.mark.parametrize(("seed", "latency"), [(4, 0.03), (7, 0.03), (19, 0.01)])
def test_scripts_that_end_where_one_link_is_missing(seed: int, latency: float) -> None:
    """Who ends before the others hears that the run is complete, also if the one that relays is the first to go."""
    world, peers = start(3, seed)
    world.network.latency = latency
    world.cut_link(1, 2)
    world.run(world.now + 0.5)
    end = max(p.node.steps.finished for p in peers) + 4
    world.ends = {0: end, 1: end - 1, 2: end + 1}
    world.run_until(lambda: len(stops(world)) == 3, 30)
    assert set(stops(world).values()) == {0}
    check(world)


def test_no_empty_steps_after_the_end() -> None:
    """All scripts end after one step: nobody makes up steps for the others while the last one becomes stable."""
    world, peers = start(3)
    end = peers[0].node.steps.finished + 5
    world.steps = end
    world.run_until(lambda: len(stops(world)) == 3, 10)
    assert max(world.promises.stable) == end
    assert set(stops(world).values()) == {0}


@pytest.mark.parametrize("seal", [True, False])
def test_the_end_with_one_peer_lost(seal: bool) -> None:
    """The others end; if the quorum is lost with it, they say that their last step is not confirmed."""
    world, peers = start(2)
    end = peers[0].node.steps.finished + 5
    world.steps = end
    world.run_until(lambda: peers[1].node.worker.worker is not None and peers[1].worker.applied >= end - 1, 5)
    world.kill(peers[0], seal=seal)
    world.run_until(lambda: peers[1].stopped is not None or peers[1].node.pause.reason, 20)
    if seal:
        world.run_until(lambda: peers[1].stopped is not None, 5)
        assert stops(world)["p1"] == 0
    check(world)


def test_a_learner_of_a_run_that_ends_stops() -> None:
    world, peers = start(2)
    joiner = world.join(2, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.PREPARE, 5)
    joiner.worker.alive = False  # it never gets ready
    world.steps = peers[0].node.steps.finished + 3
    world.run_until(lambda: joiner.stopped is not None, 10)
    check(world)


@pytest.mark.parametrize("how", ["killed", "host lost", "script ends", "worker dies"])
@pytest.mark.parametrize("seed", range(4))
def test_a_leaver_that_goes_before_the_last_step_it_owes(seed: int, how: str) -> None:
    """A view lets a leaver go at step f; the steps before f still need its part, or a view without it."""
    world, peers = start(3, seed)
    leaver = peers[2]
    world.run(world.now + seed * 0.0007)
    leaver.handle(ev.LeaveRequested("test"))
    world.run_until(lambda: leaver.node.ctx.role == Role.LEAVER or leaver.stopped is not None, 5)
    if how in ("killed", "host lost"):
        world.kill(leaver, seal=how == "killed")
    elif how == "script ends":
        leaver.worker.ended, leaver.worker.alive = True, False
        leaver.handle(ev.WorkerSaid(wm.Finished(leaver.worker.applied)))
    else:
        world.kill_worker(leaver)
    at = peers[0].node.steps.stable
    world.run_until(lambda: peers[0].node.steps.stable >= at + 3, 10)
    world.promises.equal_states()


def test_a_leaver_whose_worker_was_restarted_does_not_wait_for_it() -> None:
    """The new worker has no state, and nobody gives a leaver one: it never came to its script's end."""
    world, peers = start(3)
    leaver = peers[2]
    world.disturb()
    world.network.block(peers[0].id, leaver.id)
    leaver.handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: leaver.node.ctx.role == Role.LEAVER, 5)
    world.kill_worker(leaver, restart=0.01)
    world.run(world.now + 0.1)
    world.network.unblock(peers[0].id, leaver.id)
    world.run_until(lambda: leaver.stopped is not None, 15)
    assert leaver.stopped is not None and leaver.stopped.code == 0
