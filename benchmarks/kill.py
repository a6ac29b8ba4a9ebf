"""SIGKILL to the agent and the worker of one of 3 peers: how long until the other two commit their next step.

The launcher survives, starts both again, and the peer heals from the others before the next kill. The victim is
another peer each time. A survivor's worker must not compute a batch again for it: that is checked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from benchmarks.cluster import Peers
from benchmarks.report import Table, milliseconds, progress
from chaos.cli.demo_lineage import read_lineage, samples_counted_twice
from chaos.cli.demo_peers import name_of

PEERS = 3
QUIET_STEPS = 15
JOBS = {"100 MB of gradients, no compute": (25, 0), "4 MB of gradients, 50 ms compute": (1, 50)}
"""Millions of parameters, and milliseconds."""


@dataclass
class Measured:
    """Seconds, one value per kill."""

    usual: list[float] = field(default_factory=list)
    """Median step of the 15 before."""
    after: list[float] = field(default_factory=list)
    """From the kill to the first commit without the victim at the slower survivor, minus a usual step."""
    gap: list[float] = field(default_factory=list)
    """Between that commit and the one before it, minus a usual step: what the survivors lost."""
    recomputed: int = 0
    """Batches that a survivor's worker computed for a step for which it had computed one."""
    counted_twice: int = 0
    """Samples that the final lineage uses twice."""


def measure(millions: int, compute_ms: int, kills: int) -> Measured:
    measured = Measured()
    everybody = set(range(1, PEERS + 1))
    with Peers(["--millions", str(millions), "--compute-ms", str(compute_ms)]) as peers:
        peers.found(PEERS, "--max-restarts", "1000")
        for number in range(kills):
            victim = number % PEERS + 1
            survivor = victim % PEERS + 1
            peers.wait_members(everybody, survivor)
            peers.wait_steps(survivor, QUIET_STEPS + 1)
            observe(peers, victim, everybody - {victim}, measured)
        peers.wait_steps(survivor, QUIET_STEPS)
        measured.counted_twice = samples_counted_twice(read_lineage(peers.look()))
    return measured


def observe(peers: Peers, victim: int, survivors: set[int], measured: Measured) -> None:
    agent, worker, _launcher = peers.processes(victim)
    start = time.monotonic()
    agent.kill()
    worker.kill()
    lost = peers.peer_id(victim)

    def commits(number: int) -> list[tuple[float, bool]]:
        """When, and whether without the victim."""
        mine = [e for e in peers.entries if e.kind == "commit" and e.peer == name_of(number)]
        return [(e.t, e.t > start and lost not in e["contributors"]) for e in mine]

    def went_on() -> bool:
        peers.look()
        return all(any(without for _, without in commits(number)) for number in survivors)

    peers.wait(went_on, "the survivors to go on")
    after, gaps = [], []
    for number in survivors:
        times = commits(number)
        at = next(index for index, (_, without) in enumerate(times) if without)
        before = [t for t, _ in times if t < start][-QUIET_STEPS - 1 :]
        usual = median(b - a for a, b in pairwise(before))
        after.append(times[at][0] - start - usual)
        gaps.append(times[at][0] - times[at - 1][0] - usual)
        measured.recomputed += again(peers, number, start - 5 * usual)
    measured.usual.append(usual)
    measured.after.append(max(after))
    measured.gap.append(max(gaps))
    progress(
        f"{name_of(victim)} killed: next commit after {max(after) * 1000:.0f} ms, gap {max(gaps) * 1000:.0f}, "
        f"beyond a usual step of {usual * 1000:.0f}"
    )


def again(peers: Peers, number: int, since: float) -> int:
    """Boundaries of this peer for a step for which its worker stood at one before."""
    stood = [e["applied"] for e in peers.entries if e.kind == "boundary" and e.peer == name_of(number) and e.t > since]
    return len(stood) - len(set(stood))


def run(kills: int = 6) -> Table:
    table = Table(
        "SIGKILL of one of 3 peers (ms beyond a usual step)",
        ("job", "kills", "usual step", "kill to next commit", "gap between commits", "batches recomputed",
         "samples counted twice", "aim"),
    )  # fmt: skip
    for job, (millions, compute_ms) in JOBS.items():
        measured = measure(millions, compute_ms, kills)
        for name, values in (("a usual step", measured.usual), ("kill to next commit", measured.after)):
            table.bars[f"{job}: {name}"] = 1000 * median(values)
        table.rows.append((
            job,
            str(kills),
            milliseconds(measured.usual),
            milliseconds(measured.after),
            milliseconds(measured.gap),
            str(measured.recomputed),
            str(measured.counted_twice),
            "below 100",
        ))  # fmt: skip
    return table
