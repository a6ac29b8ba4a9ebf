"""What the peers' traces say about the promises: nothing stable lost, no sample counted twice, equal states.

Everything is judged on the final lineage: the chain of heads that the members of the last stable step hold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from chaos.observe.trace_file import Entry


@dataclass
class History:
    """One peer's steps."""

    commits: dict[int, Entry] = field(default_factory=dict)
    """By step; the last one where a step was retried."""
    stable: dict[int, str] = field(default_factory=dict)
    """Step -> its head when this peer called it stable."""
    loaded: int = -1
    """The newest snapshot that was loaded: it holds every update up to that step."""
    final: tuple[int, str] | None = None
    """Step and digest of the whole training state when the script ended."""


@dataclass(frozen=True)
class Lineage:
    """The run as its last members tell it."""

    last_stable: int
    members: tuple[str, ...]
    """Members of the view in which the last stable step ran, by name, in rank order."""
    commits: Mapping[int, Entry]
    """Step -> its commit on the final lineage, up to the last stable step."""
    histories: Mapping[str, History]


def read_lineage(entries: Iterable[Entry]) -> Lineage:
    """The final lineage. Entries in order of time."""
    histories: dict[str, History] = defaultdict(History)
    views: dict[int, tuple[str, ...]] = {}
    for entry in entries:
        _note(histories[entry.peer], entry)
        if entry.kind == "view":
            views[entry["view"]] = tuple(entry["members"])
    last_stable = max((step for history in histories.values() for step in history.stable), default=0)
    if last_stable == 0:
        return Lineage(0, (), {}, histories)
    view = max(h.commits[last_stable]["view"] for h in histories.values() if last_stable in h.commits)
    members = views[view]
    others = [peer for peer in histories if peer not in members]
    commits: dict[int, Entry] = {}
    for step in range(1, last_stable + 1):
        # Steps from before all last members came are told by those who were there.
        holders = [p for p in members if step in histories[p].commits] or [
            p for p in others if step in histories[p].stable
        ]
        if holders:
            commits[step] = histories[holders[0]].commits[step]
    return Lineage(last_stable, members, commits, histories)


def _note(history: History, entry: Entry) -> None:
    match entry.kind:
        case "commit":
            history.commits[entry["step"]] = entry
        case "stable":
            before = max(history.stable, default=0)
            for step in range(before + 1, entry["step"] + 1):
                if step in history.commits:
                    history.stable[step] = history.commits[step]["head"]
        case "state_loaded":
            history.loaded = max(history.loaded, entry["step"])
        case "final":
            history.final = (entry["step"], entry["state"])


def lost_updates(lineage: Lineage) -> int:
    """Steps that some peer called stable, and that the final lineage or one of its last members lacks."""
    lost: set[int] = set()
    for history in lineage.histories.values():
        for step, head in history.stable.items():
            if step not in lineage.commits or lineage.commits[step]["head"] != head:
                lost.add(step)
    for peer in lineage.members:
        history = lineage.histories[peer]
        for step, commit in lineage.commits.items():
            own = history.commits.get(step)
            if step > history.loaded and (own is None or own["head"] != commit["head"]):
                lost.add(step)
    return len(lost)


def samples_counted_twice(lineage: Lineage) -> int:
    """Sample positions that the final lineage uses more than once within an epoch."""
    ranges: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for commit in lineage.commits.values():
        for _, epoch, start, stop in commit["samples"]:
            ranges[epoch].append((start, stop))
    return sum(_overlap(spans) for spans in ranges.values())


def _overlap(spans: Sequence[tuple[int, int]]) -> int:
    """How many positions are covered again by a further span."""
    twice, reached = 0, 0
    for start, stop in sorted(spans):
        twice += max(0, min(stop, reached) - start)
        reached = max(reached, stop)
    return twice


def digests_equal(lineage: Lineage) -> bool:
    """Whether all last members hold the same head, result bytes and, after their scripts' end, training state."""
    histories = [lineage.histories[peer] for peer in lineage.members]
    commits = [history.commits.get(lineage.last_stable) for history in histories]
    results = {(c["head"], c["digest"]) if c is not None else None for c in commits}
    states = {history.final for history in histories}
    if len(results) != 1 or len(states) != 1 or None in results:
        return False
    (state,) = states
    return state is not None and state[1] != ""


def losses(lineage: Lineage) -> list[float]:
    """Mean loss of every stable step that had samples, in order."""
    return [commit["loss"] for _, commit in sorted(lineage.commits.items()) if commit["loss"] is not None]
