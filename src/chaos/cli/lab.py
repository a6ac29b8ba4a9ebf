"""`chaos lab`: run a scenario with real peers on emulated links; remove what a killed lab left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from chaos.cli.demo import signals_as_exits
from chaos.cli.demo_costs import Event
from chaos.cli.demo_summary import Summary, summarise
from chaos.cli.demo_view import costs_table
from chaos.core.errors import ChaosError
from chaos.lab.faults import Done
from chaos.lab.guard import clean as clean_directory
from chaos.lab.hosts import Hosts, leftovers
from chaos.lab.run import Lab, LabResult
from chaos.lab.scenario import Scenario, load
from chaos.lab.wire import missing
from chaos.observe.report import write_report
from chaos.observe.trace import trace_files

app = typer.Typer(help="Real peers on emulated links, on this machine alone.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
INSIDE = "CHAOS_LAB_INSIDE"
"""Environment variable: this process is root of a user namespace already."""
KINDS = {"join": "scale-out", "leave": "scale-in", "crash": "failure", "lose_host": "failure", "restart": "failure",
         "freeze": "failure", "partition": "failure"}  # fmt: skip
"""Faults whose cost is measured, and as what: those that change the members."""


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="What is to happen, as a TOML file; see docs/lab.md.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Traces, logs and summary.json go there. Default: a new one.")
    ] = None,
    emulate: Annotated[
        bool, typer.Option("--emulate", help="Relays on loopback instead of namespaces: needs no rights; no loss.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a scenario and judge the promises. The exit code is 0 only if all were kept."""
    loaded = load(scenario)
    if not emulate:
        enter_user_namespace()
        if (reason := missing()) is not None:
            raise ChaosError(f"there can be no lab here: {reason}. `chaos lab run --emulate` needs nothing of this")
    folder = empty_folder(out)
    console = Console(stderr=as_json)
    with signals_as_exits(), Hosts(loaded, scenario.resolve().parent, folder, emulate) as hosts:
        ids = hosts.peer_ids()
        result = Lab(hosts, lambda text: console.print(text, highlight=False)).run()
    summary = summarise(result.entries, events_of(result.done), ids)
    values = as_values(loaded, result, summary)
    (folder / "summary.json").write_text(json.dumps(values, indent=1))
    try:
        write_report(trace_files(folder), folder / "report")
    except ChaosError as error:  # the run is what counts; its page needs a library that not everybody has
        console.print(f"no report page: {error}", highlight=False)
    show(console, summary, values, folder)
    if as_json:
        print(json.dumps(values), flush=True)
    if values["broken"]:
        raise ChaosError(f"the run broke a promise: {values['broken'][0]}; see {folder}")


@app.command()
def clean(as_json: AsJson = False) -> None:
    """End and remove what labs left that were killed together with their guards."""
    found = leftovers()
    stuck = [str(path) for path in found if not clean_directory(path)]
    if as_json:
        print(json.dumps({"removed": [str(path) for path in found], "stuck": stuck}))
    else:
        print(f"{len(found)} removed" if found else "nothing was left")
    if stuck:
        raise ChaosError(f"some process of {stuck[0]} can't be killed; is it stuck in the kernel?")


def empty_folder(out: Path | None) -> Path:
    """Where traces go, without those of an earlier run. Raises ChaosError if nothing can be written there."""
    folder = (out or Path(tempfile.mkdtemp(prefix="chaos-traces-"))).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in (*folder.glob("*.jsonl*"), *folder.glob("*.log")):
            old.unlink()
    except OSError as error:
        raise ChaosError(f"cannot write to {folder}: {error.strerror}; give another --out") from error
    return folder


