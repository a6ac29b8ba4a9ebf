"""What a person sees of long work: lines in a log, a bar on a terminal; told once, and with its end."""

from __future__ import annotations

import io
from typing import Any

import pytest

from chaos.agent.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log() -> tuple[Progress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Progress("b", stream, clock), stream, clock


def view(
    first_step: int, members: tuple[str, ...] = ("a", "b"), reason: str = "", role: str = "member"
) -> dict[str, Any]:
    return {"role": role, "first_step": first_step, "members": list(members), "reason": reason}


def join(progress: Progress, clock: Clock, pieces: int = 4) -> None:
    progress.take("catch_up", {"reason": "a learner now"})
    progress.take("learner", {"phase": "prepare"})
    progress.take("learner", {"phase": "offer"})
    progress.take("learner", {"phase": "fetch"})
    progress.expect(75, 400_000_000)
    for _ in range(pieces):
        clock.now += 6
        progress.arrived(100_000_000)
    progress.take("learner", {"phase": "load"})
    progress.take("learner", {"phase": "verify"})
    progress.take("view", view(78))


def test_a_join_in_a_log(log: tuple[Progress, io.StringIO, Clock]) -> None:
    progress, stream, clock = log
    join(progress, clock)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "chaos: joining: asking the members for their state",
        "chaos: joining: waiting for a snapshot",
        "chaos: joining: fetching the state",
        "chaos: joining: state of step 75, 400.0 MB",
        "chaos: joining: 50% of 400.0 MB",
        "chaos: joining: 100% of 400.0 MB",
        "chaos: joining: loading the state",
        "chaos: joining: comparing the state with a member's",
        "chaos: b is a member from step 78 on, after 24.0 s",
    ]


def test_who_was_a_member_heals(log: tuple[Progress, io.StringIO, Clock]) -> None:
    progress, stream, clock = log
    progress.take("view", view(1))
    assert stream.getvalue() == "", "a founder did not wait for anything"
    join(progress, clock)
    assert "chaos: healing: loading the state" in stream.getvalue() and "joining" not in stream.getvalue()


def test_members_see_who_comes_and_goes(log: tuple[Progress, io.StringIO, Clock]) -> None:
    progress, stream, _ = log
    progress.take("view", view(1, ("b",), "founded"))
    progress.take("view", view(4, ("b",), "c is admitted as learner"))
    progress.take("view", view(9, ("b", "c"), "scale-out: c becomes a member"))
    progress.take("view", view(20, ("b", "c"), "sync plan: it follows the links"))
    progress.take("view", view(31, ("b",), "failure: without c (sealed)"))
    progress.take("view", view(40, ("a", "c"), "failure: without b (silent)", role="learner"))
    assert stream.getvalue().splitlines() == [
        "chaos: scale-out: c becomes a member; 2 members from step 9 on",
        "chaos: failure: without c (sealed); 1 member from step 31 on",
    ]


def test_what_ended_is_not_shown_any_more(log: tuple[Progress, io.StringIO, Clock]) -> None:
    progress, stream, clock = log
    progress.take("catch_up", {"reason": ""})
    progress.take("stop", {"code": 6})
    clock.now += 100
    progress.arrived(5)
    progress.take("learner", {"phase": "load"})
    assert stream.getvalue() == ""


def test_a_joiner_sees_why_it_is_not_let_in(log: tuple[Progress, io.StringIO, Clock]) -> None:
    progress, stream, clock = log
    for left in range(12, 0, -1):
        reason = f"it was lost 3 times lately; it may come back in {left} s"
        progress.take("refused", {"peer": "a", "reason": reason, "final": False})
        clock.now += 1
    clock.now += 100
    progress.take("refused", {"peer": "a", "reason": "another model", "final": True})
    assert stream.getvalue().splitlines() == [
        "chaos: not let in yet by a: it was lost 3 times lately; it may come back in 12 s",
        "chaos: not let in yet by a: it was lost 3 times lately; it may come back in 2 s",
    ]


def test_checkpoints_do_not_fill_the_log(log: tuple[Progress, io.StringIO, Clock]) -> None:
    progress, stream, clock = log
    for step in range(30):
        progress.take("checkpoint", {"step": step, "seconds": 0.1, "path": "/c"})
        clock.now += 1
    assert [line.split()[4] for line in stream.getvalue().splitlines()] == ["0", "10", "20"]


def test_a_checkpoint_that_is_read(log: tuple[Progress, io.StringIO, Clock]) -> None:
    progress, stream, clock = log
    for done in (25, 50, 75, 100):
        clock.now += 6
        progress.read(100_000_000, done * 1_000_000)
    assert stream.getvalue().splitlines() == [
        "chaos: resuming: reading the checkpoint, 100.0 MB",
        "chaos: resuming: 75% of 100.0 MB",
        "chaos: checkpoint read and whole, after 18.0 s",
    ]


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, clock = Terminal(), Clock()
    progress = Progress("b", stream, clock)
    join(progress, clock)
    shown = stream.getvalue()
    assert "joining: state of step 75" in shown and "300.0/400.0 MB" in shown and "━" in shown
    assert shown.endswith("chaos: b is a member from step 78 on, after 24.0 s\n")
    assert progress._bars is None
