"""Delay, stall and steps of events, on traces whose figures can be worked out by hand."""

from __future__ import annotations

import pytest

from chaos.cli.demo_costs import Cost, Event, costs, waits
from chaos.observe.trace_file import Entry
from tests.cli.traces import boundary, commit, entry, view

IDS = {"a": "1a", "b": "1b", "c": "1c", "j": "1d"}


def step(number: int, commits: dict[str, tuple[float, float]], view: int = 1, by: str = "abc") -> list[Entry]:
    """One step: per peer, when it stood at the boundary and when it committed."""
    made: list[Entry] = []
    for peer, (start, end) in commits.items():
        made.append(boundary(peer, start, number - 1))
        made.append(commit(peer, end, number, view=view, contributors=[IDS[p] for p in by]))
    return made


def quiet(first: int, last: int, wait: float, view: int = 1, by: str = "abc") -> list[Entry]:
    """One step a second, in which everybody waits for `wait` seconds."""
    return [
        e
        for number in range(first, last + 1)
        for e in step(number, dict.fromkeys(by, (float(number), number + wait)), view, by)
    ]


def ordered(*parts: list[Entry]) -> list[Entry]:
    return sorted((e for part in parts for e in part), key=lambda e: e.t)


VIEWS = [view(p, 0, 1, "abc") for p in "abc"]


MEMBERS = {1: "abc"}


def test_waiting_begins_when_the_last_has_contributed() -> None:
    entries = ordered(step(1, {"a": (1, 2.0), "b": (1.5, 2.25), "c": (1.75, 2.0)}))
    assert [w.seconds for w in waits(entries, "a", MEMBERS)] == [0.25]
    assert [w.seconds for w in waits(entries, "b", MEMBERS)] == [0.5]
    assert [w.seconds for w in waits(entries, "a", {1: "ab"})] == [0.5], "c's contribution is part of the waiting"


def test_a_worker_that_did_not_stand_there_did_not_wait() -> None:
    entries = [commit("a", 1, 1), boundary("a", 1.5, 1), commit("a", 2, 2), boundary("a", 2.5, 7), commit("a", 3, 3)]
    assert [w.step for w in waits(entries, "a", MEMBERS)] == [2]


def test_a_learner_keeps_nobody_waiting_and_does_not_wait() -> None:
    entries = [boundary("a", 1, 0), boundary("j", 2, 0), commit("a", 2.5, 1), commit("j", 2.6, 1)]
    assert [w.seconds for w in waits(entries, "a", MEMBERS)] == [1.5]
    assert waits(entries, "j", MEMBERS) == []


def failure() -> list[Entry]:
    """`c` is killed at 10.5, while step 10 of the others waits for it; they commit it in view 2, at 11 and 11.1."""
    views = [view(p, 10.8, 2, "ab") for p in "ab"]
    retried = step(10, {"a": (10.1, 11.0), "b": (10.2, 11.1)}, view=2, by="ab")
    return ordered(VIEWS, quiet(1, 9, 0.1), views, retried, quiet(12, 20, 0.1, view=2, by="ab"))


def test_a_failure() -> None:
    (cost,) = costs(failure(), [Event("failure", "c", 10.5)], IDS)
    assert cost == Cost("failure", "c", pytest.approx(0.5), pytest.approx(0.5), 1)


def test_waiting_for_the_dead_peer_before_its_death_is_no_stall() -> None:
    later = [e for e in failure() if not (e.kind == "view" and e["view"] == 2)]
    later = ordered(later, [view(p, 10.99, 2, "ab") for p in "ab"])
    (cost,) = costs(later, [Event("failure", "c", 10.95)], IDS)
    assert cost.stall_s == pytest.approx(0.15 - 0.1)


def test_a_survivor_that_computes_slowly_is_no_stall() -> None:
    slow = [e for e in failure() if not (e.peer == "a" and e.kind == "boundary" and e["applied"] == 9)]
    slow = ordered(slow, [boundary("a", 10.95, 9)])
    (cost,) = costs(slow, [Event("failure", "c", 10.5)], IDS)
    assert cost.stall_s == pytest.approx(0.15 - 0.1)


def test_a_failure_ends_with_a_commit_without_the_dead_peer() -> None:
    """A round that was complete before the kill says nothing about recovery."""
    late = ordered(failure(), [commit("a", 10.55, 9, view=1)])
    (cost,) = costs(late, [Event("failure", "c", 10.5)], IDS)
    assert (cost.delay_s, cost.steps_during) == (pytest.approx(0.5), 2)


def test_events_that_did_not_end_are_left_out() -> None:
    survivors = [e for e in failure() if e.t < 10.9]
    assert costs(survivors, [Event("failure", "c", 10.5)], IDS) == []
    assert costs(survivors, [Event("scale-in", "c", 10.5)], IDS) == []
    assert costs(survivors, [Event("scale-out", "j", 10.5)], IDS) == []


