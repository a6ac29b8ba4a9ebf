"""Everybody dies; the run resumes from its newest whole checkpoint, bit-exactly."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import START_S, Cluster, Entry, load
from tests.e2e.lineage import check_samples, equal_bytes, replay

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

RESUMES = re.compile(r"resuming from the checkpoint of step (\d+)")
EVERY = 10


def resumed_step(output: str) -> int:
    found = RESUMES.findall(output)
    assert found, f"no checkpoint was found: {output[-2000:]}"
    return int(found[-1])


def test_all_die_twice_and_resume(cluster: Cluster) -> None:
    """First between checkpoints, then while one is being written."""
    job = cluster.job(frozen_mb=48, dump_every=EVERY, samples=480, optimizer="adam", sleep_s=0.02)
    folder = cluster.folder / "checkpoints"
    keep = ("--checkpoint", str(folder), "--checkpoint-every", str(EVERY))
    a, b = cluster.found("ab", job, *keep)
    cluster.until(lambda: bool(a.entries("checkpoint")), START_S, "a checkpoint is written")
    for peer in (a, b):
        peer.kill("group")
    for dump in cluster.folder.glob("step-*.npz"):
        dump.rename(dump.with_name(f"first-{dump.name}"))

    a = cluster.start("a", job, *keep)
    cluster.until(lambda: bool(RESUMES.search(a.output())), 30, "it resumes")
    first = resumed_step(a.output())
    again = cluster.folder / f"step-a-{first}.npz"
    cluster.until(again.exists, START_S, "its worker holds the state")
    equal_bytes({"before": load(cluster.folder / f"first-step-a-{first}.npz"), "resumed": load(again)})
    old = set(folder.glob(".tmp-*"))
    cluster.until(lambda: bool(set(folder.glob(".tmp-*")) - old), START_S, "the next checkpoint is begun", pause=0.0005)
    a.kill("group")

    a = cluster.start("a", job, *keep)
    cluster.until(lambda: bool(RESUMES.search(a.output())), 30, "it resumes again")
    second = resumed_step(a.output())
    assert second >= first
    b = cluster.start("b", job, join=[a.address()])
    cluster.until_member(b, since=a.entries("trace")[-1]["wall"])
    cluster.finish([a, b])

    finals = cluster.finals([a, b])
    equal_bytes(finals)
    told = steps_of_last_lineage(cluster, second)
    check_samples(told, job.samples)
    last = int(finals["a"]["steps"])
    for key, value in replay(job, told, [last])[last].items():
        assert abs(finals["a"][key] - value).max() < 1e-9, f"{key} differs from the replay"


def steps_of_last_lineage(cluster: Cluster, resumed_at: int) -> list[Entry]:
    """Up to the checkpoint from whoever trained it, from there on from the last incarnations."""
    commits: dict[int, Entry] = {}
    for peer in cluster.peers.values():
        lineages = list(dict.fromkeys(e["lineage"] for e in peer.entries("commit")))
        for entry in peer.entries("commit"):
            newest = entry["lineage"] == lineages[-1]
            if newest or (entry["step"] <= resumed_at and entry["step"] not in commits):
                commits[entry["step"]] = entry
    assert sorted(commits) == list(range(1, max(commits) + 1))
    return [commits[step] for step in sorted(commits)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; skips where mounting is not allowed."""
    target = tmp_path / "disk"
    target.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(target)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {done.stderr.decode().strip()}")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=True)


def test_a_full_disk_costs_the_checkpoint_and_nothing_else(cluster: Cluster, small_disk: Path) -> None:
    job = cluster.job(frozen_mb=4)
    a = cluster.start("a", job, "--checkpoint", str(small_disk), "--checkpoint-every", "10")
    cluster.until(lambda: bool(a.entries("checkpoint_failed")), START_S, "the checkpoint fails")
    reason = a.entries("checkpoint_failed")[0]["reason"]
    assert str(small_disk) in reason and "space" in reason
    assert f"{small_disk}" in a.output(), "the user is told on standard error"
    at = a.step
    cluster.until(lambda: a.step > at + 20, 20, "it trains on")
    cluster.finish([a])
    left = [path.name for path in small_disk.rglob("*") if path.is_file()]
    assert left in ([], [".lock"]), "what was written of it is removed"
