"""What the demo shows: numbers from the traces, events in plain words."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from chaos.cli.demo_board import Board
from chaos.cli.demo_costs import Cost
from chaos.cli.demo_summary import Summary, summarise
from chaos.cli.demo_view import LiveTable, PlainLines, display_for, picture, report, sparkline
from chaos.core.errors import ChaosError
from chaos.observe.trace import TraceWriter
from chaos.observe.trace_file import TraceFiles
from tests.cli.traces import boundary, commit, entry, run_of, view


def board_of(*peers: str) -> Board:
    board = Board(steps=30)
    for peer in peers:
        board.add_peer(peer, "north")
    return board


def text_of(*renderables: object) -> str:
    console = Console(file=io.StringIO(), width=110)
    for one in renderables:
        console.print(one)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_numbers() -> None:
    board = board_of("a", "b")
    board.take([view("a", 0, 1, "ab"), boundary("a", 1, 0), commit("a", 1.25, 1), commit("b", 1.3, 1, loss=9.0)])
    assert (board.step, list(board.losses), board.members) == (1, [4.9], ("a", "b"))
    a = board.peers["a"]
    assert (a.role, a.step, a.compute_s, a.wait_s) == ("member", 1, 0.1, 0.25)


def test_a_step_without_samples_has_no_loss() -> None:
    board = board_of("a")
    board.take([commit("a", 1, 1, loss=None)])
    assert (board.step, list(board.losses)) == (1, [])


def test_each_view_is_told_once() -> None:
    board = board_of("a", "b")
    board.take([view(p, 0, 1, "ab", "scale-out: b becomes a member") for p in "ab"])
    board.take([view("a", 0, 2, "a", "failure: without b")])
    assert list(board.events) == [
        "scale-out: b becomes a member; 2 members",
        "failure: without b; 1 member",
    ]


def test_an_older_view_that_comes_late_does_not_bring_members_back() -> None:
    board = board_of("a", "b")
    board.take([view("a", 1, 2, "a"), view("b", 2, 1, "ab")])
    assert board.members == ("a",)


def test_events_in_words() -> None:
    board = board_of("a")
    board.take(
        [
            entry("a", 1, "fetched_state", step=7, bytes=9_900_000, sources={"1": 5, "2": 5}),
            entry("a", 2, "digests_equal", step=9, peer="b"),
            entry("a", 3, "link_up", peer="b"),
            entry("a", 4, "worker_died", reason="signal 9"),
            entry("a", 5, "stop", code=0, reason="done"),
        ]
    )
    assert list(board.events) == [
        "a has the state of step 7: 9.9 MB from 2 donors",
        "a compared its state of step 9 with a member's: equal",
        "the worker of a died: signal 9",
    ]
    assert board.peers["a"].role == "left"


def test_a_peer_that_stops_at_the_end_is_done() -> None:
    board = board_of("a")
    board.take([commit("a", 1, 30), entry("a", 2, "stop", code=0, reason="")])
    assert board.peers["a"].role == "done"


def test_a_killed_peer_stays_killed() -> None:
    board = board_of("a")
    board.set_role("a", "killed")
    board.take([entry("a", 1, "stop", code=0, reason="")])
    assert board.peers["a"].role == "killed"


def test_plain_lines_print_every_event_once() -> None:
    console = Console(file=io.StringIO(), width=40)
    board = board_of("a")
    with PlainLines(console) as display:
        for step in range(1, 26):
            board.take([commit("a", step, step)])
            if step % 12 == 0:
                board.tell(f"something with a name that is longer than the console is wide, at {step} [x]")
            display.show(board)
        display.show(board)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["10/30", "12:", "20/30", "24:"]
    assert lines[1].endswith("at 12 [x]")


def test_more_events_between_two_looks_than_are_kept() -> None:
    console = Console(file=io.StringIO(), width=80)
    board = board_of("a")
    for number in range(20):
        board.tell(f"event {number}")
    PlainLines(console).show(board)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [f"event {number}" for number in range(12, 20)]


def test_the_live_table() -> None:
    board = board_of("peer-1", "peer-2")
    assert "no step yet" in text_of(picture(board))
    empty = text_of(picture(board)).count("\n")
    board.take([view("peer-1", 0, 1, ["peer-1", "peer-2"]), boundary("peer-1", 1, 0), commit("peer-1", 1.25, 1)])
    text = text_of(picture(board))
    assert "step 1 of 30" in text and "loss 4.900" in text
    line = next(line for line in text.splitlines() if "peer-1" in line)
    assert line.strip("│ ").split() == ["peer-1", "north", "member", "1", "100", "ms", "250", "ms"]
    board.tell("words " * 50)
    assert text_of(picture(board)).count("\n") == empty, "its height stays"


def test_the_display_fits_the_console() -> None:
    assert isinstance(display_for(Console(file=io.StringIO(), force_terminal=True)), LiveTable)
    assert isinstance(display_for(Console(file=io.StringIO())), PlainLines)


@pytest.mark.parametrize(("values", "line"), [([], ""), ([2.0, 2.0], "▁▁"), ([0.0, 7.0, 3.0], "▁█▄")])
def test_sparkline(values: list[float], line: str) -> None:
    assert sparkline(values) == line


# --- the summary --------------------------------------------------------------------------------------


def test_the_json_has_the_promised_keys() -> None:
    summary = Summary(9, 5.0, 2.0, 3, True, 0, 0, (Cost("failure", "a", 0.123456789, 0.0, 1),))
    assert json.loads(json.dumps(summary.as_json())) == {
        "steps": 9,
        "loss_first": 5.0,
        "loss_last": 2.0,
        "peers_final": 3,
        "digests_equal": True,
        "lost_updates": 0,
        "samples_counted_twice": 0,
        "events": [{"kind": "failure", "peer": "a", "delay_s": 0.123457, "stall_s": 0.0, "steps_during": 1}],
    }


def test_summarise() -> None:
    summary = summarise(run_of("ab", 3), [], {})
    assert summary == Summary(3, 4.9, 4.7, 2, True, 0, 0, ())
    assert summary.kept_its_promises


@pytest.mark.parametrize(
    "broken",
    [
        Summary(3, 4.9, 4.7, 2, False, 0, 0, ()),
        Summary(3, 4.9, 4.7, 2, True, 1, 0, ()),
        Summary(3, 4.9, 4.7, 2, True, 0, 1, ()),
    ],
)
def test_broken_promises(broken: Summary) -> None:
    assert not broken.kept_its_promises


def test_nothing_to_judge() -> None:
    with pytest.raises(ChaosError, match="no step of the run became stable"):
        summarise([], [], {})


def test_the_report() -> None:
    summary = Summary(240, 5.6, 2.4, 3, True, 0, 0, (Cost("scale-in", "peer-3", 0.0123, 0.5, 2),))
    text = text_of(report(summary))
    assert "5.600 at first, 2.400 at last" in text and "equal to the last bit" in text
    line = next(line for line in text.splitlines() if line.startswith("peer-3 left"))
    assert line.split() == ["peer-3", "left", "12", "ms", "500", "ms", "2"]


# --- reading ------------------------------------------------------------------------------------------


def test_traces_are_read_while_they_are_written(tmp_path: Path) -> None:
    files = TraceFiles({"a": tmp_path / "a", "b": tmp_path / "b"})
    assert files.read() == []
    clock = iter((1.0, 3.0, 2.0, 4.0, 5.0))
    a = TraceWriter(tmp_path / "a", "a", clock=lambda: next(clock))
    a.write("stable", {"step": 1})
    b = TraceWriter(tmp_path / "b", "b", clock=lambda: next(clock))
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole[:-9])
    assert [(e.peer, e.t, e.kind) for e in files.read()] == [("a", 1.0, "trace"), ("b", 2.0, "trace")]
    with (tmp_path / "a").open("ab") as file:
        file.write(whole[-9:])
    (late,) = files.read()
    assert (late.peer, late.t, late["step"]) == ("a", 3.0, 1)
    assert files.read() == []
    a.close()
    b.close()
