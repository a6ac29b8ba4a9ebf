"""Stamps: whatever the hosts' clocks say, an effect is never shown before its cause."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.agent.wrapping import Content, unwrap, wrap
from chaos.core.errors import RemoteProtocolError
from chaos.observe.causal import LIMIT, CausalClock
from chaos.observe.trace import TraceWriter, in_order, merge


@given(
    skews=st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=4),
    script=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=60),
)
def test_no_effect_comes_before_its_cause(skews: list[int], script: list[tuple[int, int, int]]) -> None:
    """Peers act and send to each other; each event knows all that can have caused it."""
    now = [0.0]
    clocks = [CausalClock(lambda skew=skew: now[0] + skew) for skew in skews]
    knows: list[set[int]] = [set() for _ in skews]
    events: list[tuple[int, int, set[int]]] = []
    for number, (who, to, passed) in enumerate(script):
        who, to = who % len(skews), to % len(skews)
        now[0] += passed * 0.1
        events.append((clocks[who].stamp(), number, set(knows[who])))
        knows[who].add(number)
        if to != who:
            clocks[to].hear(clocks[who].stamp())
            knows[to] |= knows[who]
    shown: set[int] = set()
    for _, number, causes in sorted(events, key=lambda event: event[0]):
        assert causes <= shown
        shown.add(number)


def test_events_that_cannot_have_caused_one_another_are_in_order_of_time() -> None:
    now = [100.0]
    a, b = CausalClock(lambda: now[0]), CausalClock(lambda: now[0])
    first = a.stamp()
    now[0] += 0.001
    assert b.stamp() > first == 100_000_000


def test_a_clock_that_stands_or_goes_back_still_counts() -> None:
    clock = CausalClock(lambda: 5.0)
    assert [clock.stamp() for _ in range(3)] == [5_000_000, 5_000_001, 5_000_002]


@pytest.mark.parametrize("stamp", [LIMIT + 1, 2**64 - 1])
def test_a_stamp_that_no_clock_shows_is_refused(stamp: int) -> None:
    clock = CausalClock(lambda: 5.0)
    with pytest.raises(RemoteProtocolError, match="out of range"):
        clock.hear(unwrap(wrap(Content.LINES, stamp, b""))[1])
    clock.hear(LIMIT)
    assert clock.stamp() == LIMIT, "the order is spoilt; nothing else is"


def test_a_message_keeps_its_bytes_and_a_short_one_is_refused() -> None:
    assert unwrap(wrap(Content.LINES, 7, b"body")) == (Content.LINES, 7, b"body")
    for odd in (b"", b"\0" * 8, b"\2" + b"\0" * 20):
        with pytest.raises(RemoteProtocolError, match="too short"):
            unwrap(odd)


def test_merged_traces_of_hosts_an_hour_apart_show_a_leave_before_the_view_without_the_leaver(tmp_path: Path) -> None:
    clocks = {name: (lambda ahead=ahead: 1000.0 + ahead) for name, ahead in (("fast", 3600.0), ("slow", 0.0))}
    traces = {name: TraceWriter(tmp_path / name, name, wall=wall) for name, wall in clocks.items()}
    traces["fast"].write("leave", {})
    traces["slow"].causal.hear(traces["fast"].causal.stamp())
    traces["slow"].write("decide", {"view": 2})
    traces["fast"].causal.hear(traces["slow"].causal.stamp())
    traces["fast"].write("view", {"view": 2})
    kinds = [line["kind"] for line in merge([tmp_path / "slow", tmp_path / "fast"]) if line["kind"] != "trace"]
    assert kinds == ["leave", "decide", "view"]


def test_lines_of_one_writer_stay_as_it_wrote_them_though_its_stamps_fall() -> None:
    back = [{"stamp": stamp, "n": n} for n, stamp in enumerate((50, 60, 5, 70))]
    other = [{"stamp": 55, "n": 9}]
    assert [line["n"] for line in in_order([back, other])] == [0, 9, 1, 2, 3]
