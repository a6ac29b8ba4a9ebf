"""What it costs to be seen: trace, monitor, telling others, and a page that is open, as shares of what a run uses.

Processor time is counted in one run, so it does not matter how busy the machine is otherwise.
"""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cluster import Peers
from benchmarks.report import Table, progress
from chaos.cli.dashboard import page
from chaos.cli.demo_peers import name_of

PEERS = 3
SECONDS = 40.0
JOBS = {"4 MB of gradients, 50 ms compute": (1, 50), "100 MB of gradients, 50 ms compute": (25, 50)}


def observed(directory: Path) -> list[list[Any]]:
    """Per agent the last line of what it noted."""
    files = sorted((directory / "runtime").glob("observing-*.jsonl"))
    return [json.loads(path.read_text().splitlines()[-1]) for path in files]


def measure(millions: int, compute_ms: int) -> dict[str, float]:
    with Peers(["--millions", str(millions), "--compute-ms", str(compute_ms)], instrument=True) as peers:
        peers.found(PEERS)
        peers.wait_members(set(range(1, PEERS + 1)), 1)
        peers.wait_steps(1, 10)
        with page(peers.directory, "127.0.0.1:0", peers.environment()) as address:
            server = next(p for p in psutil.Process().children() if "dashboard" in p.cmdline())
            urllib.request.urlopen(address + "picture.json", timeout=10).read()
            before, started, step = observed(peers.directory), time.monotonic(), peers.step(1)
            paged = cpu(server)
            while time.monotonic() - started < SECONDS:
                urllib.request.urlopen(address + "picture.json", timeout=10).read()
                time.sleep(0.7)
            after, ended = observed(peers.directory), time.monotonic()
            paged = cpu(server) - paged
        seeing = [sum(b[1].values()) - sum(a[1].values()) for a, b in zip(before, after, strict=True)]
        whole = [b[2] - a[2] for a, b in zip(before, after, strict=True)]
        steps = max(peers.step(1) - step, 1)
        samples = [e for e in peers.look() if e.kind == "sample" and e.peer == name_of(1) and e["links"]]
        sent = sum(sum(link["out"].values()) for link in samples[-1]["links"].values())
        return {
            "seeing_ms": sum(seeing) / PEERS / steps * 1000,
            "step_ms": (ended - started) / steps * 1000,
            "of_agent": sum(seeing) / sum(whole),
            "page": paged / (ended - started),
            "bytes": samples[-1]["spread_bytes"] / sent,
            "per_second": samples[-1]["spread_bytes"] / (samples[-1].t - samples[0].t) / (PEERS - 1),
        }


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def run() -> Table:
    table = Table(
        "Being seen, 3 peers",
        ("job", "step (ms)", "trace, monitor, telling: ms of processor time per step and peer", "share of the step",
         "share of the agent's processor time", "bytes for telling, of all sent", "bytes/s to each other peer",
         "a page that is open: cores", "aim"),
    )  # fmt: skip
    for job, (millions, compute_ms) in JOBS.items():
        found = measure(millions, compute_ms)
        table.rows.append((
            job, f"{found['step_ms']:.0f}", f"{found['seeing_ms']:.2f}", f"{found['seeing_ms'] / found['step_ms']:.2%}",
            f"{found['of_agent']:.1%}", f"{found['bytes']:.3%}", f"{found['per_second']:.0f}", f"{found['page']:.3f}",
            "below 1 % of step and traffic",
        ))  # fmt: skip
        progress(" | ".join(table.rows[-1]))
    return table
