"""What was observed, as a file that later calls extend: one entry per event, whoever measured it and when."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.peers.hosts import ROOT
from benchmarks.report import machine

REQUIREMENTS = Path(__file__).parent / "requirements"
WorkKey = tuple[str, float, int, float]
"""Links, seconds of computing, millions of parameters, seconds between events of a churn."""


@dataclass(frozen=True)
class Setting:
    """What a row of a table is about."""

    system: str
    """As tables call it."""
    tuned: str
    """`tight`, `default`, or nothing where a system has one sort of settings."""
    links: str
    compute: float
    """Seconds of each step in which workers sleep."""
    millions: int
    every: float = 0.0
    """Seconds between two events of a churn; 0: there is none."""

    @property
    def label(self) -> str:
        return ", ".join(part for part in (self.system, self.tuned) if part)

    @property
    def work(self) -> WorkKey:
        """Rows that agree in it may be compared."""
        return self.links, self.compute, self.millions, self.every


@dataclass
class Observation:
    """One event in one system."""

    setting: Setting
    event: str
    values: dict[str, list[float]] = field(default_factory=dict)
    """By measure, whose units `page.py` says."""
    printed: list[str] = field(default_factory=list)
    """The lines that told the system's user of it."""
    failed: str = ""
    """What did not happen."""
    call: int = 0
    """In which call of the command, whose machine is on the results' list."""


@dataclass
class Results:
    """Everything that was observed on one day."""

    calls: list[str] = field(default_factory=list)
    """A line for each: when, on what, of which version."""
    observations: list[Observation] = field(default_factory=list)

    def of(self, setting: Setting, event: str) -> list[Observation]:
        return [o for o in self.observations if o.setting == setting and o.event == event]

    def settings(self, work: WorkKey) -> list[Setting]:
        """All rows with this work: Chaos first, the others by name."""
        found = {o.setting for o in self.observations if o.setting.work == work}
        return sorted(found, key=lambda setting: (not setting.system.startswith("chaos"), setting.label))

    def works(self) -> list[WorkKey]:
        return sorted({o.setting.work for o in self.observations}, key=lambda work: (work[0] != "loopback", *work))


def read(path: Path) -> Results:
    """An empty one where there is no such file."""
    if not path.exists():
        return Results()
    found = json.loads(path.read_text())
    observations = [Observation(**{**each, "setting": Setting(**each["setting"])}) for each in found["observations"]]
    return Results(found["calls"], observations)


def write(path: Path, results: Results) -> None:
    """All at once: who is killed meanwhile leaves the old file."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(results), indent=1) + "\n")
    part.rename(path)


def this_call() -> str:
    """Machine and versions, for the list of calls."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    tree = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return f"{machine()}; Chaos at {tree}; {', '.join(pinned(REQUIREMENTS.glob('*.txt')))}"


def pinned(files: Iterable[Path]) -> list[str]:
    """The versions that the peers' environments are made with, but for what all have."""
    lines = {line.strip() for path in files for line in path.read_text().splitlines() if "==" in line}
    return sorted(line for line in lines if not line.startswith(("torch==", "numpy==")))
