"""Late workers in virtual time: left out of a step, never silently, and back in it when they are in time again."""

from __future__ import annotations

import pytest

from chaos.core import events as ev
from chaos.core import worker_messages as wm
from chaos.core.context import Role
from chaos.core.deadlines import FLOOR_S
from chaos.core.messages import StepContribution
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, traces

LIMIT_S = 2.0


def start(count: int, limit_s: float = LIMIT_S, samples: int = 10_000, compute: float = 0.02) -> World:
    """Members p0 to p`count - 1` that train, in a run with this limit (0: it waits)."""
    world = World(0)
    world.straggler_limit_s, world.samples, world.compute = limit_s, samples, compute
    world.found(0)
    for index in range(1, count):
        world.join(index, 0)
        world.run_until(lambda n=index: len(world.members()) == n + 1, 10)
    for peer in world.members():
        advance(world, peer, 6)
    return world


def peers_of(world: World) -> list[SimPeer]:
    return sorted(world.peers.values(), key=lambda p: p.index)


def dawdle(world: World, peer: SimPeer, seconds: float) -> int:
    """Have the worker compute about so long for its next step, and as usual after it. Returns that step."""
    worker = peer.node.worker.worker
    assert worker is not None
    world.run(world.now + 0.002)  # what it was told to compute last it computes in the usual time
    since, peer.slowness = worker.since, seconds / world.compute
    world.run_until(lambda: worker.since > since, 5)
    world.disturb()
    world.run(world.now + 0.002)  # now it has heard of it
    peer.slowness = 1.0
    return worker.computing


def late(peer: SimPeer) -> dict[int, list[str]]:
    """Step to who was left out of it, as this peer's commits say."""
    return {int(c["step"]): list(c["late"]) for c in traces(peer, "commit") if c["late"]}  # type: ignore[call-overload]


def works(peer: SimPeer, since: int) -> bool:
    """Whether it contributed to a step after `since`."""
    return any(c["step"] > since and peer.id in c["contributors"] for c in traces(peer, "commit"))  # type: ignore[operator]


def test_a_late_worker_is_left_out_and_comes_back() -> None:
    world = start(3)
    one, two, slow = peers_of(world)
    views, step, began = one.node.ctx.view.id, dawdle(world, slow, 0.9), world.now
    world.run_until(lambda: one.node.steps.finished >= step, LIMIT_S)
    assert FLOOR_S <= world.now - began < FLOOR_S + 0.2, "the patience of steps of 20 ms"
    before = one.node.steps.finished
    world.run(world.now + 0.2)
    assert one.node.steps.finished > before + 4, "the others don't wait at each further step"
    assert late(one)[step] == [slow.id]
    assert traces(slow, "left_out")[0]["step"] == step and "are in" in str(traces(slow, "left_out")[0]["reason"])
    world.run_until(lambda: works(slow, step), 10)
    missed = late(one)
    world.run(world.now + 2)
    assert late(one) == missed == late(two), "in time again, and all say the same"
    assert one.node.ctx.view.id == views, "nothing had to be agreed on"
    check(world)


def test_a_run_that_waits_waits() -> None:
    world = start(3, limit_s=0.0)
    one, _, slow = peers_of(world)
    step = dawdle(world, slow, 6.0)
    world.run(world.now + 2.5)
    assert one.node.steps.finished == step - 1
    world.run_until(lambda: one.node.steps.finished > step + 10, 20)
    assert not late(one) and not traces(slow, "left_out")
    check(world)


def test_where_all_are_slow_at_once_nobody_is_late() -> None:
    world = start(3)
    for peer in peers_of(world):
        peer.slowness = 200.0
    step = peers_of(world)[0].node.steps.finished
    world.run_until(lambda: peers_of(world)[0].node.steps.finished >= step + 4, 60)
    firsts = [s for s in late(peers_of(world)[0]) if s <= step + 2]
    assert len(firsts) <= 1, "the first slow step may be taken for a hiccup of whoever is last"
    check(world)


def test_there_are_no_steps_of_nobody() -> None:
    """What an agent says in its late worker's place, in a round whose only real part has died, leaves nobody out."""
    world = start(2)
    one, other = peers_of(world)
    step = dawdle(world, one, 2.0)
    steps = one.node.steps
    part = wm.Contribution(0.0, True, None, (), b"", b"", 0, False, compute_s=0.02, late=True)
    one.handle(ev.Received(other.id, StepContribution(one.node.ctx.view.id, step, steps.head, part)))
    world.run(world.now + 0.9)
    assert steps.finished == step - 1 and not steps.contributed(step) and not traces(one, "left_out")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_that_is_always_late_is_warned_of(count: int) -> None:
    world = start(count)
    *rest, slow = peers_of(world)
    slow.slowness = 100.0
    world.run(world.now + 8)
    before = rest[0].node.steps.finished
    world.run(world.now + 4)
    assert rest[0].node.steps.finished > before + 60, "the others keep their pace"
    tally = rest[0].node.stragglers.tallies[slow.id]
    assert (
        tally.late > 60
        and rest[0].node.stragglers.summary() == f"{slow.info.name} in {tally.late} of {tally.steps} steps"
    )
    told = next(m for m in rest[0].node.status()["members"] if m["id"] == slow.id)["late"]
    assert told == {"steps": tally.late, "of": tally.steps, "last": tally.last}
    assert any(slow.info.name in str(w["reason"]) for w in traces(rest[0], "warning"))
    check(world)


