"""The picture of a run that people look at: what `Fold` makes of trace lines. Plain values, ready for JSON.

Times are seconds since 1970 by the causal clock, which all peers share near enough; `0.0` is never.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import msgspec

EVENTS = 400
"""The newest so many events are kept."""
STEPS = 256
"""So many of the last steps are kept one by one."""
POINTS = 1024
"""Of loss and throughput; where there are more, every two become one."""
PEERS = 512
"""The ones that are gone for longest are forgotten first."""
LINKS = 2048
USUAL = 30
"""So many undisturbed steps say how long a step usually takes."""
SAMPLES = 120
"""Host samples per peer: four minutes."""


@dataclass
class Peer:
    """One peer, as far as anybody told."""

    name: str
    id: str = ""
    party: str = ""
    state: str = "joiner"
    """'joiner', 'learner', 'member', 'suspect', 'paused', 'left', 'gone' or 'done'."""
    since: float = 0.0
    """When that began."""
    why: str = ""
    view: int = 0
    step: int = 0
    heard: float = 0.0
    """When its last line was written."""
    contributed: int = 0
    """Steps that it had a part in, of those that were seen."""
    late: int = 0
    """Steps that it was left out of."""
    last_late: int = 0
    phase: str = ""
    """Of a learner."""
    share: float | None = None
    """Of the sums it makes, by the sync plan."""
    host: dict[str, Any] = field(default_factory=dict)
    gpus: list[dict[str, Any]] = field(default_factory=list)
    worker: dict[str, Any] = field(default_factory=dict)
    spread_bytes: int = 0
    """What its telling others took so far."""
    cpu: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    """When, and the share of the host's cores in use."""


@dataclass
class Direction:
    """What one end of a link sends to the other."""

    bytes: dict[str, int] = field(default_factory=dict)
    """By purpose: control, gradients, state. Since the link came up."""
    use: float = 0.0
    """Bytes per second between the last two samples."""
    rate: float | None = None
    """Bytes per second that the receiver measured while bulk flowed."""
    at: float = 0.0


@dataclass
class Link:
    """Between two peers, the lower name first."""

    ends: tuple[str, str]
    state: str = "up"
    """'up', 'down' or 'cut' (by order)."""
    since: float = 0.0
    losses: int = 0
    why: str = ""
    rtt_s: float | None = None
    sends: dict[str, Direction] = field(default_factory=dict)
    """By the end that sends."""


@dataclass
class Step:
    step: int
    at: float
    view: int
    loss: float | None
    weight: float
    contributors: list[str]
    late: list[str]
    seconds: float | None
    """Since the step before was committed."""
    skip: str = ""


@dataclass
class Event:
    """Something that people want to know. Changes of the view have a cause and what they cost."""

    at: float
    peer: str
    kind: str
    text: str
    view: int
    step: int
    reason: str = ""
    causes: list[list[str]] = field(default_factory=list)
    first_step: int = 0
    handling_ms: dict[str, float] = field(default_factory=dict)
    """By member: from learning of it to the new view."""
    computing_ms: dict[str, float] = field(default_factory=dict)
    """By member: work in that, sending included."""
    usual_s: float | None = None
    """What a step took before."""
    extra_s: float = 0.0
    """What the steps around it took beyond that."""
    times: int = 1
    """How often the same was said in a row."""


@dataclass
class Join:
    """A peer on its way in."""

    peer: str
    began: float
    phase: str = ""
    step: int = 0
    bytes: int = 0
    """Of the whole state; 0 while unknown."""
    sources: dict[str, int] = field(default_factory=dict)
    """Bytes so far, by donor."""
    fetching_since: float = 0.0
    seconds_left: float | None = None
    """Until the state is here, at the rate so far."""
    ended: float = 0.0
    outcome: str = ""
    """'member', or why it was none."""
    extra_s: float = 0.0
    """What the others' steps took meanwhile, beyond the usual."""

    @property
    def fetched(self) -> int:
        return sum(self.sources.values())


@dataclass
class Series:
    """Points over time, thinned where there are too many: all of them stand for equally many steps."""

    points: list[tuple[float, int, float | None, float | None, float | None]] = field(default_factory=list)
    """When, step, loss, samples per second, seconds per step."""
    every: int = 1
    """Steps per point."""
    _pending: list[tuple[float, int, float | None, float | None, float | None]] = field(default_factory=list)

    def add(self, point: tuple[float, int, float | None, float | None, float | None]) -> None:
        self._pending.append(point)
        if len(self._pending) >= self.every:
            self.points.append(merged(self._pending))
            self._pending = []
        if len(self.points) > POINTS:
            pairs = zip(self.points[::2], self.points[1::2], strict=False)
            self.points = [merged(list(pair)) for pair in pairs]
            self.every *= 2


def merged(
    points: list[tuple[float, int, float | None, float | None, float | None]],
) -> tuple[float, int, float | None, float | None, float | None]:
    """One point for several: the last one's time and step, the others' means."""
    at, step = points[-1][:2]
    loss, rate, seconds = (mean([point[i] for point in points]) for i in (2, 3, 4))
    return at, step, loss, rate, seconds


def mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


@dataclass
class Picture:
    """A run, as its peers tell it."""

    run: str = ""
    lineage: str = ""
    view: int = 0
    view_since: float = 0.0
    step: int = 0
    stable: int = 0
    first_step: int = 0
    """The first that was seen."""
    at: float = 0.0
    """Of the newest line."""
    began: float = 0.0
    members: list[str] = field(default_factory=list)
    learners: list[str] = field(default_factory=list)
    most_members: int = 0
    """As many as there ever were: with fewer, the run says so."""
    peers: dict[str, Peer] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    """By 'a b', the lower name first."""
    steps: deque[Step] = field(default_factory=lambda: deque(maxlen=STEPS))
    series: Series = field(default_factory=Series)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=EVENTS))
    events_told: int = 0
    joins: dict[str, Join] = field(default_factory=dict)
    """The newest of each peer; those that ended too, until there are too many."""
    usual_s: float | None = None
    """Median of the last undisturbed steps."""
    samples: float = 0.0
    """Sum of all steps' weights."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = msgspec.to_builtins(self, enc_hook=list)
        del plain["series"]["_pending"]
        return plain

    @property
    def stragglers(self) -> list[Peer]:
        """Who was left out of steps, the worst first."""
        return sorted((p for p in self.peers.values() if p.late), key=lambda p: (-p.late, p.name))

    def standing(self) -> str:
        """One line: how far, with whom, and how many there once were."""
        loss = next((s.loss for s in reversed(self.steps) if s.loss is not None), None)
        fewer = f" of {self.most_members} that there were" if len(self.members) < self.most_members else ""
        parts = [f"step {self.step}", f"{len(self.members)} member{'s' * (len(self.members) != 1)}{fewer}"]
        parts += [f"loss {loss:.4f}"] if loss is not None else []
        return ", ".join(parts)


def usual(steps: deque[float]) -> float | None:
    """Median of what undisturbed steps took."""
    return median(steps) if steps else None
