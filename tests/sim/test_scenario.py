"""Scenario files, `chaos sim`, and what they say when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chaos.cli.main import app
from chaos.cli.sim import parse_range
from chaos.core import agreement, pause
from chaos.core.errors import ChaosError
from chaos.sim.runs import finish
from chaos.sim.scenario import VERBS, Fault, Scenario, ScenarioRun, load

SCENARIOS = Path(__file__).parents[2] / "scenarios"
TEXT = """
peers = 4
[[fault]]
at = 0.5
do = "partition"
peers = [2, 3]
seconds = 6
"""


def forked(view, agreeing, gone) -> bool:  # noqa: ARG001
    return bool(agreeing)


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda p: p.stem)
def test_the_scenarios_hold(path: Path) -> None:
    result = finish(ScenarioRun(load(path), 0))
    assert result.violation is None
    assert result.log, "something happened"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_can_be_used(verb: str) -> None:
    peers = (7, 0) if verb == "join" else (2, 0)
    scenario = Scenario(peers=3, compute_ms=100, fault=(Fault(0.2, verb, peers=peers, seconds=1.0),))
    result = finish(ScenarioRun(scenario, 1))
    assert result.violation is None
    assert result.faults[verb] >= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("peers = 'three'", "is no scenario"),
        ("what = 1", "is no scenario"),
        ("[[fault", "is no scenario"),
        ("[[fault]]\nat = 1\ndo = 'explode'", "'explode' is nothing that can happen"),
        ("[[fault]]\nat = 1\ndo = 'crash'", "'crash' needs 1 of 'peers'"),
    ],
)
def test_a_bad_scenario_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ChaosError, match=message):
        load(path)


def test_seeds() -> None:
    assert list(parse_range("--seeds", "3..5")) == [3, 4, 5]
    assert list(parse_range("--seeds", "7")) == [7]
    for text in ("5..3", "x", "..4"):
        with pytest.raises(ChaosError, match=f"--seeds {text}: "):
            parse_range("--seeds", text)


def test_the_command_prints_one_json_object_and_fails_only_with_violations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "halves.toml"
    path.write_text(TEXT)
    command = ["sim", "--scenario", str(path), "--seeds", "0..1", "--json"]
    fine = CliRunner().invoke(app, command)
    assert fine.exit_code == 0, fine.output
    report = json.loads(fine.stdout.splitlines()[-1])
    assert set(report) == {"runs", "events", "faults", "views", "violations", "trace_digest"}
    assert (report["runs"], report["violations"], report["faults"]) == (2, [], {"partition": 2})
    monkeypatch.setattr(agreement, "is_quorum", forked)
    monkeypatch.setattr(pause, "is_quorum", forked)
    broken = CliRunner().invoke(app, command)
    assert broken.exit_code == 1
    found = json.loads(broken.stdout.splitlines()[-1])["violations"]
    assert [(v["seed"], v["promise"]) for v in found] == [(0, "I2"), (1, "I2")]
    assert "shortest prefix that shows it: 1 of 1 faults" in broken.stdout


@pytest.mark.parametrize("options", [[], ["--random", "--scenario", "x.toml"]])
def test_either_a_scenario_or_random(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["sim", *options])
    assert result.exit_code != 0
