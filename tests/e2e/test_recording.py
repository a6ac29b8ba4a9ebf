"""What real agents recorded is replayed to the last event: the node that ran is the node that the simulator runs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from chaos.cli.main import app
from tests.e2e.cluster import Cluster, Peer

pytestmark = pytest.mark.e2e


def replayed(peer: Peer) -> dict[str, object]:
    """What `chaos sim --replay` says of this peer's recording."""
    result = CliRunner().invoke(app, ["sim", "--replay", str(peer.log.with_suffix(".rec")), "--json"])
    answer: dict[str, object] = json.loads(result.stdout)
    assert result.exit_code == (1 if answer["differs"] else 0)
    return answer


def record(cluster: Cluster, name: str) -> tuple[str, str]:
    return "--record", str(cluster.folder / f"{name}.rec")


def test_a_founder_a_joiner_and_a_killed_peer_are_replayed(cluster: Cluster) -> None:
    """Three peers train; one is killed, another one joins, and all of these that can end in order."""
    job = cluster.job()
    a = cluster.start("a", job, *record(cluster, "a"), "--min-peers", "3")
    b, c = (cluster.start(name, job, *record(cluster, name), join=[a.address()]) for name in "bc")
    cluster.until(lambda: all(p.step >= 5 for p in (a, b, c)), 120, "three train")
    cluster.go_on_without(["c"], [a, b], c.kill("group"))
    d = cluster.start("d", job, *record(cluster, "d"), join=[a.address()])
    cluster.until_member(d)
    cluster.until_member(b, since=b.kill("worker"))
    cluster.finish([a, b, d])
    for peer in (a, b, c, d):
        found = replayed(peer)
        assert found["differs"] == "", f"{peer.name} differs at {found['differs']}"
        assert found["steps"] == peer.step, f"{peer.name} was at step {peer.step}, its replay is at {found['steps']}"
        assert found["views"] == peer.view["view"]
