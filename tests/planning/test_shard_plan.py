"""The shard plan against brute force, mixed-integer programs and the plain one-by-one rule; and what it promises."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.core.errors import ChaosError
from chaos.planning.shards import Donor, ShardRequest, assign, plan
from chaos.planning.shards_oracle import all_sizes_at_once, brute_force, mixed_integer

MB = 10**6

# Few distinct values, so that ties are frequent; a donor of rate 0 and a very slow one among them.
rates = st.sampled_from([0, 0.5, 1, 10, 1000, 1500, 2000, 4000, 1e9])
latencies = st.sampled_from([0.0, 0.25, 0.5, 1.0, 7.0, 1e6])
overheads = st.sampled_from([0.0, 0.0, 0.25, 0.5, 2.0])


@st.composite
def donors_of(draw: st.DrawFn, most: int, free: bool = False) -> tuple[Donor, ...]:
    """1 to `most` donors, at least one of them with bandwidth; `free`: without costs per shard."""
    count = draw(st.integers(1, most))
    donors = [
        Donor(
            name=f"d{i}",
            bandwidth=draw(rates),
            latency_s=draw(latencies),
            overhead_s=0.0 if free else draw(overheads),
            cap=draw(st.none() | rates),
        )
        for i in range(count - 1)
    ]
    good = Donor(name="good", bandwidth=2000, latency_s=draw(latencies), overhead_s=0.0)
    donors.insert(draw(st.integers(0, count - 1)), good)
    return tuple(donors)


@st.composite
def requests(draw: st.DrawFn) -> ShardRequest:
    chain = [draw(st.sampled_from([500, 700, 1000]))]
    for _ in range(draw(st.integers(0, 2))):
        chain.append(chain[-1] * draw(st.integers(2, 3)))
    return ShardRequest(
        state_bytes=draw(st.integers(1, 7 * chain[0])),
        chain=tuple(chain),
        donors=draw(donors_of(4, free=draw(st.booleans()))),
        downlink=draw(st.none() | st.sampled_from([100.0, 3000.0])),
    )


@settings(deadline=None, max_examples=300)
@given(requests())
def test_no_way_of_dealing_out_finishes_earlier(request_: ShardRequest) -> None:
    assert plan(request_).finish_s == brute_force(request_)


@settings(deadline=None, max_examples=300)
@given(requests())
def test_what_a_plan_promises(request_: ShardRequest) -> None:
    made = plan(request_)
    assert made.shard_bytes in request_.chain
    assert list(made.counts) == [donor.name for donor in request_.donors]
    assert sum(made.counts.values()) == math.ceil(request_.state_bytes / made.shard_bytes)
    used = [donor for donor in request_.donors if made.counts[donor.name]]
    assert all(donor.rate > 0 for donor in used)
    donors_s = max(donor.finish_s(made.counts[donor.name], made.shard_bytes) for donor in used)
    downlink_s = request_.state_bytes / (request_.downlink or math.inf)
    assert made.finish_s == pytest.approx(max(donors_s, downlink_s), rel=1e-12)
    assert made.limit_s <= made.finish_s * (1 + 1e-12)
    assert "\n" not in made.reason


def drawn(seed: int) -> ShardRequest:
    """More donors and shards than brute force can do; equal donors (ties), slow and useless ones among them."""
    chance = random.Random(seed)
    donors = [
        Donor(
            name=f"d{i}",
            bandwidth=chance.choice([0.0, 5 * MB, 20 * MB, 20 * MB, chance.uniform(1 * MB, 100 * MB)]),
            latency_s=chance.choice([0.0, 0.1, 0.1, chance.uniform(0, 2), 500.0]),
            overhead_s=chance.choice([0.0, 0.02, chance.uniform(0, 0.5)]),
            cap=chance.choice([None, None, None, 0.0, 10 * MB]),
        )
        for i in range(chance.randint(0, 5))
    ]
    donors.insert(chance.randint(0, len(donors)), Donor(name="good", bandwidth=20 * MB, latency_s=0.1))
    return ShardRequest(
        state_bytes=chance.randint(1, 60 * MB),
        chain=chance.choice([*[(size * MB,) for size in (1, 1, 3, 3, 5, 8, 8)], (1 * MB, 4 * MB, 16 * MB)]),
        donors=tuple(donors),
        downlink=chance.choice([None, None, 30 * MB]),
    )


@pytest.mark.parametrize("batch", range(20))
def test_the_mixed_integer_program_agrees(batch: int) -> None:
    """2000 instances. The solver's counts are a plan, so never better; and its gap is 0, so never worse."""
    for seed in range(100 * batch, 100 * batch + 100):
        request = drawn(seed)
        assert plan(request).finish_s == pytest.approx(mixed_integer(request), rel=1e-12), f"seed {seed}: {request}"


