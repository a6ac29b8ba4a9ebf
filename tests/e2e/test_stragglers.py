"""A peer whose script now and then takes long, in a run that does not wait for it."""

from __future__ import annotations

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.lineage import check_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SKIP = ("--straggler", "skip", "--straggler-limit", "5")


def test_who_is_late_is_left_out_of_the_step_and_no_sample_is_lost(cluster: Cluster) -> None:
    """Updates are those of plain PyTorch over the samples that counted; what c computed in vain is computed again."""
    job = cluster.job(sleep_s=0.03, dozer="c", doze_s=0.9)
    peers = a, b, c = cluster.found("abc", job, *SKIP)
    cluster.until(lambda: a.step >= 160, 120, "three train")
    cluster.finish(peers)
    commits = check_run(cluster, job, peers)
    late = [commit for commit in commits if commit["late"]]
    assert late, "nobody was ever left out"
    (who,) = {peer for commit in late for peer in commit["late"]}
    assert not [commit for commit in late if who in commit["contributors"]]
    assert any(len(commit["contributors"]) == 2 for commit in late), "the others went on, both of them"
    assert sum(who in commit["contributors"] for commit in commits) > len(commits) // 4, "it always came back"
    told = c.entries("left_out")
    assert {entry["step"] for entry in told} <= {commit["step"] for commit in late}
    assert all(entry["reason"] for entry in told)
    assert f"chaos: left out as late: c in {len(late)} of " in a.output()
    assert not a.entries("left_out") and not b.entries("left_out")
    assert not [entry for peer in peers for entry in peer.entries("lost_track") + peer.entries("diverged")]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_late_part_leaves_nothing_behind_in_scaler_and_gradients(cluster: Cluster, accumulate: int) -> None:
    """What was half accumulated, and scaled, when the peer was left out must not be in its next part.

    The second micro-batch of two is as often the late one as the first: both sleep in such a step.
    """
    settings = {"samples": 480, "dtype": "float32", "scaler": True, "accumulate": accumulate}
    job = cluster.job(sleep_s=0.03, dozer="b", doze_s=0.9, **settings)
    peers = a, _ = cluster.found("ab", job, *SKIP)
    cluster.until(lambda: a.step >= 100, 120, "two train")
    cluster.finish(peers)
    commits = check_run(cluster, job, peers, tolerance=5e-4)
    assert sum(bool(commit["late"]) for commit in commits) >= 3
    assert not [entry for peer in peers for entry in peer.entries("lost_track") + peer.entries("diverged")]


def test_a_joiner_with_another_setting_is_refused_in_one_line(cluster: Cluster) -> None:
    job = cluster.job()
    a = cluster.start("a", job, *SKIP)
    b = cluster.start("b", job, "--straggler", "wait", join=[a.address()])
    assert b.wait(120) == 4
    assert "the run was founded with --straggler skip --straggler-limit 5, not --straggler wait" in b.output()
    c = cluster.start("c", job, join=[a.address()])  # who says nothing takes what the run has
    cluster.until_member(c)
    cluster.finish([a, c])
