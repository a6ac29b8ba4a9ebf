"""How a joiner catches up with a run that goes on: replay what it missed, or let the others wait.

'replay': the donors take a snapshot now; while the joiner pulls it, the results of the steps since queue up
at the joiner, which then applies them faster than new ones come. Nobody waits for it.
'late': the joiner gets ready first; then the members take a snapshot and pause until it has arrived.

A pause costs every member, a longer way in only the joiner. So replay is chosen wherever it can work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chaos.core.errors import ChaosError


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCosts:
    """What is measured or known about a join. ChaosError if a number is not finite or not above 0."""

    state_bytes: int
    result_bytes: int
    """Bytes of one step's result, as they travel."""
    step_s: float
    """Seconds from one step of the run to the next."""
    downlink: float
    """The joiner's usable bandwidth in B/s."""
    donors_bandwidth: float
    """Sum of what the donors can send in B/s, on top of what training uses."""
    queue_bytes: int
    """Limit of the joiner's queue of results."""
    replay_s: float
    """Seconds the joiner takes to apply one result."""
    obstacle: str = ""
    """Why results can't be replayed whatever the figures say; empty: they can."""

    def __post_init__(self) -> None:
        for field in ("state_bytes", "result_bytes", "step_s", "downlink", "donors_bandwidth", "queue_bytes"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise ChaosError(f"cannot plan a join with {field} = {value}: give a number above 0")
        if not 0 <= self.replay_s < math.inf:
            raise ChaosError(f"cannot plan a join with replay_s = {self.replay_s}: give 0 or more seconds")


@dataclass(frozen=True, slots=True)
class CatchUp:
    """The decision, its reason in one sentence, and what to expect."""

    mode: Literal["replay", "late"]
    reason: str
    delay_s: float
    """Seconds from the snapshot until the joiner has caught up."""
    pause_s: float
    """Seconds for which the members wait."""


def choose(costs: JoinCosts) -> CatchUp:
    """'replay' if the optimizer allows it, the link carries it, the queue holds it and it gains on the run.

    Results take their part of the link from the snapshot. With t = state / (link - result / step) seconds
    for the snapshot, t / step results wait at its end; n waiting results are gone after
    n * replay / (1 - replay / step) seconds, as new ones come in the meantime.
    """
    link = min(costs.downlink, costs.donors_bandwidth)
    spare = link - costs.result_bytes / costs.step_s
    if costs.obstacle:
        return _late(costs, costs.obstacle)
    if spare <= 0:
        needed = costs.result_bytes / costs.step_s
        return _late(costs, f"results alone need {needed:.3g} B/s of a link of {link:.3g} B/s")

    transfer_s = costs.state_bytes / spare
    missed = math.ceil(transfer_s / costs.step_s)
    if missed * costs.result_bytes > costs.queue_bytes:
        return _late(
            costs,
            f"{missed} results of {costs.result_bytes} bytes come while the snapshot does, "
            f"and the queue holds {costs.queue_bytes} bytes",
        )
    if costs.replay_s >= costs.step_s:
        return _late(
            costs,
            f"applying a result takes {costs.replay_s:.3g} s and the run makes one in {costs.step_s:.3g} s",
        )
    drain_s = missed * costs.replay_s / (1 - costs.replay_s / costs.step_s)
    return CatchUp(
        mode="replay",
        reason=f"the snapshot takes {transfer_s:.3g} s beside the results, and the {missed} results "
        f"that come meanwhile take {drain_s:.3g} s to replay",
        delay_s=transfer_s + drain_s,
        pause_s=0.0,
    )


def _late(costs: JoinCosts, why: str) -> CatchUp:
    """No results travel during the pause, so the snapshot has the link to itself."""
    pause_s = costs.state_bytes / min(costs.downlink, costs.donors_bandwidth)
    return CatchUp(
        mode="late",
        reason=f"{why}; so the members pause for about {pause_s:.3g} s while the snapshot travels",
        delay_s=pause_s,
        pause_s=pause_s,
    )