@pytest.mark.parametrize("batch", range(3))
def test_the_program_with_the_size_as_a_variable_agrees(batch: int) -> None:
    for seed in range(10_000 + 100 * batch, 10_000 + 100 * batch + 100):
        request = drawn(seed)
        found = plan(request).finish_s
        assert found == pytest.approx(all_sizes_at_once(request), rel=1e-12), f"seed {seed}: {request}"


def one_by_one(donors: tuple[Donor, ...], shard_bytes: int, count: int) -> dict[str, int]:
    """The rule itself: the next shard to whoever would finish it first, the first listed among equals."""
    counts = {donor.name: 0 for donor in donors}
    able = [donor for donor in donors if donor.rate]
    each = {d.name: Fraction(d.overhead_s) + shard_bytes / Fraction(d.rate) for d in able}
    for _ in range(count):
        first = min(able, key=lambda d: Fraction(d.latency_s) + (counts[d.name] + 1) * each[d.name])
        counts[first.name] += 1
    return counts


@settings(deadline=None, max_examples=150)
@given(donors_of(6), st.integers(1, 400))
def test_the_closed_form_start_changes_nothing(donors: tuple[Donor, ...], count: int) -> None:
    request = ShardRequest(state_bytes=count * 1000, chain=(1000,), donors=donors)
    assert plan(request).counts == one_by_one(donors, 1000, count)


@settings(deadline=None, max_examples=200)
@given(donors_of(5, free=True), st.integers(1, 60), st.integers(1, 999), st.integers(2, 5))
def test_without_costs_a_divisor_is_never_worse(
    donors: tuple[Donor, ...], count: int, cut_off: int, factor: int
) -> None:
    state = 1000 * count - cut_off
    ends = [
        plan(ShardRequest(state_bytes=state, chain=(size,), donors=donors)).finish_s for size in (1000, 1000 * factor)
    ]
    assert ends[0] <= ends[1]


def test_with_costs_the_finish_has_more_than_one_valley_along_the_chain() -> None:
    """Why every size is looked at, and no search that follows the slope would do."""
    donors = (Donor(name="a", bandwidth=3000, overhead_s=0.1), Donor(name="b", bandwidth=2000, overhead_s=0.1))
    ends = [
        plan(ShardRequest(state_bytes=12_000, chain=(size,), donors=donors)).finish_s for size in (1000, 3000, 6000)
    ]
    assert ends == pytest.approx([3.1 - 0.2 / 3, 3.2, 3.1])


@pytest.mark.timeout(5)
def test_the_number_of_shards_costs_no_time() -> None:
    """Up to 9e18 shards: dealing out even a thousand million one by one would take many minutes."""
    widest = ShardRequest(state_bytes=2**63 - 1, chain=(1,), donors=(Donor(name="slow", bandwidth=3), GOOD))
    counts = plan(widest).counts
    assert sum(counts.values()) == 2**63 - 1 and abs(counts["slow"] * 1000 - counts["a"] * 3) <= 3000
    donors = tuple(
        Donor(name=f"d{i}", bandwidth=(1 + i) * MB, latency_s=0.01 * (i % 7), overhead_s=1e-6) for i in range(64)
    )
    state = 10**12
    made = plan(ShardRequest(state_bytes=state, chain=(1000, 4000, 64_000), donors=donors))
    assert sum(made.counts.values()) == math.ceil(state / made.shard_bytes)
    ends = [donor.finish_s(made.counts[donor.name], made.shard_bytes) for donor in donors]
    one_more = [donor.finish_s(made.counts[donor.name] + 1, made.shard_bytes) for donor in donors]
    assert max(ends) <= min(one_more)


def test_ties_go_to_the_donor_listed_first() -> None:
    donors = tuple(Donor(name=name, bandwidth=1000) for name in "cab")
    made = plan(ShardRequest(state_bytes=4000, chain=(1000,), donors=donors))
    assert made.counts == {"c": 2, "a": 1, "b": 1}


def test_smallest_size_without_costs_and_a_larger_one_with() -> None:
    fast = Donor(name="fast", bandwidth=1 * MB)
    slow = Donor(name="slow", bandwidth=1 * MB, overhead_s=0.5)
    request = ShardRequest(state_bytes=64 * MB, chain=(1 * MB, 4 * MB, 16 * MB, 64 * MB), donors=(fast,))
    assert plan(request).shard_bytes == 1 * MB
    two = ShardRequest(state_bytes=64 * MB, chain=request.chain, donors=(slow, slow_twin(slow)))
    made = plan(two)
    # 1 MB: 32 shards each at 1.5 s. 4 MB: 8 at 4.5 s. 16 MB: 2 at 16.5 s. 64 MB: one donor, 64.5 s.
    assert (made.shard_bytes, made.finish_s) == (16 * MB, 33.0)


