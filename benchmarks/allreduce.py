"""All-reduce of 100 MB of float32 among 3 peers, against Gloo in the same run, round by round.

Chaos: `run.sync()` in the workers, from gradients in place to the mean of all peers' gradients in `p.grad`. Gloo:
`all_reduce`, likewise. Both include everything the call does; a round's time is the slowest process's. `round` is
the part of it between the agents: first boundary to last commit. Backward is done before the clock starts.
Processor time is that of all processes that take part (agents and workers; ranks), which a busy machine changes less.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from benchmarks.cluster import HERE, Peers
from benchmarks.gate import Gate
from benchmarks.report import Table, milliseconds
from chaos.observe.trace_file import Entry

PEERS, MILLIONS, WARM_UP = 3, 25, 3


@dataclass
class Measured:
    """Seconds, one value per round."""

    chaos: list[float] = field(default_factory=list)
    gloo: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    chaos_used: list[float] = field(default_factory=list)
    gloo_used: list[float] = field(default_factory=list)
    """Processor time."""


def measure(plain: bool, rounds: int) -> Measured:
    """Chaos and Gloo in turn, one round each."""
    with TemporaryDirectory(prefix="chaos-bench-") as directory:
        path = Path(directory) / "gate"
        args = ["--millions", str(MILLIONS), "--gate", str(path)]
        with Gate(path) as gate, Peers(args, plain=plain) as peers:
            ranks = [start_rank(rank, path, Path(directory) / "store") for rank in range(PEERS)]
            try:
                peers.found(PEERS)
                gate.gather("gloo", PEERS)
                gate.gather("chaos", PEERS)
                measured = alternate(gate, [peers.processes(number)[0] for number in range(1, PEERS + 1)], rounds)
                measured.rounds = round_times(peers.look())[-rounds:]
            finally:
                gate.dismiss("gloo")
                for rank in ranks:
                    rank.kill()
                    rank.wait()
    return measured


def start_rank(rank: int, gate: Path, store: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gloo", "--rank", str(rank), "--ranks", str(PEERS)]
    command += ["--millions", str(MILLIONS), "--store", str(store), "--gate", str(gate)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(command, cwd=HERE.parent, env=environment)


def alternate(gate: Gate, agents: list[psutil.Process], rounds: int) -> Measured:
    measured = Measured()

    def used() -> float:
        return sum(sum(agent.cpu_times()[:2]) for agent in agents)

    for number in range(WARM_UP + rounds):
        gate.all_do("chaos", "compute")
        before = used()
        reduced = gate.all_do("chaos", "reduce")
        spent = used() - before
        gate.all_do("chaos", "update")
        gate.all_do("gloo", "compute")
        summed = gate.all_do("gloo", "reduce")
        if number >= WARM_UP:
            measured.chaos.append(max(wall for wall, _ in reduced))
            measured.gloo.append(max(wall for wall, _ in summed))
            measured.chaos_used.append(spent + sum(processor for _, processor in reduced))
            measured.gloo_used.append(sum(processor for _, processor in summed))
    return measured


def round_times(entries: list[Entry]) -> list[float]:
    """First boundary to last commit of every step, in order."""
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    for entry in entries:
        if entry.kind == "boundary":
            begun.setdefault(entry["applied"] + 1, entry.t)
        elif entry.kind == "commit":
            ended[entry["step"]] = entry.t
    return [ended[step] - begun[step] for step in sorted(begun.keys() & ended.keys())]


def run(rounds: int = 12) -> Table:
    table = Table(
        "All-reduce of 100 MB among 3 peers (ms)",
        (
            "links",
            "rounds",
            "Chaos run.sync()",
            "of it between agents",
            "Gloo all_reduce",
            "ratio",
            "aim",
            "processor time, Chaos",
            "Gloo",
        ),
    )
    for plain in (False, True):
        measured = measure(plain, rounds)
        kind = "plain" if plain else "TLS"
        table.bars[f"Chaos, {kind}"] = 1000 * median(measured.chaos)
        table.bars[f"Gloo, measured with {kind}"] = 1000 * median(measured.gloo)
        ratios = [a / b for a, b in zip(measured.chaos, measured.gloo, strict=True)]
        table.rows.append((
            "plain" if plain else "TLS 1.3",
            str(rounds),
            milliseconds(measured.chaos),
            milliseconds(measured.rounds),
            milliseconds(measured.gloo),
            f"{median(measured.chaos) / median(measured.gloo):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
            "at most 1.1" if plain else "at most 2",
            milliseconds(measured.chaos_used),
            milliseconds(measured.gloo_used),
        ))  # fmt: skip
    return table
