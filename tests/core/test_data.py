"""Samples: every position is free, leased once, or used once; an epoch ends when all are used."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from chaos.core.data import advance, declare, held, normalise, size, subtract, take, with_first_leases
from chaos.core.types import DataState, FirstLease, Lease, SampleRange, View
from chaos.core.worker_messages import Contribution
from chaos.sim.symbols import peer_id

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6)


def positions(spans: object) -> set[int]:
    return {p for start, stop in spans for p in range(start, stop)}  # type: ignore[attr-defined]


def part(data: DataState, peer: str, use: int, want: int, pass_done: bool = False) -> Contribution:
    """Uses the first `use` positions of the peer's leases."""
    spans, _ = take(held(data, peer), use)
    ranges = tuple(SampleRange(data.epoch, a, b) for a, b in spans)
    return Contribution(float(use), not ranges, None, ranges, b"", b"", want, pass_done)


@given(SPANS, SPANS)
def test_spans_are_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    assert positions(normalise(a)) == positions(a)
    assert positions(subtract(a, b)) == positions(a) - positions(b)
    merged = normalise(a)
    assert list(merged) == sorted(merged)
    assert all(x[1] < y[0] for x, y in itertools.pairwise(merged))
    assert size(merged) == len(positions(a))


@given(SPANS, st.integers(-3, 60))
def test_take(a: list[tuple[int, int]], count: int) -> None:
    spans = normalise(a)
    taken, rest = take(spans, count)
    assert size(taken) == max(0, min(count, size(spans)))
    assert positions(taken) | positions(rest) == positions(spans)
    assert not positions(taken) & positions(rest)
    assert not taken or not rest or max(positions(taken)) < min(positions(rest))


STEPS = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=4),
    min_size=1,
    max_size=40,
)
"""Per step: who takes part (index), how many samples it uses, how many it would like to hold."""


@settings(deadline=None)
@given(st.integers(1, 40), STEPS)
def test_each_position_is_free_leased_or_used_once(samples: int, steps: list[list[tuple[int, int, int]]]) -> None:
    """Peers come and go at random; a departed one's leases come back; nothing is lost or doubled."""
    data = declare(DataState(), "shard", samples)
    used: Counter[int] = Counter()
    for step in steps:
        parts = {peer_id(i): part(data, peer_id(i), use, want) for i, use, want in sorted(dict_of(step))}
        now = Counter(p for c in parts.values() for r in c.ranges for p in range(r.start, r.stop))
        after = advance(data, parts)
        used += now
        if after.epoch > data.epoch:
            assert used == Counter(range(samples)), "an epoch ends only when all are used"
            used = Counter()
        spread = Counter(p for lease in after.leases for p in range(lease.start, lease.stop))
        spread += Counter(positions(after.free))
        assert spread + used == Counter(range(samples))
        assert all(lease.peer in parts for lease in after.leases), "only those that take part hold leases"
        assert advance(data, parts) == after
        data = after


def dict_of(step: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return list({index: (index, use, want) for index, use, want in step}.values())


@settings(deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_an_epoch_ends_if_all_keep_using(samples: int, wants: list[int]) -> None:
    data = declare(DataState(), "shard", samples)
    for _ in range(samples + 2):
        data = advance(data, {peer_id(i): part(data, peer_id(i), want, want) for i, want in enumerate(wants)})
    assert data.epoch >= 1


def test_nothing_used_twice_counts_twice() -> None:
    """A contribution that names what its sender does not hold takes nothing from anybody."""
    data = DataState("shard", 10, 0, ((6, 10),), (Lease(peer_id(0), 0, 3), Lease(peer_id(1), 3, 6)))
    stray = Contribution(3.0, False, None, (SampleRange(0, 3, 6), SampleRange(7, 0, 3)), b"", b"", 3, False)
    after = advance(data, {peer_id(0): stray, peer_id(1): part(data, peer_id(1), 0, 3)})
    assert held(after, peer_id(1)) == ((3, 6),)
    assert held(after, peer_id(0)) == ((0, 3),)


@settings(deadline=None)
@given(st.integers(0, 30), st.lists(st.tuples(st.integers(4, 6), st.integers(0, 4), st.integers(0, 9)), max_size=6))
def test_first_leases_come_out_of_what_is_free(samples: int, entries: list[tuple[int, int, int]]) -> None:
    """Only those of the step; and what more of them are granted changes nothing for those before."""
    data = advance(declare(DataState(), "shard", samples), {peer_id(0): part(DataState(), peer_id(0), 0, 6)})
    first = [FirstLease(step, peer_id(index), want) for step, index, want in entries]
    before = data
    for count in range(len(first) + 1):
        after = with_first_leases(data, under(first[:count]), 5)
        spread = Counter(p for lease in after.leases for p in range(lease.start, lease.stop))
        assert spread + Counter(positions(after.free)) == Counter(range(samples))
        assert before.leases == after.leases[: len(before.leases)]
        before = after
    for peer in {entry.peer for entry in first}:
        wants = [entry.want for entry in first if (entry.step, entry.peer) == (5, peer)]
        most = max([*wants, size(held(data, peer))])
        assert size(held(before, peer)) == most or (not before.free and size(held(before, peer)) < most)
    assert with_first_leases(DataState("private"), under(first), 5) == DataState("private")


def under(first: list[FirstLease]) -> View:
    return View("one", 7, (), (), 5, False, (), "", first_leases=tuple(first))


def test_private_epochs_end_when_each_present_member_has_passed() -> None:
    data = declare(DataState(), "private", 0)
    a, b = peer_id(0), peer_id(1)
    data = advance(data, {a: part(data, a, 0, 0, True), b: part(data, b, 0, 0)})
    assert (data.epoch, data.passes) == (0, (a,))
    assert advance(data, {a: part(data, a, 0, 0)}).epoch == 1, "the one that had not passed has left"
    assert advance(data, {a: part(data, a, 0, 0), b: part(data, b, 0, 0, True)}).epoch == 1


def test_the_first_declaration_counts() -> None:
    first = declare(DataState(), "shard", 5)
    assert declare(first, "private", 0) == first
    assert first.free == ((0, 5),)


def test_what_a_late_worker_held_goes_back_to_the_pool() -> None:
    """Others may take it at once; the late one is granted nothing, and holds samples again after its next part."""
    a, b = peer_id(0), peer_id(1)
    data = advance(declare(DataState(), "shard", 20), {a: part(DataState(), a, 0, 6), b: part(DataState(), b, 0, 6)})
    assert (held(data, a), held(data, b)) == (((0, 6),), ((6, 12),))
    late = replace(part(data, b, 0, 6), late=True)
    data = advance(data, {a: part(data, a, 6, 6), b: late})
    assert (held(data, a), held(data, b)) == (((6, 12),), ()) and data.free == ((12, 20),)
    data = advance(data, {a: part(data, a, 6, 6), b: part(data, b, 0, 6)})
    assert (held(data, a), held(data, b)) == (((12, 18),), ((18, 20),))


def test_an_epoch_ends_without_a_late_worker() -> None:
    a, b = peer_id(0), peer_id(1)
    data = advance(declare(DataState(), "shard", 8), {a: part(DataState(), a, 0, 4), b: part(DataState(), b, 0, 4)})
    late = replace(part(data, b, 0, 4), late=True)
    for _ in range(3):
        data = advance(data, {a: part(data, a, 4, 4), b: late})
    assert data.epoch == 1
