"""`chaos top`, driven as by a user."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from textual.widgets import DataTable, Static

from chaos.observe.feed import Feed
from chaos.observe.top import Top
from chaos.observe.trace import TraceWriter
from tests.cli.test_main import call
from tests.observe.test_dashboard import LINES, Fixed, Line, handled
from tests.observe.test_fold import line, view


def rows(app: Top, name: str) -> list[list[str]]:
    table = app.query_one(f"#{name}", DataTable)
    return [[str(cell) for cell in table.get_row_at(i)] for i in range(table.row_count)]


class Later:
    """A source of several batches."""

    def __init__(self, *batches: list[Line]) -> None:
        self._batches = list(batches)

    def read(self) -> list[Line]:
        return self._batches.pop(0) if self._batches else []


def test_it_shows_peers_links_and_events_as_they_come() -> None:
    feed = Feed(Later([*LINES, handled()], [view(6, 2, ["a"], abort=True, reason="failure: without b", first_step=4)]))
    feed.look()

    async def drive() -> None:
        app = Top(feed)
        async with app.run_test(size=(160, 40)) as pilot:
            assert str(app.query_one("#standing", Static).render()).startswith("view 1, step 3, 2 members, loss 2.0000")
            assert [row[:2] for row in rows(app, "peers")] == [["a", "● member"], ["b", "● member"]]
            assert rows(app, "links")[0][:2] == ["a - b", "up"]
            assert [row[0] for row in rows(app, "links")] == ["a - b", "a - c"]
            feed.look()
            app.redraw()
            await pilot.pause()
            assert [row[:2] for row in rows(app, "peers")] == [["a", "● member"], ["b", "✕ gone"]]
            assert rows(app, "events")[0][-1] == "failure: without b"
            assert "1 member of 2 that there were" in str(app.query_one("#standing", Static).render())
            await pilot.press("tab", "tab", "down", "q")
        assert app.return_code == 0

    asyncio.run(drive())


def test_markup_in_what_peers_say_is_text_and_trouble_is_said() -> None:
    evil = "[red]x[/red][@click=app.quit]y[/]"
    feed = Feed(Fixed([view(1, 1, ["a", evil]), line(2, "a", "suspect", about=evil, reason=evil)], "nobody [b]listens"))
    feed.look()
    feed.look()

    async def drive() -> None:
        app = Top(feed)
        async with app.run_test(size=(160, 40)):
            assert {row[0] for row in rows(app, "peers")} == {"a", evil}
            assert str(app.query_one("#trouble", Static).render()) == "nobody [b]listens"
            assert app.query_one("#trouble").has_class("said")

    asyncio.run(drive())


def test_the_command_prints_the_picture_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = TraceWriter(tmp_path / "a.jsonl", "a")
    trace.write("stable", {"step": 7})
    trace.close()
    assert call(monkeypatch, "top", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["stable"] == 7
    assert call(monkeypatch, "top", str(tmp_path)) == 1
    assert "needs a terminal" in capsys.readouterr().err
    assert call(monkeypatch, "top", "127.0.0.1:1", "--plain") == 1
    assert "nobody listens at 127.0.0.1:1" in capsys.readouterr().err
