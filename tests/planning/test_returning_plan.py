"""Where a peer that was cut off starts from, as a table; and that what is kept for it is never too little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.core.errors import ChaosError
from chaos.planning.returning import choose_start, worth_keeping

MB = 10**6
TABLE = [
    ("nothing was missed", 300, 100, 0, True, "of the last finished step"),
    ("nothing was missed, sizes unknown", 0, 100, 0, True, "of the last finished step"),
    ("Adam, one step", 300, 100, 1, True, "lacks 1 result of 100 MB; a snapshot would be 300 MB"),
    ("Adam, as many bytes as a snapshot", 300, 100, 3, True, "lacks 3 results of 100 MB; a snapshot would be 300 MB"),
    ("Adam, one more", 300, 100, 4, False, "4 results of 100 MB, and a snapshot is only 300 MB"),
    ("plain SGD", 100, 100, 2, False, "lacks 2 results"),
    ("a small part is trained", 14000, 160, 87, True, "1.4e+04 MB"),
    ("a state of unknown size", 0, 100, 1, False, "not known"),
]


@pytest.mark.parametrize(("_", "state", "result", "missed", "own", "words"), TABLE)
def test_what_is_fewer_bytes_is_taken_and_said(
    _: str, state: int, result: int, missed: int, own: bool, words: str
) -> None:
    start = choose_start(state * MB, result * MB, missed)
    assert start.from_own == own
    assert words in start.reason


@given(state=st.integers(0, 2**40), result=st.integers(1, 2**40), room=st.integers(0, 64), missed=st.integers(0, 100))
def test_as_many_results_are_kept_as_may_be_asked_for(state: int, result: int, room: int, missed: int) -> None:
    kept = worth_keeping(state, result, room)
    if missed and choose_start(state, result, missed).from_own:
        assert kept >= min(missed, room)
    assert kept <= room and kept * result <= state


@pytest.mark.parametrize(("state", "result", "count"), [(-1, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_figures_without_sense_are_refused(state: int, result: int, count: int) -> None:
    with pytest.raises(ChaosError):
        choose_start(state, result, count)
    with pytest.raises(ChaosError):
        worth_keeping(state, result, count)
