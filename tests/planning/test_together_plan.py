"""Joiners that serve each other: complete plans, near the bound, near the linear program, and played through."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict

import numpy as np
import pytest
from scipy.optimize import linprog

from chaos.core.errors import ChaosError
from chaos.planning.shards import Donor
from chaos.planning.together import Joiner, Together, plan

SIZE = 1000


def donor(name: str, rate: float) -> Donor:
    return Donor(name=name, bandwidth=rate)


def joiner(name: str, uplink: float, downlink: float | None = None, holds: frozenset[int] = frozenset()) -> Joiner:
    return Joiner(name=name, uplink=uplink, downlink=downlink, holds=holds)


def random_case(seed: int, holding: bool) -> tuple[int, list[Donor], list[Joiner]]:
    """1 to 4 donors and 1 to 8 joiners with uplinks from nothing to more than all donors together."""
    chance = random.Random(seed)
    count = chance.randint(200, 400)
    donors = [donor(f"d{i}", chance.choice([0, 20, 100, chance.randint(1, 100)]) * SIZE) for i in range(3)]
    donors.append(donor("good", 50 * SIZE))
    joiners = []
    for i in range(chance.randint(1, 8)):
        share = chance.choice([0.0, 0.0, 0.2, 0.9]) if holding else 0.0
        holds = frozenset(shard for shard in range(count) if chance.random() < share)
        downlink = chance.choice([None, None, 400.0 * SIZE, 60.0 * SIZE])
        joiners.append(joiner(f"j{i}", chance.choice([0, 20, 50, 200]) * SIZE, downlink, holds))
    return count, donors, joiners


def check(made: Together, count: int, donors: list[Donor], joiners: list[Joiner]) -> None:
    """Every joiner asks once for each shard that it lacks, of somebody who has it or gets it from somebody else."""
    for one in joiners:
        asked = [shard for shards in made.asks[one.name].values() for shard in shards]
        assert sorted(asked) == [shard for shard in range(count) if shard not in one.holds]
    by_name = {one.name: one for one in joiners}
    source = {
        (one.name, shard): sender for one in joiners for sender, of in made.asks[one.name].items() for shard in of
    }
    for (_, shard), sender in source.items():
        if sender in by_name:
            assert by_name[sender].uplink >= 1
            first = source.get((sender, shard), "")
            assert shard in by_name[sender].holds or first not in by_name or shard in by_name[first].holds, "one hop"
        else:
            assert any(one.name == sender and one.rate for one in donors)


def loads(made: Together) -> dict[str, int]:
    load: dict[str, int] = defaultdict(int)
    for of in made.asks.values():
        for sender, shards in of.items():
            load[sender] += len(shards)
    return load


@pytest.mark.parametrize("seed", range(150))
def test_fresh_joiners_come_close_to_the_bound(seed: int) -> None:
    """The bound of the docs, to within what the last shards' copies cost."""
    count, donors, joiners = random_case(seed, holding=False)
    made = plan(count, SIZE, donors, joiners)
    check(made, count, donors, joiners)
    total, pool, k = count * SIZE, sum(one.rate for one in donors), len(joiners)
    narrow = min((one.downlink for one in joiners if one.downlink), default=float("inf"))
    bound = max(total / narrow, total / pool, k * total / (pool + sum(one.uplink for one in joiners)))
    assert made.limit_s == pytest.approx(bound)
    slowest = min([pool, *(one.uplink for one in joiners if one.uplink)])
    assert bound <= made.finish_s * (1 + 1e-12)
    assert made.finish_s <= bound + 2 * SIZE / slowest, f"seed {seed}: {made.reason}"


@pytest.mark.parametrize("seed", range(100))
def test_joiners_that_hold_something_come_close_to_the_linear_program(seed: int) -> None:
    count, donors, joiners = random_case(seed, holding=True)
    made = plan(count, SIZE, donors, joiners)
    check(made, count, donors, joiners)
    best = divisible_s(count, sum(one.rate for one in donors), joiners)
    assert made.limit_s <= best * (1 + 1e-6) + 1e-9
    assert best <= made.finish_s * (1 + 1e-6) + 1e-9
    assert made.finish_s <= 1.1 * best + SIZE / 20_000, f"seed {seed}: {made.finish_s:.3f} s, possible {best:.3f} s"


def divisible_s(count: int, pool: float, joiners: list[Joiner]) -> float:
    """The least time if shards could be divided and relays chosen at will: a linear program per class of shards.

    Variables: per class and first receiver what the donors send there, per class, first receiver and sender
    (the donors, a holder, or that receiver) the further copies; the time.
    """
    rates = [pool, *(one.uplink for one in joiners)]
    classes: dict[tuple[int, ...], int] = defaultdict(int)
    for shard in range(count):
        classes[tuple(i for i, one in enumerate(joiners) if shard in one.holds)] += 1
    columns: list[tuple[int, list[tuple[int, float]]]] = []  # class, (sender, copies) per shard
    names = list(classes)
    for c, holders in enumerate(names):
        wanting = [i for i in range(len(joiners)) if i not in holders]
        if not wanting:
            continue
        copies = len(wanting)
        columns.append((c, [(0, copies)]))
        columns += [(c, [(1 + h, copies)]) for h in holders]
        columns += [(c, [(s, 1), (1 + i, copies - 1)]) for i in wanting for s in (0, *(1 + h for h in holders))]
    cost = np.append(np.zeros(len(columns)), 1.0)
    uplinks = np.zeros((len(rates), len(columns) + 1))
    demand = np.zeros((len(names), len(columns) + 1))
    for at, (c, senders) in enumerate(columns):
        demand[c, at] = 1
        for sender, copies in senders:
            uplinks[sender, at] += copies * SIZE
    uplinks[:, -1] = [-rate for rate in rates]
    wanted = [classes[name] if any(i not in name for i in range(len(joiners))) else 0 for name in names]
    time = linprog(cost, A_ub=uplinks, b_ub=np.zeros(len(rates)), A_eq=demand, b_eq=wanted).fun
    lacking = [(count - len(one.holds)) * SIZE / one.downlink for one in joiners if one.downlink]
    return max([time, *lacking])


