"""When catching up beside a running run does not work: what a learner measured, and whether to ask for a pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos.core.actions import Tell
from chaos.core.context import Context, Role
from chaos.core.fetch import Fetch
from chaos.core.messages import Pause
from chaos.planning.catchup import CatchUp, JoinCosts, choose

if TYPE_CHECKING:
    from chaos.core.node import Node

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


class Course:
    """How one learner catches up with the run: beside it, or while the members wait."""

    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.reset()

    def reset(self) -> None:
        """This peer is no learner any more."""
        self.meter = JoinMeter()
        self.late = False
        """The members were asked to wait for a late snapshot."""
        self.paused_until = 0.0
        self.text = ""
        """How this peer catches up, in words of the cost model; '' while too little is measured."""
        self._dropping = False
        """It was said that there is no room for results."""

    def lost_track(self, reason: str, by_snapshot: bool) -> None:
        """Results are gone that are needed: try again, or have the members wait.

        Args:
            by_snapshot: it was a snapshot whose results ran away, not the own worker's state.
        """
        self.meter.losses += by_snapshot
        result_bytes, limit = self._result_bytes(), self._ctx.kept_for_learners
        decision = self.meter.decide(self._ctx.now, self._node.learner.newest(), result_bytes, limit)
        self.late = False
        self._ctx.emit(Tell(f"this peer can't keep up: {reason}" + (f"; {decision.reason}" if decision else "")))
        if decision is not None and decision.mode == "late":
            self.ask_for_pause(min(2 * decision.pause_s + 2.0, self._ctx.config.pause_limit_s), decision.reason)
        elif decision is not None:
            self._ctx.trace("catch_up_mode", mode=decision.mode, reason=decision.reason)

    def on_dropped(self, step: int, reason: str) -> None:
        """No room for results: they are fetched once those before them are applied, if they are still kept then."""
        if self._ctx.role == Role.LEARNER and not self._dropping:
            self._dropping = True
            self._ctx.trace("results_dropped", step=step, reason=reason)
            self._ctx.emit(Tell(f"this peer falls behind: {reason}; later results are fetched once these are applied"))

    def foresee(self, fetch: Fetch) -> None:
        """Say what is to be expected of replaying, which is tried first; only if it fails the members are to wait."""
        self.meter.state_bytes = fetch.offer.manifest.nbytes
        newest, queue = self._node.learner.newest(), self._ctx.kept_for_learners
        found = self.meter.foresee(self._ctx.now, newest, self._result_bytes(), queue, fetch.rate())
        if found is not None:
            self.text = found.reason if found.mode == "replay" else f"tried first, but it may fail: {found.reason}"
            self._ctx.trace("catch_up_mode", mode="replay", reason=self.text)

    def ask_for_pause(self, seconds: float, reason: str) -> None:
        """Have the members wait for a late snapshot."""
        self.late, self.paused_until, self.text = True, self._ctx.now + seconds, reason
        self._ctx.trace("catch_up_mode", mode="late", reason=reason)
        self._ctx.send_all(self._ctx.view.member_ids(), Pause(seconds))

    def _result_bytes(self) -> int:
        worker = self._node.worker.worker
        return worker.layout.nbytes if worker is not None else 0