def slow_twin(donor: Donor) -> Donor:
    return Donor(name="twin", bandwidth=donor.bandwidth, overhead_s=donor.overhead_s)


def test_the_downlink_bounds_the_finish_and_is_named() -> None:
    donors = (Donor(name="a", bandwidth=100 * MB), Donor(name="b", bandwidth=100 * MB))
    made = plan(ShardRequest(state_bytes=100 * MB, chain=(1 * MB,), donors=donors, downlink=10 * MB))
    assert (made.finish_s, made.limit_s) == (10.0, 10.0)
    assert made.reason == (
        "100 shards of 1000000 bytes from 2 of 2 donors; a is the last to finish, after 0.500 s, "
        "but the joiner's downlink needs 10.000 s"
    )


def test_a_cap_counts_as_bandwidth() -> None:
    donors = (Donor(name="a", bandwidth=9000, cap=1000), Donor(name="b", bandwidth=3000))
    assert plan(ShardRequest(state_bytes=8000, chain=(1000,), donors=donors)).counts == {"a": 2, "b": 6}


# --- dealing out, at first and again ------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(donors_of(5), st.lists(st.integers(0, 10_000), unique=True, max_size=60))
def test_runs_are_consecutive_and_cover_every_shard_once(donors: tuple[Donor, ...], ids: list[int]) -> None:
    runs = assign(ids, 1000, donors)
    assert list(runs) == [donor.name for donor in donors]
    assert [shard for run in runs.values() for shard in run] == ids
    assert {name: len(run) for name, run in runs.items()} == one_by_one(donors, 1000, len(ids))


def test_what_a_dead_donor_owed_goes_to_the_others() -> None:
    a, b, c = (Donor(name=name, bandwidth=1000) for name in "abc")
    first = assign(range(9), 1000, (a, b, c))
    assert first == {"a": (0, 1, 2), "b": (3, 4, 5), "c": (6, 7, 8)}
    missing = [1, 2, *first["b"], 7, 8]  # a and c have sent one shard each when b dies
    assert assign(missing, 1000, (a, c)) == {"a": (1, 2, 3, 4), "c": (5, 7, 8)}


# --- senseless input ----------------------------------------------------------------------------------

GOOD = Donor(name="a", bandwidth=1000)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"bandwidth": -1}, "donor x: bandwidth is -1"),
        ({"bandwidth": math.nan}, "donor x: bandwidth is nan"),
        ({"bandwidth": math.inf}, "donor x: bandwidth is inf"),
        ({"bandwidth": 1, "cap": -5}, "donor x: cap is -5"),
        ({"bandwidth": 1, "latency_s": -0.1}, "donor x: latency is -0.1"),
        ({"bandwidth": 1, "overhead_s": math.nan}, "donor x: cost per shard is nan"),
    ],
)
def test_senseless_donors(values: dict[str, float], complaint: str) -> None:
    with pytest.raises(ChaosError, match=complaint):
        Donor(name="x", **values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"state_bytes": 0}, "state of 0 bytes"),
        ({"state_bytes": 10**400}, "state of 1000"),
        ({"chain": (1, 10**30)}, "one or more sizes"),
        ({"chain": ()}, "one or more sizes"),
        ({"chain": (0, 4)}, "one or more sizes"),
        ({"chain": (4, 6)}, "4 and 6"),
        ({"chain": (8, 4)}, "8 and 4"),
        ({"chain": (4, 4)}, "4 and 4"),
        ({"downlink": 0.0}, "downlink of 0.0"),
        ({"downlink": math.nan}, "downlink of nan"),
        ({"donors": ()}, "none listed"),
        ({"donors": (GOOD, GOOD)}, "donor a is listed twice"),
        ({"donors": (Donor(name="b", bandwidth=5000, cap=0),)}, r"no donor has bandwidth to spare \(b\)"),
    ],
)
def test_senseless_requests(values: dict[str, object], complaint: str) -> None:
    good = {"state_bytes": 100, "chain": (4, 8), "donors": (GOOD,)}
    with pytest.raises(ChaosError, match=complaint):
        ShardRequest(**{**good, **values})


def test_senseless_assignments() -> None:
    with pytest.raises(ChaosError, match="listed twice"):
        assign([1, 2, 1], 1000, (GOOD,))
    with pytest.raises(ChaosError, match="shards of 0 bytes"):
        assign([1], 0, (GOOD,))
    with pytest.raises(ChaosError, match="no donor has bandwidth"):
        assign([1], 1000, ())
