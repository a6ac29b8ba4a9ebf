"""What the traces of a run say, judged without the code that wrote them: one lineage, each sample once, a replay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch

from chaos.train.data import permutation
from tests.e2e.cluster import Cluster, Entry, Peer
from tests.e2e.job import Job, arrays, loss_of, make_data, make_model, make_optimizer

FP64 = 1e-9
SEED = 0
"""Of `chaos.Session`, by default."""


def stable_steps(peer: Peer) -> dict[int, Entry]:
    """Step -> its commit, for the steps that this peer saw become stable. AssertionError if two commits were."""
    pending: dict[int, Entry] = {}
    stable: dict[int, Entry] = {}
    for entry in peer.entries():
        match entry["kind"]:
            case "trace" | "rejoin":  # another incarnation begins: what was not stable is gone
                pending.clear()
            case "view" if entry["abort"]:
                pending = {step: commit for step, commit in pending.items() if step < entry["first_step"]}
            case "commit":
                pending[entry["step"]] = entry
            case "stable":
                for step in [s for s in pending if s <= entry["step"]]:
                    commit = pending.pop(step)
                    before = stable.setdefault(step, commit)
                    assert before["head"] == commit["head"], f"{peer.name} saw two stable steps {step}"
    return stable


def lineage(peers: Iterable[Peer]) -> list[Entry]:
    """All stable steps of the run in order. AssertionError if one is missing, or told in two ways (I1, I2, I3)."""
    told: dict[int, dict[str, Entry]] = defaultdict(dict)
    for peer in peers:
        for step, commit in stable_steps(peer).items():
            told[step][commit["head"]] = commit
    assert told, "no step became stable"
    assert sorted(told) == list(range(1, max(told) + 1)), "a stable step is missing from all traces"
    forked = {step: list(heads) for step, heads in told.items() if len(heads) > 1}
    assert not forked, f"stable steps that peers tell differently: {forked}"
    return [next(iter(told[step].values())) for step in sorted(told)]


def check_samples(commits: list[Entry], samples: int) -> None:
    """Every sample exactly once in each finished epoch, at most once in the last one; weights are their number."""
    used: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for commit in commits:
        count = sum(stop - start for _, _, start, stop in commit["samples"])
        assert commit["weight"] == count, f"step {commit['step']} weighs {commit['weight']} with {count} samples"
        assert {peer for peer, *_ in commit["samples"]} <= set(commit["contributors"])
        for _, epoch, start, stop in commit["samples"]:
            used[epoch].append((start, stop))
    last = max(used)
    for epoch in range(last + 1):
        at = 0
        for start, stop in sorted(used[epoch]):
            assert start >= at, f"epoch {epoch}: positions {start} to {min(at, stop)} were counted twice"
            assert start == at or epoch == last, f"epoch {epoch}: positions {at} to {start} were never used"
            at = stop
        assert at == samples or epoch == last, f"epoch {epoch} ended at {at} of {samples}"


def replay(job: Job, commits: list[Entry], at: Iterable[int]) -> dict[int, dict[str, np.ndarray]]:
    """Plain PyTorch over the logged samples: state after each of the steps `at`."""
    wanted = set(at)
    model = make_model(job)
    optimizer = make_optimizer(job, model)
    x, y = make_data(job)
    orders: dict[int, np.ndarray] = {}
    states: dict[int, dict[str, np.ndarray]] = {}
    for commit in commits:
        indices: list[int] = []
        for _, epoch, start, stop in commit["samples"]:
            if epoch not in orders:
                orders[epoch] = permutation(job.samples, SEED, epoch)
            indices += orders[epoch][start:stop].tolist()
        if not commit["skip"]:
            chosen = torch.tensor(indices)
            optimizer.zero_grad()
            loss_of(model, x[chosen], y[chosen]).backward()
            if job.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), job.clip)
            optimizer.step()
        if commit["step"] in wanted:
            states[commit["step"]] = arrays(model, optimizer, commit["step"])
    missing = wanted - set(states)
    assert not missing, f"steps {missing} were applied but are not in the lineage of {len(commits)} steps"
    return states


def check_run(
    cluster: Cluster, job: Job, finished: Iterable[Peer], left: Iterable[Peer] = (), tolerance: float = FP64
) -> list[Entry]:
    """The promises of a run that has ended; returns its lineage.

    Args:
        finished: peers that went on to the end: bit-identical.
        left: peers that left earlier: equal to the replay up to their last step.
        tolerance: of the replay, absolute and relative.
    """
    commits = lineage(cluster.peers.values())
    check_samples(commits, job.samples)
    ended = cluster.finals(finished)
    equal_bytes(ended)
    everybody = ended | cluster.finals(left)
    expected = replay(job, commits, {int(state["steps"]) for state in everybody.values()})
    for name, state in everybody.items():
        for key, value in expected[int(state["steps"])].items():
            np.testing.assert_allclose(state[key], value, tolerance, tolerance, err_msg=f"{key} of {name}")
    return commits


def equal_bytes(states: dict[str, dict[str, np.ndarray]]) -> None:
    """All states are the same to the last bit. The count of steps may differ by empty ones at the very end."""
    names = list(states)
    for name in names[1:]:
        assert states[name].keys() == states[names[0]].keys()
        for key, value in states[name].items():
            if key != "steps":
                assert value.tobytes() == states[names[0]][key].tobytes(), f"{key} of {name} differs from {names[0]}"
