"""What an event cost, measured from the peers' traces: how long it took, and how long it kept the others waiting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from chaos.observe.trace_file import Entry

BASELINE_STEPS = 30
"""So many undisturbed steps before an event say how long a step usually takes once everybody has contributed."""


@dataclass(frozen=True)
class Event:
    """Something that befell the run."""

    kind: str
    """'scale-out', 'failure' or 'scale-in'."""
    peer: str
    """Name of the peer that came, died or left."""
    at: float
    """When the peer was started, killed, or asked to leave: seconds on the monotonic clock."""


@dataclass(frozen=True)
class Window:
    """From an event's beginning to its end, both in seconds on the monotonic clock."""

    start: float
    end: float
    first_step: float
    """When the first step without, or with, that peer was committed: only then is the disturbance over."""

    def touches(self, start: float, end: float) -> bool:
        """Whether a step from `start` to `end` lies in it at least partly."""
        return start <= max(self.end, self.first_step) and end >= self.start


@dataclass(frozen=True)
class Cost:
    """One event and what it cost."""

    kind: str
    peer: str
    delay_s: float
    """Scale-out: from the joiner's registration to the first commit it contributed to. Failure: from the kill to the
    first commit of a view without the peer. Scale-in: from the request until all others installed a view without it."""
    stall_s: float
    """Waiting of the worst affected incumbent beyond the usual, over the event's steps. Waiting begins when the last
    incumbent has contributed: to wait for one that computes slowly is no stall."""
    steps_during: int
    """Steps committed while it lasted."""


@dataclass(frozen=True)
class Wait:
    """All incumbents had contributed to a step, and a worker stood waiting until it was committed at its peer."""

    step: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def costs(entries: Sequence[Entry], events: Iterable[Event], ids: dict[str, str]) -> list[Cost]:
    """Cost of each event that came to its end. Entries in order of time; `ids` maps names to peer ids."""
    found = [(event, window) for event in events if (window := find_window(entries, event, ids)) is not None]
    # While a joiner's process starts, it already takes computing time from peers on its own host.
    disturbed = [Window(min(event.at, w.start), w.end, w.first_step) for event, w in found]
    return [
        Cost(
            event.kind,
            event.peer,
            window.end - window.start,
            _stall(entries, event, window, disturbed),
            len({e["step"] for e in entries if e.kind == "commit" and window.start <= e.t <= window.end}),
        )
        for event, window in found
    ]


def find_window(entries: Sequence[Entry], event: Event, ids: dict[str, str]) -> Window | None:
    """When the event began and ended; None if it did not come to its end."""
    later = [entry for entry in entries if entry.t >= event.at]
    if event.kind == "scale-out":
        return _scale_out(later, event.peer, ids[event.peer])
    members = {e["view"]: e["members"] for e in entries if e.kind == "view"}
    without = {view for view, names in members.items() if event.peer not in names}
    after = [e for e in later if e.kind == "view" and e["view"] in without]
    commit = next((e for e in later if e.kind == "commit" and e["view"] in without and e.peer != event.peer), None)
    if not after or commit is None:
        return None
    if event.kind == "failure":
        return Window(event.at, commit.t, commit.t)
    installed = {e.peer: e.t for e in reversed(after)}
    others = members[after[0]["view"]]
    if not installed.keys() >= set(others):
        return None
    return Window(event.at, max(installed[peer] for peer in others), commit.t)


def _scale_out(later: Sequence[Entry], joiner: str, joiner_id: str) -> Window | None:
    registered = next((e for e in later if e.kind == "worker_registered" and e.peer == joiner), None)
    commit = next((e for e in later if e.kind == "commit" and joiner_id in e["contributors"]), None)
    if registered is None or commit is None:
        return None
    return Window(registered.t, commit.t, commit.t)


def _stall(entries: Sequence[Entry], event: Event, window: Window, disturbed: Sequence[Window]) -> float:
    """Waiting beyond the usual during the event, in seconds, of the incumbent that lost most."""
    members = {e["view"]: [name for name in e["members"] if name != event.peer] for e in entries if e.kind == "view"}
    if event.kind == "scale-in":
        members = {e["view"]: e["members"] for e in entries if e.kind == "view"}  # it contributes to its last step
    incumbents = {e.peer for e in entries if e.kind == "commit" and e.t < window.start} - {event.peer}
    excess = max((_excess(waits(entries, peer, members), window, disturbed) for peer in incumbents), default=0.0)
    return excess + _for_snapshots(entries, window)


def _excess(steps: Sequence[Wait], window: Window, disturbed: Sequence[Window]) -> float:
    during = [w.end - max(w.start, window.start) for w in steps if window.touches(w.start, w.end)]
    quiet = [w for w in steps if not any(d.touches(w.start, w.end) for d in disturbed)]
    before = [w.seconds for w in quiet if w.end < window.start][-BASELINE_STEPS:]
    usual = median(before or [w.seconds for w in quiet] or [0.0])
    return max(0.0, sum(during) - usual * len(during))


def _for_snapshots(entries: Iterable[Entry], window: Window) -> float:
    """How long the slowest donor could not go on because its snapshot was being copied: then all wait for it."""
    stalls: dict[str, float] = defaultdict(float)
    for entry in entries:
        if entry.kind == "snapshot" and window.touches(entry.t, entry.t):
            stalls[entry.peer] += entry["stall_ms"] / 1000
    return max(stalls.values(), default=0.0)


def waits(entries: Iterable[Entry], peer: str, members: Mapping[int, Sequence[str]]) -> list[Wait]:
    """Every step that the worker of `peer` waited for, in order of time.

    Args:
        members: view id -> names of those whose contributions are not part of the waiting.
    """
    arrived: dict[tuple[str, int], float] = {}
    found: list[Wait] = []
    for entry in entries:
        if entry.kind == "boundary":
            arrived[entry.peer, entry["applied"] + 1] = entry.t
        elif entry.kind == "commit" and entry.peer == peer:
            stood = [(name, entry["step"]) for name in members[entry["view"]] if (name, entry["step"]) in arrived]
            if (peer, entry["step"]) in stood:
                found.append(Wait(entry["step"], max(arrived[place] for place in stood), entry.t))
    return found
