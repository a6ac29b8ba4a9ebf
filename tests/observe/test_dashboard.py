"""The page's server: whom it answers, and what; metrics; and the page in a browser."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from chaos.cli.dashboard import page, parse_listen
from chaos.core.errors import ChaosError
from chaos.observe.dashboard.guard import Guard, is_loopback
from chaos.observe.dashboard.server import make_app
from chaos.observe.feed import Feed
from chaos.observe.metrics import metrics_of
from chaos.observe.trace import TraceWriter
from tests.observe.test_fold import commit, line, sample, view

Line = dict[str, Any]
CHROMIUM = shutil.which("chromium")


class Fixed:
    """A source whose lines come once; then it has trouble, if any is given."""

    def __init__(self, lines: list[Line], trouble: str = "") -> None:
        self._batches, self._trouble = [lines], trouble

    def read(self) -> list[Line]:
        if self._batches:
            return self._batches.pop()
        if self._trouble:
            raise ChaosError(self._trouble)
        return []


LINES = [
    view(1, 1, ["a", "b"], cut=[["a", "c"]]),
    line(1, "a", "link_up", about="b"),
    *[commit(step, step, ["a", "b"], loss=5.0 - step) for step in (1, 2, 3)],
    sample(4, "a", links={"b": {"rtt_s": 0.02, "rate": 7, "out": {"gradients": 12, "control": 3, "state": 0}}},
           worker={"compute_s": 0.25}),
    line(5, "a", "stable", step=2),
]  # fmt: skip


def app_of(lines: list[Line], host: str = "127.0.0.1", token: str = "", trouble: str = "") -> tuple[Starlette, Feed]:
    feed = Feed(Fixed(lines, trouble))
    feed.look()
    return make_app(feed, host, token), feed


def get(
    app: Starlette, path: str, method: str = "GET", query: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One request, without a network: status, headers, body."""
    sent: list[dict[str, Any]] = []
    given = {"host": "127.0.0.1:8800"} | {name.replace("_", "-"): value for name, value in headers.items()}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()], "server": ("127.0.0.1", 8800),
        "client": ("127.0.0.1", 1), "extensions": {},
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:])


# --- whom it answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8800"}, 200),
        ({"host": "[::1]:8800"}, 200),
        ({"host": "chaos.example:8800"}, 403),
        ({"host": ""}, 403),
        ({"host": "127.0.0.1.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"origin": "http://127.0.0.1:8800"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 200),
        ({"sec_fetch_site": "same-origin"}, 200),
    ],
)
def test_on_loopback_no_foreign_page_may_have_a_browser_look(headers: dict[str, str], status: int) -> None:
    for path in ("/", "/picture.json", "/metrics"):
        assert get(app_of(LINES)[0], path, **headers)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_shows(method: str) -> None:
    assert get(app_of(LINES)[0], "/", method)[0] == 405


def test_elsewhere_it_wants_the_token() -> None:
    app, _ = app_of(LINES, host="0.0.0.0", token="s3cret")
    for path in ("/", "/picture.json", "/metrics", "/app.js"):
        assert get(app, path, host="node7:8800")[0] == 401
        assert get(app, path, host="node7:8800", cookie="chaos_token=wrong")[0] == 401
        assert get(app, path, host="node7:8800", authorization="Bearer wrong")[0] == 401
        assert get(app, path, host="node7:8800", query="token=wrong")[0] == 401
        assert get(app, path, host="node7:8800", cookie="chaos_token=s3cret")[0] == 200
    assert get(app, "/metrics", host="node7:8800", authorization="Bearer s3cret")[0] == 200
    status, headers, _ = get(app, "/", host="node7:8800", query="token=s3cret")
    assert (status, headers["location"]) == (303, "/"), "the token does not stay in the address"
    assert "HttpOnly" in headers["set-cookie"] and "SameSite=strict" in headers["set-cookie"]
    with pytest.raises(ValueError, match="token"):
        Guard(app, "0.0.0.0", "")


