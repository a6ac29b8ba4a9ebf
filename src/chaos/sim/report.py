"""What many runs gave, for people and as one JSON object."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from chaos.sim.runs import RunResult, Violation


@dataclass
class Report:
    """Sums over runs, in the order of their seeds."""

    runs: int = 0
    events: int = 0
    messages: int = 0
    views: int = 0
    steps: int = 0
    seconds: float = 0.0
    lost: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    _digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def add(self, result: RunResult) -> None:
        self.runs += 1
        self.events += result.events
        self.messages += result.messages
        self.views += result.views
        self.steps += result.steps
        self.seconds += result.seconds
        self.lost += result.lost
        self.faults += result.faults
        self._digest.update(result.digest)
        if result.violation is not None:
            self.violations.append(result.violation)

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "events": self.events,
            "faults": dict(sorted(self.faults.items())),
            "views": self.views,
            "violations": [{"seed": v.seed, "promise": v.promise, "at": v.at} for v in self.violations],
            "trace_digest": self._digest.hexdigest(),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items())) or "none"
        return [
            f"runs        {self.runs}, {self.seconds:.0f} s of virtual time, {self.steps} stable steps",
            f"events      {self.events}, {self.messages / max(self.events, 1):.2f} messages each",
            f"faults      {sum(self.faults.values())}: {kinds}",
            f"views       {self.views} decided",
            f"lost        {self.lost} (all that held the state died)",
            f"violations  {len(self.violations)}",
            f"trace       {self._digest.hexdigest()}",
        ]


def describe(first: RunResult, shortest: RunResult) -> list[str]:
    """A violation: what was broken, and the shortest schedule that shows it."""
    broken = shortest.violation or first.violation
    assert broken is not None and first.violation is not None
    lines = [
        f"seed {broken.seed} breaks {broken.promise} at {first.violation.at:.4f} s: {first.violation.text}",
        f"  shortest prefix that shows it: {len(shortest.log)} of {len(first.log)} faults, "
        f"{shortest.events} events, {broken.at:.4f} s",
    ]
    return lines + [f"    {at:9.4f} s  {kind:22} {what}" for at, kind, what in shortest.log]
