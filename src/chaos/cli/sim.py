"""`chaos sim`: run the protocol in virtual time, with faults, and check its promises at every event."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from chaos.core.errors import ChaosError
from chaos.sim.mix import random_run
from chaos.sim.replay import replay
from chaos.sim.report import Report, describe
from chaos.sim.runs import Factory, finish, shorten
from chaos.sim.scenario import ScenarioRun, load

PROGRESS_EVERY = 500
"""Runs between two lines of progress on standard error."""


def parse_seeds(text: str) -> range:
    """'A..B' (both included) or a single seed. Raises ChaosError."""
    first, _, last = text.partition("..")
    try:
        seeds = range(int(first), int(last or first) + 1)
    except ValueError:
        raise ChaosError(f"--seeds {text}: give a range such as 0..99") from None
    if not seeds:
        raise ChaosError(f"--seeds {text}: the range is empty; give the lower seed first")
    return seeds


def factory(scenario: Path | None, seed: int, peers: int | None, steps: int) -> Factory:
    """Makes the run of a seed."""
    if scenario is None:
        return lambda omit, limit: random_run(seed, peers, steps, omit, limit)
    loaded = load(scenario)
    return lambda omit, limit: ScenarioRun(loaded, seed, steps, omit, limit)


def simulate(scenario: Path | None, peers: int | None, seeds: str, steps: int, as_json: bool) -> int:
    """Run all seeds and print what they gave. Returns the exit code: 0 only without violations."""
    if peers is not None and not 1 <= peers <= 1000:
        raise ChaosError(f"--peers {peers}: give a number from 1 to 1000")
    report, wanted = Report(), parse_seeds(seeds)
    for seed in wanted:
        again = factory(scenario, seed, peers, steps)
        result = finish(again((), None))
        report.add(result)
        if result.violation is not None:
            print("\n".join(describe(result, shorten(result, again))), flush=True)
        if report.runs % PROGRESS_EVERY == 0:
            print(f"{report.runs} of {len(wanted)} runs, {len(report.violations)} violations", file=sys.stderr)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        print("\n".join(report.lines()))
    return 1 if report.violations else 0


def run_again(recording: Path, as_json: bool) -> int:
    """Replay a recorded agent and say whether it did the same. Returns the exit code: 0 only if it did."""
    result = replay(recording)
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        print(f"{result.peer}: {result.events} events, up to step {result.steps} in view {result.views}")
        print(f"differs at {result.differs}" if result.differs else "the node did the same after each of them")
    return 1 if result.differs else 0
