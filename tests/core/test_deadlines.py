"""When a worker is late: tables and properties of a pure function."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.core.deadlines import FLOOR_S, deadline, patience, usual

SECONDS = st.floats(0.0, 1e4)


@pytest.mark.parametrize(
    ("times", "expected"), [([], None), ([3.0], 3.0), ([1.0, 9.0], 1.0), ([9.0, 1.0, 2.0], 2.0), ([1, 1, 9, 9], 1)]
)
def test_usual(times: list[float], expected: float | None) -> None:
    assert usual(times) == expected


@pytest.mark.parametrize(
    ("usual_s", "limit_s", "expected"), [(0.01, 30.0, FLOOR_S), (4.0, 30.0, 4.0), (90.0, 30.0, 30.0), (0.01, 0.1, 0.1)]
)
def test_patience(usual_s: float, limit_s: float, expected: float) -> None:
    assert patience(usual_s, limit_s) == expected


@pytest.mark.parametrize(
    ("known", "members", "past", "present", "due"),
    [
        ([], 3, [2.0], [], None),  # nobody waits
        ([10.0], 3, [], [], None),  # whoever is in has computed nothing: nothing to compare with
        ([12.0], 2, [2.0], [2.0], 14.0),  # half are in at 12, and two seconds more
        ([11.0], 2, [2.0], [1.0], 14.0),  # the worker itself has two seconds in any case
        ([3.0], 2, [2.0], [2.0], 14.0),  # it began late: its time counts, not the others'
        ([12.0], 3, [2.0], [2.0], 42.0),  # one of three is not half of them
        ([12.0, 20.0], 3, [2.0], [2.0, 2.0], 22.0),  # from when half were in, not from the first one on
        ([12.0, 20.0], 3, [], [2.0, 2.0], 42.0),  # no step was measured before: the limit
        ([12.0, 41.5], 3, [2.0], [2.0, 2.0], 42.0),  # whatever comes first
        ([12.0, 13.0, 90.0], 4, [2.0], [2.0], 15.0),
    ],
)
def test_deadline(known: list[float], members: int, past: list[float], present: list[float], due: float | None) -> None:
    found = deadline(10.0, known, members, past, present, 30.0)
    assert (found.due if found is not None else None) == due


@given(
    SECONDS,
    st.lists(SECONDS, min_size=1, max_size=8),
    st.lists(st.floats(0.001, 1e4), max_size=20),
    st.floats(0.001, 1e4),
    st.randoms(),
)
def test_nobody_is_late_before_the_usual_time_nor_waited_for_beyond_the_limit(
    began: float, known: list[float], past: list[float], limit_s: float, shuffler: object
) -> None:
    found = deadline(began, known, len(known) + 1, past, [1.0], limit_s)
    assert found is not None and found.reason
    own = began + (usual(past) or 1.0)
    assert own <= found.due <= max(own, min(known)) + limit_s
    shuffler.shuffle(known)  # type: ignore[attr-defined]
    assert deadline(began, known, len(known) + 1, past, [1.0], limit_s) == found, "the order of arrivals plays no part"