def test_a_page_with_a_token_refuses_foreign_pages_too() -> None:
    app, _ = app_of(LINES, host="0.0.0.0", token="s3cret")
    foreign = {"host": "node7:8800", "cookie": "chaos_token=s3cret", "origin": "http://evil.example"}
    assert get(app, "/picture.json", **foreign)[0] == 403


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("localhost.example", False)],
)  # fmt: skip
def test_what_counts_as_this_machine_only(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_nothing_comes_from_elsewhere_and_nothing_frames_it() -> None:
    policy = get(app_of(LINES)[0], "/")[1]["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    for name in ("/", "/app.js", "/style.css"):
        body = get(app_of(LINES)[0], name)[2].decode()
        assert not re.search(r"https?://|src=\"//|@import|innerHTML|insertAdjacentHTML|document\.write|eval\(", body)


# --- what it answers ------------------------------------------------------------------------------------------


def test_the_picture_comes_once_and_anew_when_there_is_something_new() -> None:
    app, feed = app_of(LINES, trouble="nobody listens at a:1")
    status, headers, body = get(app, "/picture.json")
    shown = json.loads(body)
    assert status == 200
    assert shown["picture"]["standing"] == "step 3, 2 members, loss 2.0000"
    assert shown["trouble"] == ""
    assert get(app, "/picture.json", if_none_match=headers["etag"])[0] == 304
    feed.look()
    again = get(app, "/picture.json", if_none_match=headers["etag"])
    assert again[0] == 200
    assert json.loads(again[2])["trouble"] == "nobody listens at a:1"


def test_it_is_compressed_and_the_charts_library_is_served_from_here() -> None:
    app, _ = app_of([*LINES, *[commit(step, step, ["a", "b"]) for step in range(4, 60)]])
    _, headers, body = get(app, "/picture.json", accept_encoding="gzip")
    assert headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(body))["picture"]["step"] == 59
    assert len(get(app, "/plotly.min.js")[2]) > 10**6
    assert get(app, "/../guard.py")[0] == 404
    assert get(app, "/guard.py")[0] == 404


def metric(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    return found[f"chaos_{name}", tuple(sorted(labels.items()))]


def test_metrics_say_what_the_picture_says() -> None:
    app, feed = app_of(LINES)
    status, headers, body = get(app, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(body.decode()))
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}
    assert all(name.startswith("chaos_") for name, _ in found)
    assert (metric(found, "step"), metric(found, "stable_step"), metric(found, "members")) == (3, 2, 2)
    assert (metric(found, "loss"), metric(found, "samples_total"), metric(found, "step_seconds")) == (2, 24, 1)
    assert metric(found, "peer_state", peer="b", state="member") == 1
    assert metric(found, "peer_state", peer="b", state="gone") == 0
    assert metric(found, "peer_contributions_total", peer="a") == 3
    assert metric(found, "peer_cpu_ratio", peer="a") == 0.5
    assert metric(found, "link_up", a="a", b="b") == 1
    assert metric(found, "link_sent_bytes_total", source="a", destination="b", purpose="gradients") == 12
    assert metric(found, "link_round_trip_seconds", a="a", b="b") == 0.02
    assert feed.show(lambda picture, _: len(metrics_of(picture))) == len(families)


def test_every_metric_of_the_grafana_file_exists() -> None:
    board = (Path(__file__).parents[2] / "docs" / "grafana.json").read_text()
    json.loads(board)
    body = get(app_of([*LINES, handled()])[0], "/metrics")[2].decode()
    known = {s.name for family in text_string_to_metric_families(body) for s in family.samples}
    wanted = set(re.findall(r"chaos_[a-z_]+", board))
    assert wanted and wanted <= known


def handled() -> Line:
    return line(2, "a", "handled", view=1, causes=[], cause="", handling_ms=3.0, computing_ms=1.0, acting_ms=1.0)


@pytest.mark.parametrize("text", ["8800", "host:", ":1", "host:x", "host:70000"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ChaosError, match="give HOST:PORT"):
        parse_listen(text)


def test_addresses() -> None:
    assert parse_listen("[::1]:80") == ("::1", 80)
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)


# --- in a browser ---------------------------------------------------------------------------------------------


def dom(address: str, folder: Path) -> str:
    """The page as a browser has it after some seconds."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder}", "--virtual-time-budget=4000", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return done.stdout


@pytest.mark.e2e
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_shows_a_run_and_markup_is_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    traces = tmp_path / "traces"
    trace = TraceWriter(traces / "a.jsonl", "a")
    own = {"t", "wall", "stamp", "n", "peer", "in_view", "at_step", "kind"}
    lines = [
        view(1, 1, ["a", evil]),
        *[commit(step, step, ["a", evil]) for step in range(1, 9)],
        view(2, 2, ["a"], reason=f"failure: without {evil}", abort=True, first_step=9),
        line(3, "a", "worker_failed", traceback=f"Traceback\n{evil}: {evil}"),
        line(3, "a", "link_up", about=evil),
        sample(4, "a", links={evil: {"rtt_s": 0.02, "rate": 7, "out": {evil: 12}}}),
    ]
    for one in lines:
        trace.write(one["kind"], {key: value for key, value in one.items() if key not in own})
    trace.close()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with page(traces, "127.0.0.1:0", environment) as address:
        shown = dom(address, tmp_path / "profile")
    assert "<title>Chaos: step 8</title>" in shown, "drawn, and nothing of the markup ran"
    assert "step 8, 1 member of 2 that there were" in shown
    assert "without &lt;img src=x" in shown
    assert not re.search(r"<img[^>]*onerror|<script>document", shown)
    assert shown.count('class="main-svg"') >= 8, "four charts"