def test_a_leave_ends_when_the_last_of_the_others_has_the_view() -> None:
    views = [view("a", 10.51, 2, "ab"), view("b", 10.53, 2, "ab"), view("c", 10.9, 2, "ab")]
    entries = ordered(VIEWS, quiet(1, 10, 0.1), views, quiet(11, 20, 0.1, view=2, by="ab"))
    (cost,) = costs(entries, [Event("scale-in", "c", 10.5)], IDS)
    assert cost == Cost("scale-in", "c", pytest.approx(0.03), pytest.approx(0.0), 0)
    without_b = [e for e in entries if not (e.peer == "b" and e.kind == "view" and e["view"] == 2)]
    assert costs(without_b, [Event("scale-in", "c", 10.5)], IDS) == []


def test_a_leave_that_keeps_the_next_step_waiting() -> None:
    """The view is there after 30 ms, yet the first step under it comes late: that waiting belongs to the event."""
    views = [view(p, 10.53, 2, "ab") for p in "ab"]
    slow = step(11, {"a": (11.0, 11.9), "b": (11.0, 11.9)}, view=2, by="ab")
    entries = ordered(VIEWS, quiet(1, 10, 0.1), views, slow, quiet(12, 20, 0.1, view=2, by="ab"))
    (cost,) = costs(entries, [Event("scale-in", "c", 10.5)], IDS)
    assert (cost.delay_s, cost.stall_s) == (pytest.approx(0.03), pytest.approx(0.8))


def scale_out() -> list[Entry]:
    """`j` is started at 5, registers at 10.5, and contributes to step 15 first; `b` waits longer in step 12."""
    registered = [entry("j", 10.5, "worker_registered")]
    slow = step(12, {"a": (12, 12.1), "b": (12, 12.4), "c": (12, 12.1)})
    views = [view(p, 14.9, 2, "abcj") for p in "abcj"]
    # While its process starts, steps 5 to 10 wait for 0.3 s: that is the machine's business, and no baseline.
    busy = quiet(5, 10, 0.3)
    parts = [VIEWS, quiet(1, 4, 0.1), busy, registered, quiet(11, 11, 0.1), slow, quiet(13, 14, 0.1), views]
    return ordered(*parts, quiet(15, 20, 0.1, view=2, by="abcj"))


def test_a_scale_out() -> None:
    (cost,) = costs(scale_out(), [Event("scale-out", "j", 5.0)], IDS)
    assert cost == Cost("scale-out", "j", pytest.approx(15.1 - 10.5), pytest.approx(0.3), 5)


def test_waiting_for_the_joiner_s_first_contribution_is_a_stall() -> None:
    late = [boundary("j", 15.6, 14)]
    first = step(15, dict.fromkeys("abc", (15.0, 15.7)), view=2, by="abcj")
    entries = [e for e in scale_out() if not (e.kind in ("boundary", "commit") and 15 <= e.t < 16)]
    (cost,) = costs(ordered(entries, first, late), [Event("scale-out", "j", 5.0)], IDS)
    # `a`: 0.6 in step 15. `b`: that, and 0.3 in step 12.
    assert (cost.delay_s, cost.stall_s) == (pytest.approx(15.7 - 10.5), pytest.approx(0.9))


def test_a_donor_s_snapshot_is_a_stall() -> None:
    taken = [entry("a", 12.5, "snapshot", stall_ms=20.0), entry("c", 12.5, "snapshot", stall_ms=50.0)]
    elsewhere = [entry("c", 3.5, "snapshot", stall_ms=70.0)]
    (cost,) = costs(ordered(scale_out(), taken, elsewhere), [Event("scale-out", "j", 5.0)], IDS)
    assert cost.stall_s == pytest.approx(0.3 + 0.05)


def test_waiting_for_the_leaver_s_last_contribution_is_no_stall() -> None:
    views = [view(p, 10.53, 2, "ab") for p in "abc"]
    last = step(11, {"a": (10.6, 11.9), "b": (10.6, 11.9), "c": (11.8, 11.9)})
    after = quiet(12, 20, 0.1, view=2, by="ab")
    (cost,) = costs(ordered(VIEWS, quiet(1, 10, 0.1), views, last, after), [Event("scale-in", "c", 10.5)], IDS)
    assert cost.stall_s == pytest.approx(0.0)


def test_the_event_s_own_peer_does_not_stall() -> None:
    """`c` leaves: what it waits for itself, until its last step is stable, costs nobody else anything."""
    own = step(11, {"c": (10.6, 19.0)})
    views = [view(p, 10.52, 2, "ab") for p in "ab"]
    entries = ordered(VIEWS, quiet(1, 10, 0.1), own, views, quiet(11, 20, 0.1, view=2, by="ab"))
    (cost,) = costs(entries, [Event("scale-in", "c", 10.5)], IDS)
    assert cost.stall_s == pytest.approx(0.0)


def test_no_event() -> None:
    assert costs(quiet(1, 5, 0.1), [], IDS) == []
