"""`python -m benchmarks.peers [SYSTEM]...`: Chaos beside what users would pick instead, in one run; prints a table.

Every system gets a network namespace of its own, so that its traffic can be counted, where the kernel permits it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.peers.measure import Measured, measure
from benchmarks.peers.systems import SYSTEMS, VENVS
from benchmarks.report import Table, machine, progress, spread

NAMESPACE = ["unshare", "--net", "--", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
VARIANTS = ("tight", "default")
COLUMNS = {
    "step": "step of 3",
    "join": "join",
    "join_stall": "stall at it",
    "leave_stall": "stall at a leave",
    "kill": "kill",
    "rejoin": "back in",
    "coordinator": "coordinator killed",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(SYSTEMS)}; default: all")
    parser.add_argument("--millions", type=int, default=25, help="parameters")
    parser.add_argument("--compute-ms", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3, help="joins, leaves and kills of each")
    parser.add_argument("--settings", choices=(*VARIANTS, "both"), default="both")
    parser.add_argument("--out", type=Path, help="a JSON file with every value")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.systems:
        if name not in SYSTEMS:
            parser.error(f"there is no system {name!r}: choose from {', '.join(SYSTEMS)}")
    if options.one:
        with TemporaryDirectory(prefix="chaos-peers-") as directory:
            tight = options.settings == "tight"
            kind = SYSTEMS[options.systems[0]]
            with kind(Path(directory), options.millions, options.compute_ms, tight) as system:
                print(json.dumps(asdict(measure(system, options.rounds))))
        return
    print(machine(), flush=True)
    results = {label: run(options, name, variant) for label, name, variant in wanted(options)}
    print(table(results).text())
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))


def wanted(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """What a row is called, its system and its settings. Chaos has only one sort of settings."""
    variants = VARIANTS if options.settings == "both" else (options.settings,)
    rows = []
    for name in options.systems or list(SYSTEMS):
        kind = SYSTEMS[name]
        if name.startswith("chaos"):
            rows.append((kind.label or name, name, "default"))
        elif not (VENVS / kind.name).exists():
            progress(f"{name} is left out: there is no {VENVS / kind.name}; `make bench-peers` makes it")
        else:
            rows += [(f"{kind.label or name}, {variant}", name, variant) for variant in variants]
    return rows


def run(options: argparse.Namespace, name: str, variant: str) -> dict[str, object]:
    """One system's figures, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.peers", "--one", name, "--settings", variant]
    command += ["--millions", str(options.millions), "--compute-ms", str(options.compute_ms)]
    command += ["--rounds", str(options.rounds)]
    done = subprocess.run([*(NAMESPACE if can_unshare() else []), *command], stdout=subprocess.PIPE, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def can_unshare() -> bool:
    return subprocess.run([*NAMESPACE, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def table(results: dict[str, dict[str, object]]) -> Table:
    """Seconds: median (lowest - highest)."""
    columns = ("system", *COLUMNS.values(), "bytes per sample", "processor s per step", "MB per host")
    found = Table("Chaos beside others, 3 hosts on loopback (s)", columns)
    for label, result in results.items():
        measured = Measured(**result)  # type: ignore[arg-type]
        cells = [cell(measured, key) for key in COLUMNS]
        rest = (
            spread(measured.bytes_per_sample, 1e-6, 1) + " MB" if measured.bytes_per_sample else "none",
            spread(measured.processor, 1.0, 2),
            spread(measured.memory, 1e-6),
        )
        found.rows.append((label, *cells, *rest))
    return found


def cell(measured: Measured, key: str) -> str:
    event = key.removesuffix("_stall")
    values = getattr(measured, key)
    failed = measured.failures.get(event, "")
    return "; ".join(part for part in (spread(values, 1.0, 2) if values else "", failed.split(";")[0]) if part) or "-"


if __name__ == "__main__":
    main()
