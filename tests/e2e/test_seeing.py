"""What people see of a real run: any one peer knows what happened at all of them, also at one that is dead."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from typing import Any

import pytest

from chaos.agent.client import request_lines
from chaos.observe.fold import Fold
from chaos.observe.picture import Picture
from chaos.observe.trace import in_order, merge
from tests.e2e.cluster import Cluster, Peer

pytestmark = pytest.mark.e2e
PAGE = re.compile(r"chaos: dashboard at (http://\S+/)")


def lines_of(cluster: Cluster, peer: Peer) -> list[dict[str, Any]]:
    return request_lines(peer.address(), party=cluster.party("home").directory)[0]


def picture_of(lines: list[dict[str, Any]]) -> Picture:
    return Fold().take_all(in_order([[line] for line in lines]))


def test_any_peer_shows_the_whole_run_and_so_do_the_traces(cluster: Cluster) -> None:
    a, b, c = cluster.found("abc", cluster.job())
    d = cluster.start("d", cluster.job(), join=[b.address()])
    cluster.until_member(d)
    c.kill("group")
    cluster.until(lambda: a.view["members"] == ["a", "b", "d"] == b.view["members"], 20, "c is gone")
    cluster.until(lambda: len(handled(cluster, b, "failure")) == 3, 10, "all three told b how long it took")
    seen = lines_of(cluster, b)
    assert {line["peer"] for line in seen} == {"a", "b", "c", "d"}, "c's lines outlive it"
    for line in handled(cluster, b, "failure"):
        assert line["learned"] <= line["proposed"] <= line["decided"] <= line["installed"]
        assert 0 < line["computing_ms"] + line["acting_ms"] <= line["handling_ms"] + 0.01
    peers = [a, b, c, d]
    for picture in (picture_of(seen), Fold().take_all(merge(peer.trace for peer in peers))):
        assert (picture.members, picture.most_members) == (["a", "b", "d"], 4)
        assert picture.peers["c"].state == "gone"
        assert picture.joins["d"].outcome == "member"
        assert any(event.kind == "failure" and len(event.handling_ms) == 3 for event in picture.events)
        assert {link for link, shown in picture.links.items() if shown.state == "up"} == {"a b", "a d", "b d"}
    cluster.until(lambda: told(cluster, a, "b"), 15, "a knows what b measures of itself")
    measured = picture_of(lines_of(cluster, a)).peers["b"]
    assert measured.host["memory_total"] > 0
    assert sum(picture_of(lines_of(cluster, a)).links["a b"].sends["b"].bytes.values()) > 0
    cluster.finish([a, b, d])


def handled(cluster: Cluster, peer: Peer, cause: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(cluster, peer) if line["kind"] == "handled" and line["cause"] == cause]


def told(cluster: Cluster, peer: Peer, other: str) -> bool:
    return any(line["kind"] == "sample" and line["peer"] == other and line["worker"]["steps"]
               for line in lines_of(cluster, peer))  # fmt: skip


def test_the_page_of_a_peer_shows_a_kill_within_a_second(cluster: Cluster) -> None:
    a = cluster.start("a", cluster.job(), "--min-peers", "2", "--dashboard", "127.0.0.1:0")
    b = cluster.start("b", cluster.job(), join=[a.address()])
    cluster.until(lambda: a.step >= 5 and b.step >= 5, 120, "a and b train")
    cluster.until(lambda: PAGE.search(a.output()) is not None, 60, "the page's address is printed")
    found = PAGE.search(a.output())
    assert found is not None

    def shown() -> dict[str, Any]:
        with urllib.request.urlopen(found.group(1) + "picture.json", timeout=10) as answer:
            picture: dict[str, Any] = json.loads(answer.read())["picture"]
            return picture

    cluster.until(lambda: shown()["members"] == ["a", "b"], 20, "the page shows both")
    b.kill("group")
    cluster.until(lambda: a.view["members"] == ["a"], 20, "a goes on alone")
    since = time.monotonic()
    cluster.until(lambda: shown()["peers"]["b"]["state"] == "gone", 20, "the page shows that b is gone")
    took = time.monotonic() - since
    assert took < 5, f"it took {took:.1f} s on this machine; the page is 0.4 s behind where there is time"
    cluster.finish([a])


SCRIPT = """
import json, sys, chaos, torch
from pathlib import Path
torch.manual_seed(0)
model = torch.nn.Linear(2, 1)
data = torch.utils.data.TensorDataset(torch.ones(64, 2), torch.ones(64, 1))
seen = []
with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.01), on_event=seen.append) as run:
    for epoch in run.epochs(2):
        for x, y in run.shard(data, batch_size=8):
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            run.step(loss)
    Path(sys.argv[0]).with_name("seen.json").write_text(json.dumps([run.steps, seen]))
    raise ValueError("patient 4711")
"""


def test_a_script_is_told_of_the_run_and_its_traceback_stays_at_home(cluster: Cluster) -> None:
    script = cluster.folder / "told.py"
    script.write_text(SCRIPT)
    a = cluster.start("a", None, script=script)
    assert a.wait(120) == 5, "the only member, and so the state, is gone"
    last, seen = json.loads((cluster.folder / "seen.json").read_text())
    kinds = [event["kind"] for event in seen]
    assert kinds.count("view") == 1
    assert [event["step"] for event in seen if event["kind"] == "commit"] == list(range(1, last + 1))
    assert "patient 4711" in a.entries("worker_failed")[0]["traceback"]
