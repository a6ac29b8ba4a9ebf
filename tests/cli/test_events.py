"""`chaos events`: traces of several peers as one history."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chaos.agent import client
from chaos.cli import events
from chaos.cli.events import AgentSource, follow, paths_of, show_events
from chaos.core.errors import ChaosError
from chaos.observe.trace import Tail, TraceWriter
from tests.cli.test_main import call

Line = dict[str, Any]


class Clocks:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def traces(tmp_path: Path) -> dict[str, TraceWriter]:
    """Of two peers, one of them on a host whose clock is an hour ahead: it leaves, and the other notices."""
    walls = {"ahead": Clocks(1_000_003_600.0), "right": Clocks(1_000_000_000.0)}
    writers = {name: TraceWriter(tmp_path / f"{name}.jsonl", name, wall=wall) for name, wall in walls.items()}
    writers["right"].write("doubt", {"peer": "third", "reason": "silent"})
    writers["ahead"].write("leave", {"reason": "SIGTERM"})
    writers["right"].causal.hear(writers["ahead"].causal.stamp())
    writers["right"].write("propose", {"view": 3, "freeze": False})
    writers["right"].write("commit", {"step": 7, "loss": 1.0, "contributors": [], "late": [], "skip": ""})
    return writers


@pytest.mark.usefixtures("traces")
def test_files_of_a_folder_are_shown_in_causal_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "events", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[6] for line in lines] == ["doubt", "leave", "propose"]
    assert "does not hear third: silent" in lines[0]


def test_events_are_chosen_by_peer_and_kind_and_printed_as_json(
    traces: dict[str, TraceWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / f"{name}.jsonl") for name in traces]
    for options, kinds in (
        (["--peer", "ahead"], ["leave"]),
        (["--peer", "third"], ["doubt"]),
        (["--kind", "commit", "--kind", "leave"], ["leave", "commit"]),
    ):
        assert call(monkeypatch, "events", *files, *options, "--json") == 0
        assert [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()] == kinds


@pytest.mark.parametrize(
    ("given", "error"),
    [(["absent.jsonl", "also"], "absent.jsonl is no file"), (["empty"], r"no trace \(\*.jsonl\) in empty")],
)
def test_what_is_no_source_is_named(
    given: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, "events", *given) == 1
    assert re.search(error, capsys.readouterr().err)


@pytest.mark.usefixtures("traces")
def test_an_agent_s_lines_are_asked_for_page_by_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [line for path in paths_of([str(tmp_path)]) for line in Tail(path).read()]
    asked: list[int] = []

    def ask(_address: str, question: Any, _security: Any) -> Line:
        asked.append(question.after)
        found = lines[question.after : question.after + 2]
        return {"lines": [json.dumps(line) for line in found], "next": question.after + len(found)}

    monkeypatch.setattr(client, "ask", ask)
    show_events(AgentSource("a:1", None, True), False, set(), set(), as_json=True)
    assert [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()] == ["doubt", "leave", "propose"]
    assert asked == [0, 2, 4, 6]


def test_following_shows_an_effect_after_its_cause_though_it_is_heard_of_first(
    traces: dict[str, TraceWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_peer = {name: Tail(tmp_path / f"{name}.jsonl").read() for name in traces}
    batches = [by_peer["right"], by_peer["ahead"], [], []]
    shown: list[str] = []
    monkeypatch.setattr(events.time, "sleep", lambda _: None)
    monkeypatch.setattr(events.time, "time", lambda: 1_000_003_601.0 + (10 if len(batches) < 2 else 0))

    def read() -> list[Line]:
        if not batches:
            raise ChaosError("the agent ended")
        return batches.pop(0)

    with pytest.raises(ChaosError, match="ended"):
        follow(read, lambda lines: shown.extend(line["kind"] for line in lines if line["kind"] != "trace"))
    assert shown == ["doubt", "leave", "propose", "commit"]


def test_a_tail_goes_on_through_a_rotation_and_leaves_out_half_a_line(tmp_path: Path) -> None:
    trace = TraceWriter(tmp_path / "t", "a", limit_bytes=800)
    tail, seen = Tail(tmp_path / "t"), []
    for number in range(12):
        trace.write("line", {"number": number})
        if number % 2:
            seen += tail.read()
    with (tmp_path / "t").open("ab") as file:
        file.write(b'{"kind": "half')
    seen += tail.read()
    assert [line["number"] for line in seen if line["kind"] == "line"] == list(range(12))
    assert (tmp_path / "t.1").exists()
    assert Tail(tmp_path / "not yet").read() == []
    (tmp_path / "t.1").unlink()
    assert [line["number"] for line in Tail(tmp_path / "t").read() if line["kind"] == "line"][-1] == 11
