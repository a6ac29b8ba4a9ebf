"""Trace lines in words, for people who do not know the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Line = Mapping[str, Any]

_HIDDEN = frozenset((
    *("t", "wall", "stamp", "n", "peer", "in_view", "at_step", "kind"),
    *("about", "reason", "view", "step", "ids", "parties"),
))  # fmt: skip

CAUSES = {
    "scale-out": "joins as a member",
    "scale-in": "leaves",
    "failure": "is lost",
    "connect-link": "linked again",
    "disconnect-link": "cut",
    "admit": "is let in as learner",
    "learner-lost": "is lost while it learned",
    "sync-plan": "the sync plan follows the links",
}


MODES = {
    "replay": "a snapshot and all results since",
    "late": "a late snapshot, for which the members wait",
    "ranges": "ranges",
}
START = {
    "own state": "what its worker holds",
    "own snapshot": "the snapshot that it holds itself",
    "snapshot": "a snapshot",
}


def sentence(line: Line) -> str:
    """What one line says; of a kind that has no words of its own, its fields."""
    make = _WORDS.get(line["kind"])
    try:
        return make(line) if make else _fields(line)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return _fields(line)  # it came from another peer, whose lines may lack what ours have


def _fields(line: Line) -> str:
    parts = [str(line["about"])] if "about" in line else []
    parts += [f"{key} {_short(value)}" for key, value in line.items() if key not in _HIDDEN]
    if line.get("reason"):
        parts.append(str(line["reason"]))
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _view(line: Line) -> str:
    count = len(line["members"])
    return f"view {line['view']}: {line['reason']}; {count} member{'s' if count != 1 else ''}"


def _handled(line: Line) -> str:
    what = "; ".join(f"{about} {CAUSES.get(kind, kind)}".strip() for kind, about in line["causes"])
    parts = f"{line['computing_ms']:.2f} computing, {line['acting_ms']:.2f} sending, {line['waiting_ms']:.1f} waiting"
    who = ", proposed here" if line["proposer"] else ""
    return f"view {line['view']} handled in {line['handling_ms']:.1f} ms ({parts}){who}: {what}"


def _commit(line: Line) -> str:
    loss = f"loss {line['loss']:.4f}, " if line["loss"] is not None else ""
    late = f", {len(line['late'])} late" if line["late"] else ""
    skipped = f", skipped: {line['skip']}" if line["skip"] else ""
    return f"step {line['step']}: {loss}{len(line['contributors'])} contributed{late}{skipped}"


def _fetched(line: Line) -> str:
    count = len(line["sources"])
    source = f"from {count} donor{'s' * (count != 1)}" if count else "all of which was here"
    return f"has the state of step {line['step']}: {line['bytes'] / 1e6:.1f} MB {source}"


def _gone(line: Line) -> str:
    return f"{line['about']} is proven gone, by its last words of view {line['words_view']}"


def _failed(line: Line) -> str:
    return "the script raised: " + str(line["traceback"]).rstrip().rsplit("\n", 1)[-1]


_WORDS: dict[str, Callable[[Line], str]] = {
    "view": _view,
    "handled": _handled,
    "commit": _commit,
    "fetched_state": _fetched,
    "gone": _gone,
    "worker_failed": _failed,
    "propose": lambda line: f"proposes view {line['view']}" + (", steps are held" if line["freeze"] else ""),
    "decide": lambda line: f"view {line['view']} is decided after {line['handling_ms']:.1f} ms",
    "view_learned": lambda line: f"learns of view {line['view']}: {line['reason']}",
    "link_up": lambda line: f"has a link to {line['about']}",
    "link_down": lambda line: f"lost the link to {line['about']}: {line['reason']}",
    "doubt": lambda line: f"does not hear {line['about']}: {line['reason']}",
    "suspect": lambda line: f"suspects {line['about']}: {line['reason']}",
    "trust": lambda line: f"hears {line['about']} again",
    "goodbye": lambda line: f"{line['about']} says goodbye: {line['reason']}",
    "admit": lambda line: f"{line['about']} may join",
    "join_refused": lambda line: f"{line['about']} may not join: {line['reason']}",
    "worker_registered": lambda _: "its worker is there",
    "worker_died": lambda line: f"its worker died: {line['reason']}",
    "leave": lambda line: f"wants to leave ({line['reason']})",
    "stop": lambda line: f"ends with code {line['code']}: {line['reason']}",
    "catch_up_mode": lambda line: f"catches up by {MODES[line['mode']]}: {line['reason']}",
    "results_dropped": lambda line: f"has no room for results from step {line['step']} on: {line['reason']}",
    "results_on_disk": lambda line: f"{line['bytes'] / 1e6:.0f} of {line['most'] / 1e6:.0f} MB of results wait on disk",
    "learner": lambda line: f"catching up: {line['phase']}",
    "catch_up_from": lambda line: f"starts from {START[line['source']]}: {line['reason']}",
    "catch_up": lambda line: f"catches up: {line['reason']}",
    "digests_equal": lambda line: f"its state of step {line['step']} equals that of {line['about']}",
    "digests_differ": lambda line: f"its state of step {line['step']} differs from a member's",
    "paused": lambda line: f"pauses: {line['reason']}",
    "unpaused": lambda line: f"goes on after {line['seconds']:.1f} s",
    "checkpoint": lambda line: f"wrote the checkpoint of step {line['step']} in {line['seconds']:.2f} s",
    "left_out": lambda line: f"is left out of step {line['step']}: {line['reason']}",
}
