"""When catching up beside a running run does not work: what a learner measured, and whether to ask for a pause."""

from __future__ import annotations

from dataclasses import dataclass

from chaos.planning.catchup import CatchUp, JoinCosts, choose

LOSSES = 2
"""After so many snapshots whose results ran away, no estimate is believed any more."""


@dataclass
class JoinMeter:
    """What the attempts of one join have shown. Reset when the peer becomes a member."""

    losses: int = 0
    """How often results were needed that nobody kept any more."""
    state_bytes: int = 0
    fetch_s: float = 0.0
    """Seconds the last snapshot took to arrive, beside the results."""
    first: tuple[float, int] | None = None
    """Time and newest step of the run when this join began."""

    def saw(self, now: float, newest: int) -> None:
        if self.first is None:
            self.first = (now, newest)

    def decide(self, now: float, newest: int, result_bytes: int, queue_results: int) -> CatchUp | None:
        """Whether to replay once more or to have the members wait; None while nothing was lost or measured."""
        if self.losses == 0 or not self.fetch_s:
            return None
        rate = self.state_bytes / self.fetch_s
        obstacle = "" if self.losses < LOSSES else f"results ran away {self.losses} times before they were applied"
        return self._choose(now, newest, result_bytes, queue_results, rate, obstacle)

    def foresee(self, now: float, newest: int, result_bytes: int, queue_results: int, rate: float) -> CatchUp | None:
        """What is to be expected of a transfer that brings `rate` B/s of state now; None while too little is known."""
        return self._choose(now, newest, result_bytes, queue_results, rate, "") if rate > 0 else None

    def _choose(
        self, now: float, newest: int, result_bytes: int, queue_results: int, rate: float, obstacle: str
    ) -> CatchUp | None:
        if not self.state_bytes or self.first is None:
            return None
        began, step = self.first
        if newest <= step or now <= began or not result_bytes:
            return None
        step_s = (now - began) / (newest - step)
        link = rate + result_bytes / step_s
        return choose(
            JoinCosts(
                state_bytes=self.state_bytes,
                result_bytes=result_bytes,
                step_s=step_s,
                downlink=link,
                donors_bandwidth=link,
                queue_bytes=queue_results * result_bytes,
                replay_s=0.0,
                obstacle=obstacle,
            )
        )
