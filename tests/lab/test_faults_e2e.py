"""Real agents and workers in namespaces of their own, which train while the network or a host fails them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from chaos.lab.hosts import Hosts, leftovers
from chaos.lab.run import Lab, LabResult
from chaos.lab.scenario import Fault, Scenario
from chaos.observe.trace_file import Entry
from tests.cli.judge import judge

pytestmark = [pytest.mark.e2e, pytest.mark.namespaces, pytest.mark.timeout(240)]

CALM = Scenario(peers=3, latency_ms=5, state_mb=0.25, compute_ms=20)
SMALL = Path(__file__).parents[2] / "scenarios" / "lab" / "small.toml"
QUICK_S = 3.0
"""A silent peer may hold the others up for so long."""


def run(folder: Path, *faults: Fault) -> LabResult:
    """Three hosts and these faults. Whatever happens, all states are equal at the end and nothing is lost."""
    told: list[str] = []
    with Hosts(msgspec.structs.replace(CALM, fault=faults), folder, folder) as hosts:
        result = Lab(hosts, told.append).run()
        ids = hosts.peer_ids()
    assert result.broken == [], told
    judge(result.entries, ids)
    return result


def between(result: LabResult, start: float, end: float, kind: str, peer: str = "") -> list[Entry]:
    """Lines of a kind from `start` to `end` seconds after the first fault."""
    zero = result.done[0].at
    return [e for e in result.entries if e.kind == kind and start <= e.t - zero <= end and peer in ("", e.peer)]


def members(result: LabResult) -> list[list[str]]:
    """The views' members since the first fault, in order."""
    views = {e["view"]: e["members"] for e in between(result, 0, 1e9, "view")}
    return [views[number] for number in sorted(views)]


def test_one_link_of_three_is_cut_and_the_third_peer_relays(tmp_path: Path) -> None:
    result = run(tmp_path, Fault("cut", at=0.5, peers=(1, 2), seconds=4.0))
    assert [e["about"] for e in between(result, 0, 4, "link_down", "p1")] == ["p2"], "nobody told them: they noticed"
    for peer in ("p0", "p1", "p2"):
        assert len(between(result, 2.0, 4.0, "commit", peer)) >= 5, "steps go on by way of p0"
    assert {tuple(sorted(names)) for names in members(result)} <= {("p0", "p1", "p2")}, "all are heard"
    assert between(result, 4, 1e9, "link_up", "p1"), "the link is back"


def test_a_peer_is_cut_off_and_comes_back(tmp_path: Path) -> None:
    result = run(tmp_path, Fault("partition", at=0.5, peers=(2,), seconds=4.0))
    assert between(result, 0, QUICK_S, "paused", "p2")
    assert between(result, QUICK_S, 4.0, "commit", "p0") and between(result, QUICK_S, 4.0, "commit", "p1")
    assert not between(result, QUICK_S, 4.0, "commit", "p2")
    assert members(result)[0] == ["p0", "p1"] and sorted(members(result)[-1]) == ["p0", "p1", "p2"]


def test_a_direction_that_loses_everything_stops_nobody(tmp_path: Path) -> None:
    """What p2 sends p0 is lost without a word; p2 still hears p0."""
    result = run(tmp_path, Fault("one_way", at=0.5, peers=(2, 0), seconds=5.0))
    for peer in ("p0", "p1", "p2"):
        assert len(between(result, QUICK_S, 5.0, "commit", peer)) >= 5, "steps go on by way of p1"
    assert {tuple(sorted(names)) for names in members(result)} <= {("p0", "p1", "p2")}, "p1 hears both"


def test_a_host_that_freezes_is_left_out_and_comes_back(tmp_path: Path) -> None:
    result = run(tmp_path, Fault("freeze", at=0.5, peers=(1,), seconds=6.0))
    assert between(result, QUICK_S, 6.0, "commit", "p0") and between(result, QUICK_S, 6.0, "commit", "p2")
    assert members(result)[0] == ["p0", "p2"] and sorted(members(result)[-1]) == ["p0", "p1", "p2"]
    roles = [e["role"] for e in between(result, 6.0, 1e9, "view", "p1")]
    assert roles[-2:] == ["learner", "member"], "it takes the others' state"


def test_the_command_runs_the_small_scenario_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos.cli.main", "lab", "run", str(SMALL), "--out", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])
    assert values == json.loads((tmp_path / "summary.json").read_text())
    assert values["digests_equal"] and values["lost_updates"] == values["samples_counted_twice"] == 0
    assert values["broken"] == [] and values["peers_final"] == 3
    assert {(e["kind"], e["peer"]) for e in values["events"]} == {("scale-out", "p3"), ("failure", "p2")}
    assert all(link["nbytes"] for link in values["links"])
    assert {p.name for p in tmp_path.glob("*.jsonl")} == {f"p{n}.jsonl" for n in range(4)}
    assert leftovers() == []
    mine = f"/proc/{os.getpid()}/ns/net"
    ours = Path(mine).readlink()
    others = [p for p in Path("/proc").glob("[0-9]*/ns/net") if p.exists() and p.readlink() != ours]
    assert not [p for p in others if b"chaos-wire" in (p.parents[1] / "cmdline").read_bytes()]
