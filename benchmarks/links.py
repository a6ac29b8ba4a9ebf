"""All-reduce of 100 MB among 3 hosts with 200 Mbit/s each, in the lab: Chaos and Gloo in turn, round by round.

Both sides' processes stand on the same hosts and use the same wire; while one works the other waits. The bound is what
no all-reduce can be faster than: each host has to send, and to receive, two thirds of the bytes twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from benchmarks.allreduce import MILLIONS, PEERS, WARM_UP, Measured, alternate
from benchmarks.cluster import WORKER, python_path
from benchmarks.gate import Gate
from benchmarks.report import Table, progress, spread
from chaos.lab.hosts import Hosts
from chaos.lab.network import Network
from chaos.lab.scenario import Host, Scenario
from chaos.lab.wire import missing

RATE_MBIT = 200
DELAYS_MS = (0, 30)


def bound_s() -> float:
    """Of an all-reduce of float32 values, without headers and round trips."""
    return 2 * (PEERS - 1) / PEERS * MILLIONS * 4e6 * 8 / (RATE_MBIT * 1e6)


def measure(delay_ms: float, rounds: int) -> Measured:
    rate = f"{RATE_MBIT}mbit"
    with TemporaryDirectory(prefix="chaos-bench-") as folder:
        gate_path, out = Path(folder) / "gate", Path(folder)
        args = ("--millions", str(MILLIONS), "--gate", str(gate_path))
        hosts_of = (Host(up=rate, down=rate),) * PEERS
        scenario = Scenario(host=hosts_of, latency_ms=delay_ms, script=str(WORKER), args=args)
        with Gate(gate_path) as gate, Hosts(scenario, out, out) as hosts:
            Network(hosts.wire, scenario)
            ranks = [start_rank(hosts, rank, gate_path, out / "store") for rank in range(PEERS)]
            try:
                hosts.start(0, [], "--min-peers", str(PEERS))
                hosts.peers[0].address()
                for number in range(1, PEERS):
                    hosts.start(number, [0])
                gate.gather("gloo", PEERS)
                gate.gather("chaos", PEERS)
                measured = alternate(gate, [agent_of(hosts, number) for number in range(PEERS)], rounds)
            finally:
                gate.dismiss("gloo")
                for rank in ranks:
                    rank.kill()
                    rank.wait()
    return measured


def start_rank(hosts: Hosts, rank: int, gate: Path, store: Path) -> subprocess.Popen[bytes]:
    command = [*hosts.wire.enter(rank), sys.executable, "-m", "benchmarks.gloo", "--rank", str(rank)]
    command += ["--ranks", str(PEERS), "--millions", str(MILLIONS), "--store", str(store), "--gate", str(gate)]
    environment = hosts.environment(rank) | {"GLOO_SOCKET_IFNAME": "lab0"}
    return subprocess.Popen(command, cwd=WORKER.parents[1], env=environment)


def agent_of(hosts: Hosts, number: int) -> psutil.Process:
    name = hosts.name(number)
    launcher = next(p for p in psutil.Process().children() if name in p.cmdline())
    return next(p for p in launcher.children() if "chaos.agent.process" in p.cmdline())


def run(rounds: int = 5) -> Table:
    table = Table(
        f"All-reduce of {MILLIONS * 4} MB among {PEERS} hosts with {RATE_MBIT} Mbit/s (s; bound {bound_s():.2f})",
        ("one way", "rounds", "Chaos run.sync()", "of the bound", "Gloo all_reduce", "of the bound", "aim"),
    )
    if (reason := missing()) is not None:
        progress(f"no lab here: {reason}")
        return table
    table.bars["bound"] = bound_s()
    os.environ["PYTHONPATH"] = python_path()
    for delay_ms in DELAYS_MS:
        measured = measure(delay_ms, rounds)
        times = (measured.chaos, measured.gloo)
        over = [f"{median(values) / bound_s():.2f}" for values in times]
        aim = "at most 1.05 of the bound" if delay_ms == 0 else "at most 1.10 of the bound"
        table.bars[f"Chaos, {delay_ms} ms"], table.bars[f"Gloo, {delay_ms} ms"] = map(median, times)
        shown = [spread(values, digits=2) for values in times]
        table.rows.append((f"{delay_ms} ms", str(rounds), shown[0], over[0], shown[1], over[1], aim))
        progress(f"{delay_ms} ms: Chaos {shown[0]}, Gloo {shown[1]}, after {WARM_UP} rounds to warm up")
    return table
