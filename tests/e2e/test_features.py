"""What scripts use besides plain training, over real links."""

from __future__ import annotations

import numpy as np
import pytest

from tests.e2e.cluster import Cluster, Peer
from tests.e2e.lineage import check_run, check_samples, equal_bytes, lineage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def losses(peer: Peer) -> list[float]:
    return [commit["loss"] for commit in peer.entries("commit") if commit["loss"] is not None]


def test_batch_norm_and_bf16_on_the_wire(cluster: Cluster) -> None:
    """Statistics of two halves of a batch are not those of the whole: no replay, but equal bytes everywhere."""
    job = cluster.job(batch_norm=True, wire="bf16", dtype="float32")
    peers = cluster.found("ab", job)
    cluster.until(lambda: peers[0].step > 60, 60, "two train")
    cluster.finish(peers)
    finals = cluster.finals(peers)
    equal_bytes(finals)
    check_samples(lineage(peers), job.samples)
    state = finals["a"]
    assert state["1.num_batches_tracked"] > 40 and np.abs(state["1.running_mean"]).max() > 0
    found = losses(peers[0])
    assert np.mean(found[-10:]) < 0.8 * np.mean(found[:10])


def test_grad_scaler_and_compile(cluster: Cluster) -> None:
    """Neither changes what plain PyTorch gives, as 1024 is a power of two and the backend is eager."""
    job = cluster.job(scaler=True, compiled=True, dtype="float32", optimizer="adam", samples=480)
    peers = cluster.found("ab", job)
    cluster.finish(peers)
    check_run(cluster, job, peers, tolerance=5e-4)


def test_a_script_that_clips_by_itself_gets_a_joiner(cluster: Cluster) -> None:
    """Results alone don't say what the updates were. At the end of 250 samples one peer has none, and clips too."""
    job = cluster.job(clip=0.05, samples=250)
    a, b = cluster.found("ab", job)
    c = cluster.start("c", job, join=[a.address()])
    cluster.until_member(c)
    at, epoch = c.step, c.epoch
    cluster.until(lambda: c.step > at + 20 and c.epoch > epoch, 60, "three train on to the next epoch")
    cluster.finish([a, b, c])
    check_run(cluster, job, [a, b, c])
    assert [mode["mode"] for mode in c.entries("catch_up_mode")] == ["late"]
