"""How a learner becomes a member: when its state is compared, and what its first step counts."""

from __future__ import annotations

import pytest

from chaos.core.context import Role
from chaos.core.learner import Phase
from chaos.core.worker_desk import COPY_RATE
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, start, traces


@pytest.mark.parametrize(
    ("shard_s", "copy_s", "ahead"),
    [(0.5, 0.001, 0), (0.5, 1.0, 1), (0.0, 0.001, 1)],
    ids=["at once", "a step would wait for the copy", "it has made no step of its own"],
)
def test_a_joiner_is_compared_at_once_where_that_can_be(shard_s: float, copy_s: float, ahead: int) -> None:
    """Where a step takes seconds, waiting for its end cost the joiner a second step: that which was open by then."""
    world, peers = start(3)
    world.compute, world.shard_s = 1.0, shard_s
    joiner = world.join(3, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.LOAD, 20)
    finished = peers[0].node.steps.finished
    for peer in peers:
        peer.node.donor.state_bytes = int(copy_s * COPY_RATE)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 20)
    assert traces(joiner, "digests_equal")[-1]["step"] == finished + ahead
    assert joiner.node.ctx.view.first_step == finished + ahead + 2, "one step is under way"
    advance(world, joiner, 3, limit=30)
    check(world)


def test_a_donor_that_computes_for_long_is_waited_for() -> None:
    """It copies its state at the end of its computing; meanwhile the learner asked one after the other, every 15 s."""
    world, _ = start(2)
    world.compute, world.shard_s = 20.0, 8.0
    joiner = world.join(2, 0)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 400)
    assert [line["phase"] for line in traces(joiner, "learner")].count("verify") == 1


def first_step_of(world: World, joiner: SimPeer, at: SimPeer) -> int:
    """Its first step as a member, which is open now and whose samples its worker computes."""
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 20)
    first = joiner.node.ctx.view.first_step
    world.run_until(lambda: joiner.node.steps.contributed(first) or at.node.steps.finished >= first, 5)
    return first


def weight_of(world: World, joiner: SimPeer, at: SimPeer, step: int) -> float:
    world.run_until(lambda: step in at.node.steps.history, 10)
    return dict(at.node.steps.history[step].contributions)[joiner.id].weight


@pytest.mark.parametrize("seed", range(4))
def test_a_new_member_has_samples_in_its_first_step(seed: int) -> None:
    world, (founder, _) = start(2, seed)
    joiner = world.join(2, 0)
    first = first_step_of(world, joiner, founder)
    assert weight_of(world, joiner, founder, first) > 0
    advance(world, founder, 20)
    check(world)


@pytest.mark.parametrize("victim", ["another new member", "an old one"])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_new_member_computed_for_a_void_attempt_counts_once(seed: int, victim: str) -> None:
    """It is repeated under a view that did not let it in; samples that were granted anew would count twice."""
    world, (founder, other) = start(2, seed)
    world.samples = 200
    joiners = [world.join(2, 0), world.join(3, 0)]
    world.run_until(lambda: len(world.members()) == 4, 20)
    entered = {p.id: p.node.ctx.view.first_leases for p in joiners}
    one = joiners[1]
    first = first_step_of(world, one, founder)
    world.kill(joiners[0] if victim == "another new member" else other)
    assert weight_of(world, one, founder, first) > 0, entered
    advance(world, founder, 60, limit=30)
    check(world)
