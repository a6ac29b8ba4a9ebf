"""How a joiner catches up, as a table; and the model's formula against playing the join through."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from chaos.core.errors import ChaosError
from chaos.planning.catchup import Backlog, JoinCosts, choose, wait_for_rest

MB = 10**6

BASE = JoinCosts(
    state_bytes=300 * MB,
    result_bytes=100 * MB,
    step_s=10.0,
    downlink=25 * MB,
    donors_bandwidth=60 * MB,
    queue_bytes=1000 * MB,
    replay_s=0.5,
)

# A link of 25 MB/s carries the results at 10 MB/s and leaves 15: 20 s for the state, in which 2 results come.
# They take 2 * 0.5 / (1 - 0.5 / 10) = 1.0526 s to replay. Alone, the state takes 12 s.
TABLE = [
    ("plain", {}, "replay", 20 + 1 / 0.95, 0.0, "the 2 results that come meanwhile"),
    ("donors are the narrow part", {"donors_bandwidth": 20 * MB}, "replay", 30 + 1.5 / 0.95, 0.0, "30 s"),
    ("not replayable", {"obstacle": "it failed before"}, "late", 12.0, 12.0, "it failed before; so"),
    ("results fill the link", {"step_s": 4.0}, "late", 12.0, 12.0, "need 2.5e+07 B/s of a link of 2.5e+07"),
    ("results overfill it", {"step_s": 1.0}, "late", 12.0, 12.0, "results alone need 1e+08 B/s"),
    ("queue just suffices", {"queue_bytes": 200 * MB}, "replay", 20 + 1 / 0.95, 0.0, "replay"),
    ("queue too small", {"queue_bytes": 200 * MB - 1}, "late", 12.0, 12.0, "queue holds 199999999 bytes"),
    ("never gains on the run", {"replay_s": 10.0}, "late", 12.0, 12.0, "one in 10 s"),
    ("instant replay", {"replay_s": 0.0}, "replay", 20.0, 0.0, "0 s to replay"),
]


@pytest.mark.parametrize(
    ("changes", "mode", "delay_s", "pause_s", "words"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_decision(changes: dict[str, float], mode: str, delay_s: float, pause_s: float, words: str) -> None:
    decision = choose(replace(BASE, **changes))
    assert decision.mode == mode
    assert decision.delay_s == pytest.approx(delay_s)
    assert decision.pause_s == pytest.approx(pause_s)
    assert words in decision.reason
    assert "\n" not in decision.reason


@given(
    state=st.integers(1, 10**10),
    step_s=st.floats(0.1, 60),
    replay_s=st.floats(0, 30),
    link=st.floats(1e5, 1e9),
)
def test_the_promised_delay_holds_when_played_through(state: int, step_s: float, replay_s: float, link: float) -> None:
    """Result by result: the joiner is never further behind at the promised time than one step."""
    costs = replace(BASE, state_bytes=state, step_s=step_s, replay_s=replay_s, downlink=link, queue_bytes=10**18)
    decision = choose(costs)
    assume(decision.mode == "replay" and decision.delay_s < 5000 * step_s)
    now = state / (min(link, BASE.donors_bandwidth) - BASE.result_bytes / step_s)
    applied = 0
    while applied < math.floor(now / step_s + 1e-9):
        now += replay_s
        applied += 1
    assert now <= decision.delay_s * (1 + 1e-9) + replay_s


# --- ranges -----------------------------------------------------------------------------------------------

# Results take 19 of 20 MB/s. One snapshot: 300 MB at 1 MB/s. In R ranges: 300/19 * R * (20^(1/R) - 1) s.
FULL = replace(BASE, step_s=100 / 19, downlink=20 * MB, queue_bytes=10**12, replay_s=0.0)


@pytest.mark.parametrize("ranges", [1, 2, 5, 16, 64])
def test_ranges_take_the_time_of_the_formula(ranges: int) -> None:
    decision = choose(replace(FULL, ranges=ranges))
    number = len(decision.shares)
    assert (decision.mode, decision.pause_s) == ("replay" if ranges == 1 else "ranges", 0.0)
    assert number <= ranges and sum(decision.shares) == pytest.approx(1.0)
    assert decision.delay_s == pytest.approx(300 / 19 * number * (20 ** (1 / number) - 1))
    assert decision.delay_s <= 1.05 * 300 / 19 * ranges * (20 ** (1 / ranges) - 1) + 1e-9


def test_many_ranges_approach_the_logarithm() -> None:
    one, many = choose(FULL), choose(replace(FULL, ranges=64))
    assert one.delay_s == pytest.approx(300.0)
    assert 300 / 19 * math.log(20) < many.delay_s < 1.1 * 300 / 19 * math.log(20)
    assert "only from its own snapshot on" in many.reason and "with one snapshot after 300 s" in many.reason


def test_waiting_for_snapshots_makes_fewer_ranges_better() -> None:
    numbers = [len(choose(replace(FULL, ranges=64, offer_s=offer_s)).shares) for offer_s in (0.0, 1.0, 10.0, 1000.0)]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] > 10 and numbers[-1] == 1


def test_where_results_are_small_one_snapshot_will_do() -> None:
    decision = choose(replace(BASE, step_s=1000.0, ranges=64))
    assert decision.mode == "replay" and decision.shares == (1.0,)


def test_ranges_make_do_with_a_smaller_queue() -> None:
    costs = replace(BASE, queue_bytes=150 * MB, ranges=8)
    assert choose(replace(costs, ranges=1)).mode == "late"
    decision = choose(costs)
    assert decision.mode == "ranges"
    assert "2 results of 100000000 bytes come while the snapshot does, and the queue holds 150000000" in decision.reason
    hopeless = choose(replace(costs, queue_bytes=1))
    assert hopeless.mode == "late" and "bytes of results wait at a time" in hopeless.reason


@given(
    cuts=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8),
    part=st.floats(0.05, 0.98),
)
def test_no_other_cuts_are_faster(cuts: list[float], part: float) -> None:
    """Any shares of the state, each fetched beside the results of all ranges up to its own."""
    total, here, time = sum(cuts), 0.0, 0.0
    for cut in cuts:
        here += cut / total
        time += cut / total / (1 - part * here)
    costs = replace(FULL, step_s=100 / (20 * part), ranges=len(cuts), state_bytes=20 * MB)
    best = len(cuts) / part * ((1 - part) ** (-1 / len(cuts)) - 1)
    assert best <= time * (1 + 1e-9)
    decision = choose(costs)
    assert decision.delay_s <= 1.05 * best * (1 + 1e-9)


def played(costs: JoinCosts, shares: tuple[float, ...]) -> tuple[float, float]:
    """A join in small ticks: seconds until caught up, and the most bytes of results that waited."""
    tick, now, link = costs.step_s / 200, 0.0, min(costs.downlink, costs.donors_bandwidth)
    here, waiting, peak, work, step = 0.0, 0.0, 0.0, 0.0, 0
    for share in shares:
        now, live = now + costs.offer_s, here
        work = max(0.0, work - costs.offer_s * (1 - live * costs.replay_s / costs.step_s))
        here, left, first = here + share, share * costs.state_bytes, now
        while left > 0:
            left -= (link - here * costs.result_bytes / costs.step_s) * tick
            now += tick
            # results of ranges that are here are applied as they come
            work = max(0.0, work - tick * (1 - live * costs.replay_s / costs.step_s))
        step = math.ceil((now - first) / costs.step_s - 0.02)
        waiting = step * share
        work += waiting * costs.replay_s
        peak = max(peak, (work / costs.replay_s if costs.replay_s else waiting) * costs.result_bytes)
    while work > 0:
        now += tick
        work -= tick * (1 - costs.replay_s / costs.step_s)
    return now, peak


@settings(deadline=None, max_examples=60)
@given(
    state=st.integers(100 * MB, 3000 * MB),
    part=st.floats(0.1, 0.95),
    replay=st.floats(0.0, 0.9),
    ranges=st.integers(1, 8),
    offer_s=st.floats(0.0, 5.0),
)
@example(state=300 * MB, part=0.95, replay=0.9, ranges=2, offer_s=0.0)  # the first range's results still wait
def test_the_promised_delay_holds_when_a_join_in_ranges_is_played_through(
    state: int, part: float, replay: float, ranges: int, offer_s: float
) -> None:
    step_s = 100 / (25 * part)
    costs = replace(
        BASE, state_bytes=state, step_s=step_s, replay_s=replay * step_s, queue_bytes=10**12, ranges=ranges,
        offer_s=offer_s,
    )  # fmt: skip
    decision = choose(costs)
    took, peak = played(costs, decision.shares)
    assert took == pytest.approx(decision.delay_s, rel=0.03, abs=2 * costs.replay_s / (1 - replay) + step_s)
    slack = 1.1 * peak + 2 * costs.result_bytes
    assert choose(replace(costs, queue_bytes=int(slack) + 1)).mode != "late"


# --- what the members pay ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "factor"), [(3, 1.25), (9, 1.0625)])
def test_streaming_costs_uplinks_what_the_counts_of_bytes_say(members: int, factor: float) -> None:
    """2 (N - 1) / N of a result per step and member without a joiner, 1 / N more with one."""
    decision = choose(replace(FULL, members=members))
    assert decision.members_lose_s == pytest.approx(decision.delay_s * (1 - 1 / factor))
    assert f"each member loses {decision.members_lose_s:.3g} s" in decision.reason


def test_a_pause_is_taken_for_its_lower_cost_only_if_it_is_allowed() -> None:
    costs = replace(FULL, members=3)
    assert choose(costs).mode == "replay"
    paused = choose(replace(costs, may_pause=True))
    assert (paused.mode, paused.members_lose_s) == ("late", 15.0)
    assert "the members would lose 60 s by streaming results" in paused.reason
    assert choose(replace(costs, may_pause=True, ranges=64)).mode == "ranges", "which costs them less than the pause"


@pytest.mark.parametrize("field", ["state_bytes", "result_bytes", "step_s", "downlink", "donors_bandwidth"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_senseless_input(field: str, value: float) -> None:
    with pytest.raises(ChaosError, match=f"{field} = {value}"):
        replace(BASE, **{field: value})


@pytest.mark.parametrize(("field", "value"), [("replay_s", -1), ("offer_s", math.nan), ("members", -1), ("ranges", 0)])
def test_more_senseless_input(field: str, value: float) -> None:
    with pytest.raises(ChaosError, match=f"{field} = {value}"):
        replace(BASE, **{field: value})


# --- how the members are asked to wait for the rest -------------------------------------------------------------

NEARLY_FULL = Backlog(left_bytes=50 * MB, waiting=90, room=100, lag=5, kept=40, result_bytes=MB, link=5.0 * MB)
# 50 MB of state and the 5 results that are not here take 11 s.
WAITS = [
    ("nearly full", {}, 11.0, "90 of 100 results wait; the members pause for about 11 s while the last 50000000 bytes"),
    ("room left", {"waiting": 89}, None, ""),
    ("two steps are still to fit in", {"waiting": 13, "room": 15}, 11.0, "13 of 15"),
    ("too few to tell", {"waiting": 8, "room": 8}, None, ""),
    ("too long for the members", {"link": 1.8 * MB}, None, ""),
    ("just not too long", {"link": 1.9 * MB}, 55 / 1.9, "pause for about 28.9 s"),
    ("lost already", {"waiting": 101}, None, ""),
    ("nothing has come", {"link": 0.0}, None, ""),
    ("the state is here, and its results fit", {"left_bytes": 0}, None, ""),
    ("results don't get through", {"left_bytes": 0, "lag": 36}, 7.2, "it lags 36 results"),
    ("nor beside the state", {"waiting": 40, "lag": 36}, 17.2, "it lags 36 results"),
    ("the members keep those no more", {"lag": 41}, None, ""),
]


@pytest.mark.parametrize(("_", "change", "pause_s", "words"), WAITS)
def test_members_wait_for_the_rest_only_where_that_helps(
    _: str, change: dict[str, float], pause_s: float | None, words: str
) -> None:
    wait = wait_for_rest(replace(NEARLY_FULL, **change), 30.0)  # type: ignore[arg-type]
    if pause_s is None:
        assert wait is None
    else:
        assert wait is not None and wait.pause_s == pytest.approx(pause_s) and words in wait.reason