def play(made: Together, count: int, donors: list[Donor], joiners: list[Joiner]) -> float:
    """Each sender sends one shard at a time, to the joiner of whose part it has sent the least, of what it has."""
    rates = {one.name: one.rate for one in donors if one.rate} | {one.name: one.uplink for one in joiners}
    has = {one.name: set(one.holds) for one in joiners} | {one.name: set(range(count)) for one in donors}
    queues: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for to, of in made.asks.items():
        for sender, shards in of.items():
            queues[sender][to] = list(shards)
    total = {(sender, to): len(shards) for sender, of in queues.items() for to, shards in of.items()}
    events: list[tuple[float, str, str, int]] = []
    idle, now = set(queues), 0.0

    def start() -> None:
        for sender in sorted(idle):
            able = []
            for to, queue in queues[sender].items():
                at = next((at for at, shard in enumerate(queue) if shard in has[sender]), None)
                if at is not None:
                    able.append((1 - len(queue) / total[sender, to], to, at))
            if able:
                _, to, at = min(able)
                heapq.heappush(events, (now + SIZE / rates[sender], sender, to, queues[sender][to].pop(at)))
                idle.discard(sender)

    start()
    while events:
        now, sender, to, shard = heapq.heappop(events)
        has[to].add(shard)
        idle.add(sender)
        start()
    assert all(has[one.name] == set(range(count)) for one in joiners)
    return now


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_on_an_equal_mesh_many_take_close_to_the_time_of_one(k: int) -> None:
    donors = [donor(f"d{i}", 100 * SIZE) for i in range(4)]
    count = 600
    alone = count / 400
    made = plan(count, SIZE, donors, [joiner(f"j{i}", 400 * SIZE) for i in range(k)])
    took = play(made, count, donors, [joiner(f"j{i}", 400 * SIZE) for i in range(k)])
    assert made.finish_s == pytest.approx(max(alone, k * count / (400 + 400 * k)), rel=0.02)
    assert took <= 1.1 * alone
    direct = k * alone
    assert k == 1 or took < 0.6 * direct


@pytest.mark.parametrize("seed", range(40))
def test_played_through_it_takes_what_is_promised(seed: int) -> None:
    """Relays have to wait for what they relay; that costs the beginning and the end, not more."""
    count, donors, joiners = random_case(seed, holding=seed % 2 == 1)
    joiners = [joiner(one.name, one.uplink, None, one.holds) for one in joiners]
    made = plan(count, SIZE, donors, joiners)
    took = play(made, count, donors, joiners)
    assert made.limit_s <= took * (1 + 1e-9)
    assert took <= 1.05 * made.finish_s + 0.1, f"seed {seed}: {took:.3f} s, planned {made.finish_s:.3f} s"


def test_a_slow_joiner_relays_little() -> None:
    joiners = [joiner("fast", 300 * SIZE), joiner("slow", 10 * SIZE), joiner("mute", 0)]
    made = plan(310, SIZE, [donor("d", 310 * SIZE)], joiners)
    load = loads(made)
    assert load["fast"] > 20 * load["slow"] > 0 and "mute" not in load
    assert made.reason == (
        "464 of 930 copies come from joiners; 1.503 s, and all uplinks together alone would take 1.500 s"
    )


def test_what_a_joiner_holds_spares_the_donors() -> None:
    joiners = [joiner("old", 100 * SIZE, holds=frozenset(range(100))), joiner("new", 100 * SIZE)]
    made = plan(100, SIZE, [donor("d", 100 * SIZE)], joiners)
    assert made.asks["old"] == {} and loads(made) == {"d": 50, "old": 50}


def test_a_hundred_thousand_shards_for_eight_are_planned_in_runs() -> None:
    joiners = [joiner(f"j{i}", 100 * SIZE) for i in range(8)]
    made = plan(100_000, SIZE, [donor("d", 400 * SIZE)], joiners)
    check(made, 100_000, [donor("d", 400 * SIZE)], joiners)
    assert made.finish_s <= 1.01 * made.limit_s


def test_senseless_input() -> None:
    good, one = [donor("d", 1000)], [joiner("j", 1000)]
    with pytest.raises(ChaosError, match="0 shards of 1000 bytes"):
        plan(0, SIZE, good, one)
    with pytest.raises(ChaosError, match="at least one joiner"):
        plan(1, SIZE, good, [])
    with pytest.raises(ChaosError, match="a name of its own"):
        plan(1, SIZE, good, [joiner("d", 1)])
    with pytest.raises(ChaosError, match="joiner j holds a shard beyond the 3"):
        plan(3, SIZE, good, [joiner("j", 1, holds=frozenset([3]))])
    with pytest.raises(ChaosError, match="no donor has bandwidth"):
        plan(3, SIZE, [donor("d", 0)], one)
    with pytest.raises(ChaosError, match="joiner j: uplink is -1"):
        joiner("j", -1)
    with pytest.raises(ChaosError, match="joiner j: downlink is 0"):
        joiner("j", 1, 0)
