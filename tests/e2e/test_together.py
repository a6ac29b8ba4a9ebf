"""Peers train together, one joins, one leaves: as if one process had done it all."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import START_S, Cluster
from tests.e2e.lineage import check_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_three_parties_a_joiner_and_a_leaver(cluster: Cluster) -> None:
    parties = [cluster.party(name) for name in ("north", "south", "west")]
    for party in parties:
        for other in parties:
            if other is not party:
                party.admit(other.root.pem)
    job = cluster.job()
    a = cluster.start("a", job, "--min-peers", "3", party="north")
    b = cluster.start("b", job, join=[a.address()], party="south")
    c = cluster.start("c", job, join=[a.address()], party="west")
    cluster.until(lambda: min(a.step, b.step, c.step) >= 20, START_S, "three parties train")
    d = cluster.start("d", job, join=["127.0.0.1:1", b.address()], party="north")  # nobody listens at the first
    cluster.until_member(d)
    joined_at = d.step
    cluster.until(lambda: a.step > joined_at + 20, 20, "four train")
    a.leave()  # the founder is no more than the others
    assert a.wait() == 0
    left_at = b.step
    cluster.until(lambda: b.step > left_at + 20, 20, "three train without the founder")
    cluster.finish([b, c, d])
    commits = check_run(cluster, job, [b, c, d], left=[a])
    assert {len(commit["contributors"]) for commit in commits} >= {3, 4}, "the joiner and the leaver took part"
    assert not [e for p in cluster.peers.values() for e in p.entries("diverged")]


def test_adam_follows_plain_pytorch(cluster: Cluster) -> None:
    job = cluster.job(optimizer="adam", dtype="float32", samples=960, batch=16)
    peers = cluster.found("ab", job)
    cluster.finish(peers)
    check_run(cluster, job, peers, tolerance=2e-4)
