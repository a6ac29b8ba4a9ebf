"""Donors behind other peers and shared links: the quickest flow and its rounding against slow exact programs."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction

import pytest

from chaos.core.errors import ChaosError
from chaos.planning import shards
from chaos.planning.flow import FlowPlan, Link, plan
from chaos.planning.flow_oracle import delivered, whole_shards
from chaos.planning.quickest import Arc, quickest
from chaos.planning.shards import Donor, ShardRequest

MB = 10**6


def link(source: str, target: str, rate: float, latency_s: float = 0.0) -> Link:
    return Link(source=source, target=target, bandwidth=rate, latency_s=latency_s)


def request(donors: tuple[Donor, ...], state: int = 60 * MB, size: int = MB, downlink: float | None = None):
    return ShardRequest(state_bytes=state, chain=(size,), donors=donors, downlink=downlink)


# --- the flow ---------------------------------------------------------------------------------------------


def random_arcs(chance: random.Random, nodes: int, latest: int, most: int) -> list[Arc]:
    """Mostly forwards from node 0 to node 1, with equal latencies, dead ends and circles among them."""
    arcs = []
    for _ in range(chance.randint(1, 9)):
        tail, head = chance.sample(range(nodes), 2)
        if head != 0 and tail != 1:
            arcs.append(Arc(tail, head, chance.randint(0, most), chance.randint(0, latest)))
    return arcs


@pytest.mark.parametrize("batch", range(10))
def test_no_rates_that_change_over_time_deliver_more(batch: int) -> None:
    """400 networks, 0 to 7 ticks each: what the augmentations say against the time-expanded linear program."""
    reached = 0
    for seed in range(40 * batch, 40 * batch + 40):
        arcs = random_arcs(random.Random(seed), 5, 3, 5)
        found = quickest(5, arcs, 0, 1, 10**12)  # so much that all augmentations are made
        for horizon in (1, 3, 5, 7):
            promised = sum(amount * max(0, horizon - length) for length, amount in found.steps) if found else 0
            assert promised == pytest.approx(delivered(5, arcs, 0, 1, horizon), abs=1e-7), f"seed {seed}: {arcs}"
            reached += promised > 0
    assert reached > 10


@pytest.mark.parametrize("seed", range(200))
def test_the_paths_fit_through_the_network_and_reach_the_time(seed: int) -> None:
    chance = random.Random(seed)
    arcs = random_arcs(chance, 6, 4 * 10**8, 50)
    volume = chance.randint(1, 100)
    found = quickest(6, arcs, 0, 1, volume)
    if found is None:
        return
    room = [arc.rate for arc in arcs]
    for path in found.paths:
        nodes = [0, *(arcs[at].head for at in path.arcs)]
        assert [arcs[at].tail for at in path.arcs] == nodes[:-1]
        assert nodes[-1] == 1 and len(set(nodes)) == len(nodes)
        for at in path.arcs:
            room[at] -= path.rate
    assert min(room) >= 0, f"seed {seed}"
    arrived = sum(path.rate * (found.time - path.latency) for path in found.paths)
    assert arrived == Fraction(volume * 10**9), f"seed {seed}: the rates don't reach the time that is promised"


def test_a_flow_may_have_to_take_back_what_it_sent() -> None:
    """The shortest way 0-2-3-1 blocks both long ones; the maximum needs it undone."""
    arcs = [Arc(0, 2, 1, 0), Arc(2, 3, 1, 0), Arc(3, 1, 1, 0), Arc(0, 3, 1, 5), Arc(2, 1, 1, 5)]
    found = quickest(4, arcs, 0, 1, 100)
    assert found is not None
    assert found.steps == ((0, 1), (10, 1))
    assert sorted((path.arcs, path.latency) for path in found.paths) == [((0, 4), 5), ((3, 2), 5)]


# --- whole shards -----------------------------------------------------------------------------------------


def random_case(seed: int) -> tuple[ShardRequest, list[Link]]:
    """2 to 4 donors: straight to the joiner, behind a gateway, or behind each other."""
    chance = random.Random(seed)
    donors = tuple(
        Donor(
            name=f"d{i}",
            bandwidth=chance.choice([10, 20, chance.randint(1, 40)]) * MB,
            latency_s=chance.choice([0.0, 0.0, 0.05]),
            overhead_s=chance.choice([0.0, 0.0, 0.01]),
        )
        for i in range(chance.randint(2, 4))
    )
    links = [link("gate", "joiner", chance.randint(5, 40) * MB, chance.choice([0.0, 0.02]))]
    for donor in donors:
        target = chance.choice(["gate", "joiner", donors[0].name])
        if target != donor.name:
            links.append(link(donor.name, target, chance.randint(5, 50) * MB, chance.choice([0.0, 0.1, 0.3])))
    links.append(link(donors[0].name, "joiner", 10 * MB))
    downlink = chance.choice([None, 25.0 * MB])
    return request(donors, chance.randint(1, 60) * MB, downlink=downlink), links


def as_arcs(asked: ShardRequest, links: list[Link]) -> tuple[int, list[Arc]]:
    """The same network for the oracle, put together here once more: 0 source, 1 sink, 2 joiner."""
    ends = [name for x in links for name in (x.source, x.target)]
    unique = dict.fromkeys(["joiner", *(donor.name for donor in asked.donors), *ends])
    names = {name: at for at, name in enumerate(unique, 2)}
    size = asked.chain[0]
    arcs = [
        Arc(0, names[d.name], int(size / (d.overhead_s + size / d.rate) + 1e-6), round(d.latency_s * 1e9))
        for d in asked.donors
    ]
    arcs += [Arc(names[x.source], names[x.target], int(x.bandwidth), round(x.latency_s * 1e9)) for x in links]
    arcs.append(Arc(2, 1, int(asked.downlink or 1e15), 0))
    return len(names) + 2, arcs


def check_against_links(made: FlowPlan, asked: ShardRequest, links: list[Link]) -> None:
    """The plan played through: no link carries more than it can, and every way is done in time."""
    load: dict[tuple[str, str], float] = defaultdict(float)
    for route in made.routes:
        latency = next(d.latency_s for d in asked.donors if d.name == route.via[0])
        for step in zip(route.via, route.via[1:], strict=False):
            load[step] += route.rate
            latency += min(x.latency_s for x in links if (x.source, x.target) == step)
        assert latency + route.count * made.shard_bytes / route.rate <= made.finish_s * (1 + 1e-6) + 1e-6
    for (source, target), rate in load.items():
        assert rate <= sum(x.bandwidth for x in links if (x.source, x.target) == (source, target))
    assert sum(route.rate for route in made.routes) <= (asked.downlink or 1e15)


@pytest.mark.parametrize("batch", range(10))
def test_rounding_costs_no_more_than_a_shard_per_way(batch: int) -> None:
    """150 networks: between the divisible bound and the bound plus the rounding, with the true optimum inside."""
    for seed in range(15 * batch, 15 * batch + 15):
        asked, links = random_case(seed)
        made = plan(asked, links, "joiner")
        check_against_links(made, asked, links)
        number = sum(made.counts.values())
        assert number == -(-asked.state_bytes // made.shard_bytes)
        nodes, arcs = as_arcs(asked, links)
        flow = quickest(nodes, arcs, 0, 1, number * made.shard_bytes)
        assert flow is not None
        best = whole_shards(arcs, 0, 1, made.shard_bytes, number)
        allowed = len(flow.paths) * made.shard_bytes / sum(path.rate for path in flow.paths)
        assert made.flow_s == pytest.approx(float(flow.time) / 1e9, rel=1e-6), f"seed {seed}"
        assert made.flow_s <= best * (1 + 1e-6) + 1e-6, f"seed {seed}"
        assert best <= made.finish_s * (1 + 1e-5), f"seed {seed}"
        assert made.finish_s <= (made.flow_s + allowed) * (1 + 1e-6), f"seed {seed}"
        assert made.limit_s <= made.flow_s * (1 + 1e-9), f"seed {seed}"


@pytest.mark.parametrize("seed", range(100))
def test_where_nothing_is_shared_it_is_the_plan_of_independent_donors(seed: int) -> None:
    chance = random.Random(seed)
    donors = [Donor(name="good", bandwidth=20 * MB)]
    for i in range(chance.randint(1, 5)):
        latency_s = chance.choice([0.0, 0.25, 1.5])
        donors.append(Donor(name=f"d{i}", bandwidth=chance.randint(0, 60) * MB, latency_s=latency_s))
    asked = request(tuple(donors), chance.randint(1, 200) * MB)
    made = plan(asked, [link(donor.name, "joiner", 1e12) for donor in donors], "joiner")
    plain = shards.plan(asked)
    assert made.finish_s == pytest.approx(plain.finish_s, rel=1e-6), f"seed {seed}"
    assert made.limit_s == pytest.approx(plain.limit_s), f"seed {seed}"


# --- what people draw on a board --------------------------------------------------------------------------


def test_two_donors_behind_one_uplink_share_it() -> None:
    donors = (
        Donor(name="a", bandwidth=20 * MB),
        Donor(name="b", bandwidth=20 * MB),
        Donor(name="c", bandwidth=10 * MB),
    )
    links = [link("a", "site", 1e9), link("b", "site", 1e9), link("site", "j", 20 * MB), link("c", "j", 1e9)]
    made = plan(request(donors), links, "j")
    assert made.counts["c"] == 20 and made.counts["a"] + made.counts["b"] == 40
    assert made.finish_s == made.limit_s == 2.0
    alone = shards.plan(request(donors))
    assert alone.counts == {"a": 24, "b": 24, "c": 12}, "which would take the uplink 2.4 s"


def test_a_donor_behind_another_peer_sends_what_that_link_has_left() -> None:
    near, far = Donor(name="near", bandwidth=10 * MB), Donor(name="far", bandwidth=50 * MB)
    links = [link("far", "near", 30 * MB, 0.1), link("near", "j", 25 * MB, 0.1)]
    made = plan(request((near, far), 50 * MB), links, "j")
    assert sorted(route.via for route in made.routes) == [("far", "near", "j"), ("near", "j")]
    assert sum(route.rate for route in made.routes) <= 25e6
    assert made.flow_s == pytest.approx(0.1 + 50 / 25 + 0.1 * 15 / 25)
    assert made.finish_s <= made.flow_s + 2 / 25


def test_two_ways_from_one_donor() -> None:
    links = [link("a", "x", 10 * MB), link("x", "j", 10 * MB), link("a", "j", 20 * MB)]
    made = plan(request((Donor(name="a", bandwidth=100 * MB),)), links, "j")
    assert made.counts == {"a": 60} and made.finish_s == 2.0
    assert {route.via: route.count for route in made.routes} == {("a", "j"): 40, ("a", "x", "j"): 20}


def test_the_downlink_is_a_link_like_any_other() -> None:
    donors = (Donor(name="a", bandwidth=20 * MB), Donor(name="late", bandwidth=20 * MB, latency_s=1.0))
    links = [link("a", "j", 1e9), link("late", "j", 1e9)]
    made = plan(request(donors, downlink=30 * MB), links, "j")
    assert made.flow_s == pytest.approx((60 + 10) / 30), "one second at 20, then at 30 MB/s"
    assert made.limit_s == 2.0


@pytest.mark.parametrize("batch", range(4))
def test_in_a_tree_of_links_no_whole_shards_finish_earlier(batch: int) -> None:
    """60 trees: donors behind gateways behind gateways, with ties, costs and a downlink. The optimum itself."""
    for seed in range(15 * batch, 15 * batch + 15):
        chance = random.Random(seed)
        donors = tuple(
            Donor(
                name=f"d{i}",
                bandwidth=chance.choice([5, 20, chance.randint(1, 40)]) * MB,
                latency_s=chance.choice([0.0, 0.05, 0.2]),
                overhead_s=chance.choice([0.0, 0.02]),
            )
            for i in range(chance.randint(1, 5))
        )
        inner = [link(d.name, chance.choice(["x", "y", "joiner"]), 50 * MB, chance.choice([0.0, 0.1])) for d in donors]
        links = [*inner, link("x", "y", 15 * MB, 0.03), link("y", "joiner", chance.choice([12, 30]) * MB)]
        asked = request(donors, chance.randint(1, 25) * MB, downlink=chance.choice([None, 25.0 * MB]))
        made = plan(asked, links, "joiner")
        check_against_links(made, asked, links)
        _, arcs = as_arcs(asked, links)
        best = whole_shards(arcs, 0, 1, MB, sum(made.counts.values()))
        assert made.finish_s == pytest.approx(best, rel=2e-6), f"seed {seed}"


def test_a_donor_that_gets_no_shard_does_not_hold_back_part_of_a_link() -> None:
    donors = (Donor(name="a", bandwidth=10 * MB, latency_s=0.001), Donor(name="b", bandwidth=1 * MB))
    links = [link("a", "gate", 1e9), link("b", "gate", 1e9), link("gate", "j", 10 * MB)]
    made = plan(request(donors, MB), links, "j")
    assert made.counts == {"a": 1, "b": 0} and made.finish_s == pytest.approx(0.101)


def test_costs_per_shard_choose_a_larger_size() -> None:
    donors = (Donor(name="a", bandwidth=10 * MB, overhead_s=0.1),)
    asked = replace(request(donors), chain=(MB, 4 * MB, 20 * MB))
    assert plan(asked, [link("a", "j", 10 * MB)], "j").shard_bytes == 20 * MB


def test_senseless_networks() -> None:
    donors = (Donor(name="a", bandwidth=10 * MB),)
    with pytest.raises(ChaosError, match="no way with bandwidth leads from a to j"):
        plan(request(donors), [link("j", "a", MB)], "j")
    with pytest.raises(ChaosError, match="no way with bandwidth"):
        plan(request(donors), [link("a", "j", 0.5)], "j")
    with pytest.raises(ChaosError, match="a is a donor and the joiner"):
        plan(request(donors), [link("b", "a", MB)], "a")
    with pytest.raises(ChaosError, match="link from a to itself"):
        link("a", "a", 1)
    for field, value in (("bandwidth", -1.0), ("bandwidth", float("nan")), ("latency_s", float("inf"))):
        with pytest.raises(ChaosError, match="link a to b: "):
            Link(**{"source": "a", "target": "b", "bandwidth": 1.0, field: value})
