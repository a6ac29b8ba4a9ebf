"""`chaos link`: an operator cuts a link of a run that trains, and makes it again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.cluster import Cluster, Peer
from tests.e2e.lineage import check_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def chaos(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    party = str(cluster.party("home").directory)
    command = [sys.executable, "-m", "chaos.cli.main", *words, "--party", party]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def links(peer: Peer) -> set[str]:
    """Names of the peers to whom it has a link now."""
    found: set[str] = set()
    for entry in peer.entries():
        if entry["kind"] == "link_up":
            found.add(entry["about"])
        elif entry["kind"] == "link_down":
            found.discard(entry["about"])
    return found


def test_a_link_is_cut_and_made_again(cluster: Cluster) -> None:
    """Between two steps, agreed on by all; what the ends send each other goes over the third meanwhile."""
    job = cluster.job()
    a, b, c = peers = cluster.found("abc", job)
    answer = chaos(cluster, "link", "disconnect", "c", b.address(), "--json")
    assert answer.returncode == 0, answer.stderr
    view = json.loads(answer.stdout)["view"]
    cluster.until(lambda: links(b) == {"a"} and links(c) == {"a"}, 5, "b and c have no link")
    at = max(peer.step for peer in peers)
    cluster.until(lambda: min(peer.step for peer in peers) > at + 20, 30, "they train on")
    status = json.loads(chaos(cluster, "status", c.address(), "--json").stdout)
    assert status["view"] >= view and status["cut"] == [["b", "c"]]
    assert {m["name"]: m["share"] for m in status["members"]} == {"a": 1.0, "b": 0.0, "c": 0.0}

    again = chaos(cluster, "link", "disconnect", "b", c.address())
    assert again.returncode != 0 and "cut already" in again.stderr
    assert chaos(cluster, "link", "connect", "b", c.address()).returncode == 0
    cluster.until(lambda: links(b) == {"a", "c"} and links(c) == {"a", "b"}, 10, "the link is back")
    nobody = chaos(cluster, "link", "disconnect", "x", a.address())
    assert nobody.returncode != 0 and "'x' is no other peer" in nobody.stderr

    cluster.finish(peers)
    check_run(cluster, job, peers)
    for peer in peers:
        assert not peer.entries("suspect"), "a cut by order makes nobody suspect"
        assert not [view for view in peer.entries("view") if view["abort"]], "no round was void"
