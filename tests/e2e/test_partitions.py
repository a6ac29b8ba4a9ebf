"""Peers that are cut off: a frozen one that wakes up, and a run that lost its quorum for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.cluster import MARK, START_S, Cluster, Peer
from tests.e2e.lineage import check_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FROZEN_S = 6.0
"""Longer than the detector's time, and than an agreement without the frozen one."""


def chaos(cluster: Cluster, peer: Peer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A client's command to this peer, with its own party."""
    verb, *rest = arguments
    command = [sys.executable, "-m", "chaos.cli.main", verb, peer.address(), *rest]
    command += ["--party", str(cluster.party("home").directory)]
    environment = os.environ | {MARK: str(cluster.runtime)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_frozen_peer_that_wakes_up_does_no_harm(cluster: Cluster) -> None:
    job = cluster.job()
    a, b, c = peers = cluster.found("abc", job)
    at = time.time()
    b.freeze()
    cluster.until(lambda: "b" not in a.view["members"] and "b" not in c.view["members"], 5, "a and c go on without b")
    before = min(a.step, c.step)
    cluster.until(lambda: min(a.step, c.step) >= before + 10, 10, "a and c train")
    time.sleep(max(0.0, at + FROZEN_S - time.time()))
    b.freeze(frozen=False)
    cluster.until_member(b, since=at, seconds=60)
    assert [v["role"] for v in b.entries("view") if v["wall"] > at][-2:] == ["learner", "member"]
    cluster.finish(peers)
    check_run(cluster, job, peers)


def test_a_peer_that_is_back_after_some_steps_fetches_nothing_of_its_large_state(cluster: Cluster) -> None:
    """Its worker holds the state of a dozen steps ago, and the others have kept their small results."""
    job = cluster.job(frozen_mb=40, sleep_s=0.3)
    a, b, c = peers = cluster.found("abc", job)
    at = time.time()
    b.freeze()
    cluster.until(lambda: "b" not in a.view["members"] and "b" not in c.view["members"], 5, "a and c go on without b")
    before = min(a.step, c.step)
    cluster.until(lambda: min(a.step, c.step) >= before + 4, 20, "a and c train")
    b.freeze(frozen=False)
    cluster.until_member(b, since=at, seconds=60)
    start = b.entries("catch_up_from")[-1]
    assert start["source"] == "own state" and "a snapshot would be" in start["reason"]
    assert not [line for line in b.entries("fetched_state") if line["wall"] > at]
    fetched = [line["step"] for line in b.entries("fetched") if line["wall"] > at]
    assert len(fetched) >= 3 and min(fetched) == start["step"] + 1
    told = [line for line in b.entries("digests_equal") if line["wall"] > at]
    assert told, "its state was compared before it became a member"
    cluster.finish(peers)
    check_run(cluster, job, peers)


def test_a_lost_host_pauses_the_lighter_half_until_it_is_forced(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.job()
    a = cluster.start("a", job, "--min-peers", "2", host="north")
    b = cluster.start("b", job, join=[a.address()], host="south")
    cluster.until(lambda: min(a.step, b.step) >= 5, START_S, "a and b train together")
    refused = chaos(cluster, b, "force-view", "--yes")
    assert refused.returncode == 1 and "b is not paused" in refused.stderr

    a.kill("group")
    cluster.until(lambda: bool(b.entries("paused")), 5, "b pauses")
    assert "chaos: b is paused after step" in b.output() and "no quorum without a" in b.output()
    stood = b.step
    shown = json.loads(chaos(cluster, b, "status", "--json").stdout.splitlines()[-1])
    assert shown["paused"]["reason"] == "no quorum without a" and shown["paused"]["seconds"] > 0

    unconfirmed = chaos(cluster, b, "force-view")
    assert unconfirmed.returncode == 1 and "not confirmed" in unconfirmed.stderr
    assert "left out: a" in unconfirmed.stdout and "risk:" in unconfirmed.stdout
    stranger = subprocess.run(
        [sys.executable, "-m", "chaos.cli.main", "force-view", b.address(), "--party", str(tmp_path / "x"), "--yes"],
        env=os.environ | {MARK: str(cluster.runtime)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert stranger.returncode != 0
    assert b.step == stood and b.entries("paused")[-1]["t"] == b.entries("paused")[0]["t"]

    forced = chaos(cluster, b, "force-view", "--yes", "--json")
    assert forced.returncode == 0, forced.stderr
    answer = json.loads(forced.stdout.splitlines()[-1])
    assert answer["members"] == ["b"] and answer["left_out"] == ["a"] and answer["lineage"] != answer["old_lineage"]
    cluster.until(lambda: b.step >= stood + 10, 10, "b goes on")
    assert {c["lineage"] for c in b.entries("commit") if c["step"] > stood + 1} == {answer["lineage"]}
    assert "forced a new lineage" in b.output()

    at = time.time()
    a = cluster.start("a", job, join=[b.address()], host="north")
    cluster.until_member(a, since=at)
    cluster.finish([a, b])
    check_run(cluster, job, [a, b])
