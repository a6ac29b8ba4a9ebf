"""The report of a run: from the lines alone, with nothing from elsewhere in it, and nobody's text is markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chaos.cli.main import app
from chaos.core.errors import ChaosError
from chaos.observe.plots import presence
from chaos.observe.report import write_report
from chaos.observe.trace import TRACE_VERSION, trace_files

NASTY = "<script>alert(1)</script>"
NAMES = ["a", "b$x_1$", NASTY]
IDS = [f"{n:016x}" for n in range(3)]


def lines(writer: str = "a") -> list[dict[str, Any]]:
    """A run of three: the third joins and dies, and its script's traceback has markup in it."""
    found: list[dict[str, Any]] = []

    def add(at: float, kind: str, **fields: Any) -> None:
        base = {"t": at, "wall": 1e9 + at, "stamp": int((1e9 + at) * 1e6), "n": len(found), "peer": writer}
        found.append(base | {"in_view": 1, "at_step": 0, "kind": kind} | fields)

    def view(at: float, number: int, members: list[int], learners: list[int], first: int, reason: str) -> None:
        seats = [*members, *learners]
        add(at, "view", view=number, lineage="l", first_step=first, abort=False, role="member", cut=[], shares=[],
            members=[NAMES[i] for i in members], learners=[NAMES[i] for i in learners], reason=reason,
            ids=[IDS[i] for i in seats], parties=["p" * 16] * len(seats))  # fmt: skip

    def commit(at: float, step: int, number: int, who: list[int]) -> None:
        add(at, "commit", step=step, view=number, lineage="l", head="", digest="", loss=3.0 / step, weight=8.0,
            skip="", contributors=[IDS[i] for i in who], samples=[], epoch=0, late=[])  # fmt: skip

    add(0.0, "trace", version=TRACE_VERSION)
    view(0.1, 1, [0, 1], [2], 1, "founded")
    for step in range(1, 40):
        commit(step * 0.1, step, 1, [0, 1])
    add(2.05, "learner", phase="fetch")
    found[-1]["peer"] = NASTY
    add(2.06, "fetched_state", step=20, bytes=10_000_000, sources={"a": 6_000_000, "b$x_1$": 4_000_000})
    found[-1]["peer"] = NASTY
    view(4.0, 2, [0, 1, 2], [], 41, f"scale-out: {NASTY} becomes a member")
    for step in range(41, 60):
        commit(step * 0.1, step, 2, [0, 1, 2])
    add(6.0, "worker_failed", traceback=f"Traceback\nValueError: {NASTY} & <b>bold</b>")
    view(6.1, 3, [0, 1], [], 61, f"failure: without {NASTY}")
    for step in range(61, 70):
        commit(step * 0.1, step, 3, [0, 1])
    return found


def write(path: Path, written: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in written))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces, and the report beside them."""
    place = tmp_path_factory.mktemp("run")
    write_report([write(place / "a.jsonl", lines())], place / "report")
    return place


class Tags(HTMLParser):
    """What a browser would take for elements, and for text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_no_text_of_a_peer_becomes_markup(folder: Path) -> None:
    tags = Tags()
    tags.feed((folder / "report" / "report.html").read_text())
    assert "script" not in tags.tags and "b" not in tags.tags
    assert tags.text.count(NASTY) >= 6, "it is there as text: tables, pictures and the traceback"
    assert "b$x_1$" in tags.text, "dollar signs are no mathematics"


def test_nothing_comes_from_elsewhere(folder: Path) -> None:
    page = (folder / "report" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert all(link.startswith("#") for link in tags.links)
    assert set(re.findall(r"https?://[^/\"' <)]+", page)) <= {"http://www.w3.org"}
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page


def test_the_story_is_told(folder: Path) -> None:
    page = (folder / "report" / "report.html").read_text()
    for part in ("Training", "Timeline", "Peers", "Joins", "Tracebacks", "<svg", "2 of the 3 members"):
        assert part in page
    found = sorted(path.name for path in (folder / "report").glob("*.png"))
    assert found == ["contributions.png", "joins.png", "timeline.png", "training.png"]
    assert all((folder / "report" / name).read_bytes().startswith(b"\x89PNG") for name in found)


def test_the_same_trace_makes_the_same_page(folder: Path, tmp_path: Path) -> None:
    again = write_report([folder / "a.jsonl"], tmp_path)
    assert again.read_bytes() == (folder / "report" / "report.html").read_bytes()


def test_presence_follows_the_views() -> None:
    spans = [(s.peer, s.role, round(s.start - 1e9, 1), round(s.end - 1e9, 1)) for s in presence(lines())]
    assert (NASTY, "learner", 0.1, 4.0) in spans
    assert (NASTY, "member", 4.0, 6.1) in spans
    assert ("a", "member", 0.1, 6.9) in spans and len(spans) == 4


def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    page = write_report([write(tmp_path / "a.jsonl", lines()[:1])], tmp_path / "out").read_text()
    assert "<svg" not in page and "step 0" in page


def test_the_command(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "x"), "--json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == 0 and Path(answer["report"]).is_file() and len(answer["pictures"]) == 4
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ChaosError, match="there is no trace"):
        trace_files(empty)
    missing = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert isinstance(missing.exception, ChaosError) and "is no directory" in str(missing.exception)
    blocked = write(tmp_path / "file", [])
    with pytest.raises(ChaosError, match="cannot write the report"):
        write_report([folder / "a.jsonl"], blocked / "out")
