"""A whole trial, with a toy in place of a training system: real processes on loopback, without namespaces."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.peers.measure import Noted, Plan, measure
from benchmarks.peers.places import Links, Place
from benchmarks.peers.systems import System

pytestmark = pytest.mark.e2e

WORKER = Path(__file__).with_name("toy_worker.py")


class Toy(System):
    name = "toy"
    coordinator = "none"

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        hosts = self.directory / "hosts-that-run"
        hosts.mkdir(exist_ok=True)
        return self._start(name, [sys.executable, str(WORKER), *work, "--store", str(hosts)])


class Broken(System):
    name = "broken"
    coordinator = "none"

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:  # noqa: ARG002
        return self._start(name, ["sh", "-c", "echo no such luck; exit 3"])


def trial(kind: type[System], plan: Plan) -> list[Noted]:
    @contextmanager
    def opened() -> Iterator[System]:
        with Place(Links(), namespaces=False) as place, kind(place, 1, 0.0, False) as system:
            yield system

    noted: list[Noted] = []
    measure(opened, plan, noted.append)
    return noted


def test_everything_that_happens_is_noted() -> None:
    noted = trial(Toy, Plan(events=("join", "kill", "freeze", "coordinator"), rounds=1, patience_s=20.0))
    assert [each.event for each in noted] == [
        "steady", "join", "leave", "kill", "rejoin", "freeze", "thaw", "coordinator"
    ]  # fmt: skip
    assert not any(each.failed for each in noted)
    values = {key: each for one in noted for key, each in one.values.items()}
    assert all(abs(values[key][0]) < 5.0 for key in ("join", "leave_stall", "kill", "freeze", "thaw", "coordinator"))
    assert "j0: toy: j0 joins" in noted[1].printed


def test_a_system_that_does_not_run_is_a_row_that_says_so() -> None:
    (noted,) = trial(Broken, Plan(patience_s=5.0))
    assert (noted.event, noted.failed) == ("steady", "h0 ended with exit code 3")
    assert noted.printed == ["h0: no such luck"]


def test_an_event_that_fails_is_not_tried_again_and_the_others_are() -> None:
    class Frail(Toy):
        """Loses everything when anybody is killed."""

        def kill(self, name: str) -> None:  # noqa: ARG002
            for other in list(self.hosts):
                self.hosts[other].kill()

    plan = Plan(events=("kill", "freeze"), rounds=2, patience_s=20.0)
    events = [(each.event, bool(each.failed)) for each in trial(Frail, plan)]
    freezing = [("freeze", False), ("thaw", False)]
    assert [event for event, failed in events if failed] in (["kill"], ["rejoin"]), "a step may have been under way"
    assert events[-5:] == [("steady", False), *freezing * 2]


def test_churn_counts_what_was_committed() -> None:
    noted = trial(Toy, Plan(events=("churn",), churn_s=20.0))[-1]
    assert noted.event == "churn" and not noted.failed
    assert noted.values["goodput"][0] == pytest.approx(20 * 3 * 4, rel=0.5), "20 steps a second of three, of 4 samples"
    assert noted.values["restarts"] == [0.0] and noted.values["gap"][0] < 1.0
