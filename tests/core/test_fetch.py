"""Pulling a snapshot while donors slow down, die, lie, lose their links or come late."""

from __future__ import annotations

import pytest

from chaos.core.arrivals import SIDE_BY_SIDE, Arrivals
from chaos.core.learner import Phase
from chaos.sim.bandwidth import Pipes
from chaos.sim.peer import SimPeer
from chaos.sim.symbols import peer_id
from chaos.sim.world import World
from tests.core.test_outcomes import check, start, traces

SHARD = 10_000
STATE = 100 * SHARD


def wide_run(uplinks: list[float], joiner_bandwidth: float = 1e7, seed: int = 0) -> tuple[World, list[SimPeer]]:
    """Members whose uplinks (B/s) are those given, on a network where the joiner's downlink is the rest's limit."""
    world, peers = start(len(uplinks), seed)
    world.state_bytes, world.shard_bytes = STATE, SHARD
    for peer in peers:
        object.__setattr__(peer.node.ctx.config, "shard_bytes", SHARD)
    special = {peer_id(index): rate for index, rate in enumerate(uplinks)}
    world.pipes = Pipes(world.heap, joiner_bandwidth, special)
    world.shards_sent = 0
    return world, peers


def join(world: World, index: int) -> SimPeer:
    joiner = world.join(index, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.FETCH, 10)
    return joiner


def fetched(world: World, joiner: SimPeer, limit: float = 60.0) -> dict[str, object]:
    """Runs until it is done; the trace's line about it."""
    world.run_until(lambda: bool(traces(joiner, "fetched_state")), limit)
    return traces(joiner, "fetched_state")[-1]


def test_a_calm_join_asks_for_each_shard_once():
    world, _ = wide_run([1e6] * 4)
    joiner = join(world, 4)
    line = fetched(world, joiner)
    assert world.shards_sent == 100 and line["again"] == 0
    assert sum(line["sources"].values()) == STATE
    assert line["seconds"] < 1.2 * STATE / 4e6
    world.run_until(lambda: joiner in world.members(), 10)
    check(world)


def test_uneven_donors_end_together_although_nobody_knew_their_rates():
    rates = [2e5, 4e5, 1e6, 2e6]
    world, _ = wide_run(rates)
    joiner = join(world, 4)
    line = fetched(world, joiner)
    assert line["seconds"] < 1.25 * STATE / sum(rates) + 0.25, "the equal split would take 1.25 s"
    assert world.shards_sent <= 100 + 4, "what was begun is not sent twice, but for the last few"


def test_a_state_that_comes_in_a_tenth_of_a_second_is_planned_anew_in_time():
    """The first look came after 0.25 s: until then the slow donor had a half of it, and needed 1 s."""
    world, _ = wide_run([5e5, 9.5e6])
    joiner = join(world, 2)
    line = fetched(world, joiner)
    assert line["seconds"] < 1.1 * STATE / 1e7 + 2 * SHARD / 5e5 + 0.06


def test_a_donor_that_slows_down_keeps_only_what_it_can_send():
    """One shard every 4 s was progress enough to keep a quarter of the state for minutes."""
    world, peers = wide_run([5e5] * 4)
    joiner = join(world, 4)
    world.run(world.now + 0.2)
    world.pipes._special[peers[1].id] = SHARD / 4
    line = fetched(world, joiner)
    assert line["seconds"] < 0.2 + 1.1 * (STATE - 4e5) / 1.5e6 + 2.0
    assert world.shards_sent <= 110


def test_a_donor_that_dies_costs_only_what_it_had_still_to_send():
    world, peers = wide_run([5e5] * 4)
    joiner = join(world, 4)
    world.run(world.now + 0.25)
    before = world.shards_sent
    world.kill(peers[2])
    line = fetched(world, joiner)
    left = STATE - before * SHARD
    assert line["seconds"] < 0.25 + 1.1 * left / 1.5e6 + 0.5
    assert world.shards_sent <= 104
    world.run_until(lambda: joiner in world.members(), 10)
    check(world)