def enter_user_namespace(program: str = "chaos.cli.main") -> None:
    """Go on as root of a user namespace, where this user may make one and isn't root already: the same program anew."""
    if os.geteuid() == 0 or INSIDE in os.environ:
        return
    prefix = ["unshare", "--user", "--map-root-user", "--"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        raise ChaosError(
            "the lab needs root, or a user namespace, and this system allows you neither; `chaos lab run --emulate` "
            "needs no rights: relays on loopback, without loss"
        )
    os.environ[INSIDE] = "1"
    os.execvp(prefix[0], [*prefix, sys.executable, "-m", program, *sys.argv[1:]])


def events_of(done: Sequence[Done]) -> list[Event]:
    """Whose coming, loss or leave has a price. What is cut off for a shorter time than is noticed has none."""
    found = []
    for fault in done:
        names = fault.names if fault.do == "partition" else fault.names[:1]
        if fault.do in KINDS:
            found += [Event(KINDS[fault.do], name, fault.at) for name in names]
        if fault.do == "restart":
            found.append(Event("scale-out", fault.names[0], fault.at + fault.fault.seconds))
    return found


def as_values(scenario: Scenario, result: LabResult, summary: Summary) -> dict[str, Any]:
    """The JSON object: the demo's keys and the lab's own."""
    broken = list(result.broken)
    broken += [] if summary.digests_equal else ["the last members' states differ"]
    broken += [f"{summary.lost_updates} stable updates were lost"] if summary.lost_updates else []
    twice = summary.samples_counted_twice
    broken += [f"{twice} samples were counted twice"] if twice else []
    names = [host.name for host in scenario.hosts]
    last = max((entry.t for entry in result.entries if entry.kind == "commit"), default=result.began)
    return summary.as_json() | {
        "scenario": scenario.name,
        "broken": broken,
        "seconds": round(last - result.began, 3),
        "views": max((entry["view"] for entry in result.entries if entry.kind == "view"), default=0),
        "faults": [{"at": round(d.at - result.began, 3), "do": d.do, "peers": d.names} for d in result.done],
        "paused_s": paused(result),
        "links": [
            {"from": names[a], "to": names[b], **asdict(traffic)} for (a, b), traffic in sorted(result.traffic.items())
        ],
        "peers": {
            name: {"cpu_s": round(used, 2), "agent_rss_bytes": held, "exit_code": result.exit_codes[name]}
            for name, (used, held) in result.usage.items()
        },
        "wire_late_ms": round(result.late_s * 1000, 3),
        "remarks": result.remarks,
    }


def paused(result: LabResult) -> dict[str, float]:
    """For how many seconds each peer stood still without a quorum, if it did."""
    found: dict[str, float] = {}
    for entry in result.entries:
        if entry.kind == "unpaused":
            found[entry.peer] = round(found.get(entry.peer, 0.0) + entry["seconds"], 3)
    return found


def show(console: Console, summary: Summary, values: dict[str, Any], folder: Path) -> None:
    """The figures for people."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("stable steps", f"{summary.steps} in {values['seconds']:.1f} s, {values['views']} views")
    facts.add_row("members at the end", str(summary.peers_final))
    facts.add_row("their states", "equal to the last bit" if summary.digests_equal else "THEY DIFFER")
    facts.add_row("stable updates lost", str(summary.lost_updates))
    facts.add_row("samples counted twice", str(summary.samples_counted_twice))
    if values["paused_s"]:
        facts.add_row("stood without a quorum", ", ".join(f"{n} {s:.1f} s" for n, s in values["paused_s"].items()))
    facts.add_row("bytes on the wire", f"{sum(link['nbytes'] for link in values['links']) / 1e6:.1f} MB")
    facts.add_row("latest packet", f"{values['wire_late_ms']:.1f} ms after its time")
    facts.add_row("traces", str(folder))
    console.print(facts)
    console.print(costs_table(summary.events, lambda cost: f"{cost.kind} of {cost.peer}"))
    for line in (*values["remarks"], *(f"BROKEN: {promise}" for promise in values["broken"])):
        console.print(line, highlight=False)
