"""How long the others wait for a worker that is slower than they are: a pure function of measured step times."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FLOOR_S = 0.5
"""The shortest patience. A guess: a busy host delays a worker by a tenth of a second (see `core.detector`), and a
contribution that was computed in vain costs more than half a second of waiting."""


@dataclass(frozen=True)
class Deadline:
    """From `due` on (seconds, the caller's clock) the worker counts as late; `reason` says how that came about."""

    due: float
    reason: str


def usual(times: Sequence[float]) -> float | None:
    """The usual computing time of a step in seconds: the lower median, so that of two peers the faster one counts.

    None if nothing was measured.
    """
    return statistics.median_low(times) if times else None


def patience(usual_s: float, limit_s: float) -> float:
    """Seconds for which a worker may keep the others waiting: once more the usual time, but no more than the limit."""
    return min(limit_s, max(FLOOR_S, usual_s))


def deadline(
    began: float, known: Sequence[float], members: int, past: Sequence[float], present: Sequence[float], limit_s: float
) -> Deadline | None:
    """When a worker that computes since `began` is late for its step; None while nobody waits for it.

    Nobody is late who has computed for less than the usual time, whatever the others did. Beyond that the clock runs
    from the moment at which half of the members are in. Where fewer are, and in a step before which nothing was
    measured, it is the limit that counts, from the first one on.

    Args:
        began: when the worker was told to compute.
        known: when the other members' contributions to this step became known.
        members: of the view, this one included.
        past: computing times in the last finished steps, in seconds, of all members.
        present: computing times of those who are in.
        limit_s: of the run, above 0.
    """
    usual_s = usual(past) if past else usual(present)
    if not known or usual_s is None:
        return None
    arrived, half = sorted(known), (members + 1) // 2
    full = began + usual_s
    last = Deadline(max(full, arrived[0]) + limit_s, f"somebody waited for the limit of {limit_s:g} s")
    if len(arrived) < half or not past:
        return last
    allowed = patience(usual_s, limit_s)
    reason = f"{len(arrived)} of {members} are in, a step takes {usual_s:.3g} s, and {allowed:.3g} s more are over"
    soon = Deadline(max(full, arrived[half - 1]) + allowed, reason)
    return min(soon, last, key=lambda d: d.due)