def test_a_lost_link_moves_its_shards_at_once_and_back_when_it_is_there_again():
    world, peers = wide_run([2e5] * 3)
    joiner = join(world, 3)
    world.run(world.now + 0.3)
    joiner._route = lambda: None  # the others would relay
    world.cut_link(1, 3)
    world.run(world.now + 0.1)
    queues = {peer: len(donor.queue) for peer, donor in joiner.node.learner._fetch._donors.items()}
    assert queues[peers[1].id] <= 1 and min(queues[peers[0].id], queues[peers[2].id]) > 20
    world.restore_link(1, 3)
    world.run(world.now + 0.6)
    assert len(joiner.node.learner._fetch._donors[peers[1].id].queue) > 10
    fetched(world, joiner)
    world.run_until(lambda: joiner in world.members(), 10)
    check(world)


def test_a_donor_that_comes_late_takes_its_share():
    world, peers = wide_run([2e5] * 3)
    late = peers[2].node.donor
    offer, late._offer = late._offer, lambda: None
    joiner = join(world, 3)
    world.run(world.now + 0.3)
    assert peers[2].id not in joiner.node.learner._donors
    late._offer = offer
    late._offer()
    line = fetched(world, joiner)
    assert line["sources"]["p2"] > STATE / 5
    assert world.shards_sent <= 103


def test_a_corrupt_shard_comes_from_another_donor_and_its_sender_is_reported():
    world, _ = wide_run([1e6] * 3)
    world.corrupt_shards = 1
    joiner = join(world, 3)
    line = fetched(world, joiner)
    bad = traces(joiner, "corrupt_shard")
    assert len(bad) == 1
    assert joiner.node.status()["corrupt_shards"] == {bad[0]["peer"]: 1}
    assert bad[0]["peer"] not in traces(joiner, "shard_plan")[-1]["shards"]
    assert sum(line["sources"].values()) == STATE
    world.run_until(lambda: joiner in world.members(), 10)
    check(world)


def test_a_donor_that_says_nothing_is_asked_once_more_and_then_given_up():
    world, peers = wide_run([1e6] * 2)
    mute = peers[1]
    mute._send_next = lambda _dst, _serving: None
    joiner = join(world, 2)
    fetched(world, joiner)
    assert traces(joiner, "fetched_state")[-1]["sources"] == {"p0": STATE}
    world.run_until(lambda: joiner in world.members(), 10)
    other = join(world, 3)
    for donor in (peers[0], joiner):
        donor._send_next = lambda _dst, _serving: None
    world.run_until(lambda: len(traces(other, "slow_donor")) >= 2, 30)
    peers[0].__dict__.pop("_send_next")
    world.run_until(lambda: other in world.members(), 60)
    check(world)


# --- the rate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e4, 1e6, 1e8])
def test_a_steady_rate_is_found(rate: float):
    arrivals = Arrivals(123.0)
    arrivals.awaited(0.0, 0.05)
    now = 0.05
    for _ in range(40):
        now += SHARD / rate
        arrivals.came(now, SHARD)
    expected = min(rate, 40 * SHARD / max(40 * SHARD / rate, 0.01))
    assert arrivals.rate(now, SHARD) == pytest.approx(expected, rel=0.01)


def test_a_silent_donor_counts_for_ever_less_and_an_idle_one_keeps_its_rate():
    arrivals = Arrivals(1e6)
    arrivals.awaited(0.0, 0.0)
    assert arrivals.rate(10.0, SHARD) == SIDE_BY_SIDE * SHARD / 10.0
    arrivals.came(10.0, SHARD)
    arrivals.idle()
    assert arrivals.rate(1000.0, SHARD) == SHARD / 10.0
    assert arrivals.silent_s(1000.0) == 0.0


def test_a_link_that_got_faster_is_believed_within_the_window():
    arrivals = Arrivals(1e6)
    arrivals.awaited(0.0, 0.0)
    for second in range(1, 6):
        arrivals.came(float(second), SHARD)
    for tenth in range(1, 31):
        arrivals.came(5.0 + tenth / 10, SHARD)
    assert arrivals.rate(8.0, SHARD) == pytest.approx(10 * SHARD, rel=0.06)