def test_an_epoch_ends_without_the_samples_of_a_late_worker() -> None:
    """Its leases go back to the pool; the promises see to it that each of the 60 counts once all the same."""
    world = start(3, samples=60)
    one, _, slow = peers_of(world)
    epoch = one.node.steps.data.epoch
    step = dawdle(world, slow, 4.0)
    world.run_until(lambda: one.node.steps.data.epoch >= epoch + 3, 3)
    assert late(one) and not works(slow, step)
    empty = [c["step"] for c in traces(one, "commit") if not c["contributors"]]
    assert len(empty) <= 2 * one.node.steps.data.epoch, "nor are there steps of nobody meanwhile"
    world.run_until(lambda: works(slow, step), 10)
    epoch = world.epoch()
    world.run_until(lambda: world.epoch() >= epoch + 2, 20)
    check(world)


def test_a_late_worker_has_gone_through_its_private_data_all_the_same() -> None:
    """Else an epoch of private data would wait for a peer whose parts are always late."""
    world = start(2)
    one, slow = peers_of(world)
    step = dawdle(world, slow, 2.0)
    worker = slow.node.worker.worker
    assert worker is not None
    worker.passed = slow.node.steps.data.epoch
    world.run_until(lambda: one.node.steps.finished >= step, 5)
    part = dict(one.node.steps.history[step].contributions)[slow.id]
    assert part.late and part.pass_done and part.want > 0 and part.compute_s > FLOOR_S


def test_one_that_lags_too_far_heals() -> None:
    world = start(3)
    one, _, slow = peers_of(world)
    dawdle(world, slow, 8.0)
    world.run_until(lambda: bool(traces(slow, "lags")), 10)
    assert slow.node.ctx.role == Role.MEMBER, "it stays while its worker computes"
    world.run(world.now + 1.0)
    assert len(slow.node.steps.history) < 8, "and keeps no results that its worker will not read"
    world.run_until(lambda: bool(traces(slow, "lost_track")), 20)
    world.run_until(lambda: slow.node.ctx.role == Role.MEMBER and len(one.node.ctx.view.members) == 3, 20)
    assert traces(slow, "state_loaded")
    advance(world, slow, 3)
    check(world)


def test_few_results_fit_where_the_model_is_large() -> None:
    world = start(2)
    one, slow = peers_of(world)
    slow.node.ctx.result_slots = 4
    step = dawdle(world, slow, 3.0)
    world.run_until(lambda: bool(traces(slow, "lags")), 5)
    assert traces(slow, "lags")[0]["step"] == step + 2, "two results are kept, and there is room for two rounds"
    world.run_until(lambda: len(one.node.ctx.view.members) == 2 and works(slow, step), 30)
    check(world)


@pytest.mark.parametrize("what", ["worker", "agent", "leaves", "other"])
def test_death_and_departure_while_late(what: str) -> None:
    world = start(3)
    one, two, slow = peers_of(world)
    step = dawdle(world, slow, 3.0)
    world.run_until(lambda: one.node.steps.finished > step, 5)
    rest = [one, two]
    match what:
        case "worker":
            world.kill_worker(slow)
        case "agent":
            world.kill(slow)
        case "leaves":
            slow.handle(ev.LeaveRequested("asked to"))
        case "other":
            world.kill(two)
            rest = [one, slow]
    world.run(world.now + 8)
    for peer in rest:
        advance(world, peer, 3)
    if what == "leaves":
        assert slow.stopped is not None and slow.stopped.code == 0
    check(world)


def test_a_round_that_failed_is_not_joined_by_who_was_late() -> None:
    """It said that it contributes nothing; the retry under another view is told the same."""
    world = start(3)
    one, two, slow = peers_of(world)
    step = dawdle(world, slow, 1.0)
    world.network.bulk_delay = 1.0  # the step is left open for a while
    world.run_until(lambda: bool(traces(slow, "left_out")), 5)
    world.run(world.now + 0.3)
    assert one.node.steps.finished == step - 1
    world.kill(two)
    world.network.bulk_delay = 0.001
    world.run_until(lambda: one.node.steps.finished >= step, 10)
    assert late(one)[step] == [slow.id]
    advance(world, slow, 5)
    check(world)


def test_bytes_that_take_long_are_waited_for_and_told() -> None:
    world = start(2, limit_s=0.5)
    one, two = peers_of(world)
    world.network.bulk_delay = 1.0
    world.run(world.now + 6)
    assert traces(one, "slow_bytes") and not late(two)
    check(world)


@pytest.mark.parametrize(("runs", "says"), [(2.0, 0.0), (0.0, 2.0), (2.0, 3.0), (2.0, 2.0), (2.0, None)])
def test_a_joiner_with_another_setting_is_told(runs: float, says: float | None) -> None:
    world = start(2, limit_s=runs)
    plain = world.config

    def config(founder: bool):  # type: ignore[no-untyped-def]
        settings = plain(founder)
        object.__setattr__(settings, "straggler_limit_s", says)
        return settings

    world.config = config  # type: ignore[method-assign]
    joiner = world.join(2, 0)
    if says in (None, runs):
        world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 10)
        return
    world.run_until(lambda: joiner.stopped is not None, 5)
    assert joiner.stopped is not None and joiner.stopped.code == 4
    assert (
        "the run was founded with --straggler" in joiner.stopped.reason
        and "leave the option out" in joiner.stopped.reason
    )
    advance(world, peers_of(world)[0], 5)


def test_scripts_that_change_gradients_by_hand_are_refused() -> None:
    world = World(0)
    world.straggler_limit_s, world.by_hand = LIMIT_S, True
    founder = world.found(0)
    world.run_until(lambda: founder.stopped is not None, 5)
    assert founder.stopped is not None and founder.stopped.code == 4
    assert "--straggler wait" in founder.stopped.reason and "run.sync()" in founder.stopped.reason
