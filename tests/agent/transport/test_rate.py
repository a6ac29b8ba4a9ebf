"""The link's rate from totals, and the pace that follows."""

from __future__ import annotations

import pytest

from chaos.agent.transport.rate import GAINS, SAMPLE_S, SHARE, WINDOW, BusyMeter, RateEstimator

MB = 10**6


def sampled(*rates: float) -> RateEstimator:
    """An estimator after one sample at each of these rates (bytes per second)."""
    estimator, nbytes, busy_s = RateEstimator(), 0, 0.0
    for rate in rates:
        nbytes += int(rate * SAMPLE_S)
        busy_s += SAMPLE_S
        assert estimator.report(nbytes, busy_s)
    return estimator


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([], 0),
        ([20 * MB], 20 * MB),
        ([20 * MB, 10 * MB], 20 * MB),
        ([20 * MB, 30 * MB], 30 * MB),
        ([20 * MB] + [10 * MB] * (WINDOW - 1), 20 * MB),
        ([20 * MB] + [10 * MB] * WINDOW, 10 * MB),
    ],
)
def test_rate_is_the_highest_of_the_window(rates: list[float], expected: float) -> None:
    assert sampled(*rates).rate == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("nbytes", "busy_s", "sample"),
    [(MB, SAMPLE_S / 2, False), (MB, SAMPLE_S, True), (0, 1.0, False), (-5, 1.0, False), (MB, -1.0, False)],
)
def test_what_makes_a_sample(nbytes: int, busy_s: float, sample: bool) -> None:
    assert RateEstimator().report(nbytes, busy_s) is sample


def test_short_reports_add_up() -> None:
    estimator = RateEstimator()
    assert [estimator.report(k * MB, k * SAMPLE_S / 4) for k in range(1, 5)] == [False, False, False, True]
    assert estimator.rate == pytest.approx(4 * MB / SAMPLE_S)


@pytest.mark.parametrize(("rates", "paced"), [([], False), ([20 * MB], True), ([251 * MB], False), ([100], True)])
def test_only_known_slow_links_are_paced(rates: list[float], paced: bool) -> None:
    assert (sampled(*rates).pace() is not None) is paced


def test_gains_go_round_and_average_one() -> None:
    paces = [sampled(*[20 * MB] * n).pace() for n in range(1, 1 + 2 * len(GAINS))]
    assert all(p is not None for p in paces)
    assert sum(GAINS) / len(GAINS) == 1
    expected = [20 * MB * SHARE * GAINS[n % len(GAINS)] for n in range(1, 1 + 2 * len(GAINS))]
    assert paces == pytest.approx(expected, rel=1e-3)
    assert len(GAINS) < WINDOW, "else a cycle's best sample would be forgotten before the next cycle"


@pytest.mark.parametrize("capacity", [1 * MB, 25 * MB, 200 * MB])
def test_follows_a_capacity_that_changes(capacity: float) -> None:
    """A link that delivers what it is given up to its capacity: the estimate neither spirals down nor sticks."""
    estimator, nbytes, busy_s = RateEstimator(), 0, 0.0

    def run(samples: int, limit: float) -> float:
        nonlocal nbytes, busy_s
        for _ in range(samples):
            nbytes += int(min(limit, estimator.pace() or limit) * SAMPLE_S)
            busy_s += SAMPLE_S
            estimator.report(nbytes, busy_s)
        return estimator.rate

    assert run(200, capacity) == pytest.approx(capacity, rel=0.02)
    assert run(2 * WINDOW, capacity / 4) == pytest.approx(capacity / 4, rel=0.02)
    assert run(2 * len(GAINS), capacity) == pytest.approx(capacity, rel=0.02)


def meter(*notes: tuple[float, int, bool, bool]) -> tuple[int, float]:
    it = BusyMeter()
    for note in notes:
        it.note(*note)
    return it.nbytes, pytest.approx(it.busy_s)


def test_meter_leaves_out_what_came_before_the_busy_time() -> None:
    assert meter((1.0, 500, False, True), (2.0, 300, True, True), (3.0, 200, True, False)) == (500, 2.0)


def test_meter_leaves_out_whole_frames_in_one_read_and_idle_time() -> None:
    assert meter((1.0, 500, False, False), (2.0, 500, False, False)) == (0, 0.0)
    one = ((1.0, 10, False, True), (2.0, 10, True, False))
    other = ((8.0, 10, False, True), (9.0, 10, True, False))
    assert meter(*one, *other) == (20, 2.0)


def test_meter_counts_overlapping_lanes_once() -> None:
    lanes = (
        (1.0, 10, False, True),
        (2.0, 10, False, True),
        (3.0, 10, True, False),
        (4.0, 10, True, False),
        (9.0, 10, False, True),
    )
    assert meter(*lanes) == (30, 3.0)


def test_meter_leaves_out_the_ramp_after_a_rest() -> None:
    it = BusyMeter()
    it.ramp_s = 0.2
    for now, nbytes in ((10.0, 0), (10.1, 5), (10.2, 10), (10.3, 100), (10.4, 100)):
        it.note(now, nbytes, now > 10.0, now < 10.4)
    assert (it.nbytes, it.busy_s) == (200, pytest.approx(0.2)), "the first 0.2 s tell about TCP"
    it.note(10.42, 7, False, True)
    it.note(10.5, 90, True, False)
    assert (it.nbytes, it.busy_s) == (290, pytest.approx(0.28)), "a frame that follows at once continues the busy time"
    it.note(11.0, 7, False, True)
    it.note(11.15, 90, True, False)
    assert (it.nbytes, it.busy_s) == (290, pytest.approx(0.28)), "after a rest all begins anew"
