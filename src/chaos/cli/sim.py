"""`chaos sim`: run the protocol in virtual time, with faults, and check its promises at every event."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from chaos.core.errors import ChaosError
from chaos.sim.jobs import in_order
from chaos.sim.mix import random_run
from chaos.sim.replay import replay
from chaos.sim.report import Report, describe
from chaos.sim.runs import Run, RunResult, finish, shorten
from chaos.sim.scenario import Scenario, ScenarioRun, load

PROGRESS_EVERY = 500
"""Runs between two lines of progress on standard error."""
MOST_PEERS = 1000


def parse_range(option: str, text: str) -> range:
    """'A..B' (both included) or a single number. Raises ChaosError, which names the option."""
    first, _, last = text.partition("..")
    try:
        numbers = range(int(first), int(last or first) + 1)
    except ValueError:
        raise ChaosError(f"{option} {text}: give a number, or a range such as 3..9") from None
    if not numbers:
        raise ChaosError(f"{option} {text}: the range is empty; give the lower number first")
    return numbers


def parse_peers(text: str) -> int | range:
    """Raises ChaosError."""
    few = parse_range("--peers", text)
    if few[0] < 1 or few[-1] > MOST_PEERS:
        raise ChaosError(f"--peers {text}: give numbers from 1 to {MOST_PEERS}")
    return few if len(few) > 1 else few[0]


@dataclass(frozen=True)
class Plan:
    """What is run with each seed."""

    scenario: Scenario | None
    """None: random faults."""
    peers: int | range | None
    steps: int

    def __call__(self, seed: int) -> tuple[RunResult, list[str]]:
        """The run of a seed, and what is to be said of it: nothing, or how it broke a promise."""

        def again(omit: Collection[int], limit: int | None) -> Run:
            if self.scenario is None:
                return random_run(seed, self.peers, self.steps, omit, limit)
            return ScenarioRun(self.scenario, seed, self.steps, omit, limit)

        result = finish(again((), None))
        return result, [] if result.violation is None else describe(result, shorten(result, again))


def simulate(scenario: Path | None, peers: str | None, seeds: str, steps: int, jobs: int, as_json: bool) -> int:
    """Run all seeds and print what they gave. Returns the exit code: 0 only without violations."""
    if jobs < 0:
        raise ChaosError(f"--jobs {jobs}: give a number of processes, or 0 for one per core")
    plan = Plan(load(scenario) if scenario else None, parse_peers(peers) if peers else None, steps)
    report, wanted = Report(), parse_range("--seeds", seeds)
    with closing(in_order(plan, wanted, jobs or len(os.sched_getaffinity(0)))) as results:
        for result, said in results:
            report.add(result)
            if said:
                print("\n".join(said), flush=True)
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
