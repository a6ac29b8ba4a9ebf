"""Traces of made-up runs, with as few words as possible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from chaos.observe.trace_file import Entry


def entry(peer: str, t: float, kind: str, /, **fields: Any) -> Entry:
    return Entry(peer, t, kind, fields)


def view(peer: str, t: float, number: int, members: Iterable[str], reason: str = "") -> Entry:
    return entry(peer, t, "view", view=number, members=list(members), role="member", reason=reason)


def commit(peer: str, t: float, step: int, view: int = 1, **fields: Any) -> Entry:
    values: dict[str, Any] = {
        "head": f"h{step}",
        "digest": f"d{step}",
        "loss": 5.0 - step / 10,
        "samples": [],
        "contributors": [],
    }
    return entry(peer, t, "commit", step=step, view=view, **(values | fields))


def boundary(peer: str, t: float, applied: int) -> Entry:
    return entry(peer, t, "boundary", applied=applied, compute_s=0.1)


def stable(peer: str, t: float, step: int) -> Entry:
    return entry(peer, t, "stable", step=step)


def final(peer: str, t: float, step: int, state: str = "s") -> Entry:
    return entry(peer, t, "final", step=step, state=state)


def run_of(peers: Sequence[str], steps: int, **fields: Any) -> list[Entry]:
    """Everybody commits every step, one a second, calls it stable half a second later, and ends in one state."""
    made = [view(peer, 0, 1, peers) for peer in peers]
    for step in range(1, steps + 1):
        made += [commit(peer, step, step, **fields) for peer in peers]
        made += [stable(peer, step + 0.5, step) for peer in peers]
    return made + [final(peer, steps + 1, steps) for peer in peers]
