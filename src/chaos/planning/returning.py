"""Where a peer starts from that was cut off: the state that its worker still holds, or a snapshot.

Either way it has to apply every step that it missed, and gets the results of the steps to come. What differs is what
has to travel before: the results of the steps that it missed, or the state (docs/planning.md, section 6).
"""

from __future__ import annotations

from dataclasses import dataclass

from chaos.core.errors import ChaosError


@dataclass(frozen=True, slots=True)
class Start:
    """The decision and its reason in one sentence."""

    from_own: bool
    reason: str


def worth_keeping(state_bytes: int, result_bytes: int, room: int) -> int:
    """How many results are kept for one that was cut off: of more than that, a snapshot would be fewer bytes.

    Args:
        state_bytes: of a snapshot; 0 if not known: then nothing is kept.
        result_bytes: of one result.
        room: results that may be kept in memory at all.
    """
    if state_bytes < 0 or result_bytes <= 0 or room < 0:
        raise ChaosError(f"cannot tell what is worth keeping of {result_bytes} bytes a result, {state_bytes} the state")
    return min(state_bytes // result_bytes, room)


def choose_start(state_bytes: int, result_bytes: int, missed: int) -> Start:
    """The own state if the results that it lacks are no more bytes than a snapshot, or if it lacks none.

    Args:
        state_bytes: of a snapshot; 0 if not known.
        result_bytes: of one result.
        missed: steps that the run has finished since the one at which the own state stands.
    """
    if state_bytes < 0 or result_bytes <= 0 or missed < 0:
        raise ChaosError(f"cannot choose between {missed} results of {result_bytes} bytes and a state of {state_bytes}")
    if missed == 0:
        return Start(True, "its worker's state is of the last finished step")
    results = f"its worker's state lacks {missed} result{'s' * (missed != 1)} of {_mb(result_bytes)}"
    if not state_bytes:
        return Start(False, f"{results}, and how large a snapshot would be is not known")
    if missed * result_bytes <= state_bytes:
        return Start(True, f"{results}; a snapshot would be {_mb(state_bytes)}")
    return Start(False, f"{results}, and a snapshot is only {_mb(state_bytes)}")


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.3g} MB"
