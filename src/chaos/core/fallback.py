"""When catching up beside a running run does not work: what a learner measured, and whether to ask for a pause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos.core.actions import Tell
from chaos.core.context import Context, Role
from chaos.core.fetch import Fetch
from chaos.core.messages import Pause
from chaos.planning.catchup import Backlog, CatchUp, JoinCosts, choose, wait_for_rest

if TYPE_CHECKING:
    from chaos.core.node import Node

FORESEE_S = 1.0
"""So long after a transfer began its rate is known well enough to say how it will go."""
LOOK_S = 0.1
"""So often results that wait are counted."""
LOSSES = 2
"""After so many snapshots whose results ran away, no estimate is believed any more."""


@dataclass
class JoinMeter:
    """What the attempts of one join have shown. Reset when the peer becomes a member."""

    losses: int = 0
    """How often results were needed that nobody kept any more."""
    state_bytes: int = 0
    link: float = 0.0
    """B/s that came of state and results together while the last snapshot did; 0: none has come."""
    first: tuple[float, int] | None = None
    """Time and newest step of the run when this join began."""

    def saw(self, now: float, newest: int) -> None:
        if self.first is None:
            self.first = (now, newest)

    def step_s(self, now: float, newest: int) -> float:
        """Seconds from one step of the run to the next since this join began; 0 while that is not known."""
        if self.first is None or newest <= self.first[1]:
            return 0.0
        return (now - self.first[0]) / (newest - self.first[1])

    def decide(self, now: float, newest: int, result_bytes: int, queue_results: int) -> CatchUp | None:
        """Whether to replay once more or to have the members wait; None while nothing was lost or measured."""
        if self.losses == 0 or not self.link:
            return None
        obstacle = "" if self.losses < LOSSES else f"results ran away {self.losses} times before they were applied"
        return self._choose(now, newest, result_bytes, queue_results, self.link, obstacle)

    def foresee(self, now: float, newest: int, result_bytes: int, queue_results: int, link: float) -> CatchUp | None:
        """What is to be expected while `link` B/s of state and results come; None while too little is known."""
        return self._choose(now, newest, result_bytes, queue_results, link, "") if link > 0 else None

    def _choose(
        self, now: float, newest: int, result_bytes: int, queue_results: int, link: float, obstacle: str
    ) -> CatchUp | None:
        step_s = self.step_s(now, newest)
        if not self.state_bytes or not step_s or not result_bytes:
            return None
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
        self._paused_until = 0.0
        self.text = ""
        """How this peer catches up, in words of the cost model; '' while too little is measured."""
        self._looked_at = 0.0
        self._dropping = False
        """It was said that there is no room for results."""

    def lost_track(self, reason: str, by_snapshot: bool) -> None:
        """Results are gone that are needed: try again, or have the members wait.

        Args:
            by_snapshot: it was a snapshot whose results ran away, not the own worker's state.
        """
        self.meter.losses += by_snapshot
        now, newest, room = self._ctx.now, self._node.learner.newest(), self._room()
        decision = self.meter.decide(now, newest, self._result_bytes(), room)
        self._paused_until = 0.0
        limit_s, free_s = self._ctx.config.pause_limit_s, room * self.meter.step_s(now, newest)
        hopeless = decision is not None and decision.mode == "late" and decision.pause_s > limit_s + free_s
        words = f"; {decision.reason}" if decision is not None else ""
        words += f". But they wait for {limit_s:g} s at most, so they are not asked to" if hopeless else ""
        self._ctx.emit(Tell(f"this peer can't keep up: {reason}{words}"))
        if decision is not None and decision.mode == "late" and not hopeless:
            self.ask_for_pause(decision.pause_s, decision.reason)
        elif decision is not None:
            self._ctx.trace("catch_up_mode", mode="replay", reason=words.removeprefix("; "))

    def on_dropped(self, step: int, reason: str) -> None:
        """No room for results: they are fetched once those before them are applied, if they are still kept then."""
        if self._ctx.role == Role.LEARNER and not self._dropping:
            self._dropping = True
            self._ctx.trace("results_dropped", step=step, reason=reason)
            self._ctx.emit(Tell(f"this peer falls behind: {reason}; later results are fetched once these are applied"))

    @property
    def late(self) -> bool:
        """The members were asked to wait, and do so still."""
        return self._ctx.now < self._paused_until

    def look(self, fetch: Fetch, since: float) -> None:
        """While a snapshot comes, or its results are caught up with: say how it goes, and have the members wait if it
        would fail.

        Args:
            since: when this began.
        """
        now = self._ctx.now
        if self.late or now - since < FORESEE_S or now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        if not self.text and not fetch.complete:
            self._foresee(fetch, since)
        steps, newest = self._node.steps, self._node.learner.newest()
        link = self.meter.link if fetch.complete else fetch.rate()
        backlog = Backlog(
            left_bytes=fetch.left_bytes,
            waiting=max(0, newest - self._node.learner.base_step),
            room=self._room(),
            lag=max(0, newest - steps.finished),
            kept=self._ctx.kept_for_learners,
            result_bytes=self._result_bytes(),
            link=link,
        )
        wait = wait_for_rest(backlog, self._ctx.config.pause_limit_s)
        if wait is not None:
            self.ask_for_pause(wait.pause_s, wait.reason)

    def _room(self) -> int:
        """Results that may wait: what there is room for here, and of later ones those that the members keep."""
        return self._ctx.result_slots + self._ctx.disk_slots + self._ctx.kept_for_learners

    def measure(self, fetch: Fetch, since: float) -> None:
        """A snapshot that began to come at `since` is here: how fast, beside the results that came meanwhile."""
        self.meter.state_bytes = fetch.offer.manifest.nbytes
        if fetch.sources():
            seconds = max(self._ctx.now - since, 1e-6)
            self.meter.link = self.meter.state_bytes / seconds + self._result_rate(fetch, since)

    def _result_rate(self, fetch: Fetch, since: float) -> float:
        """B/s of results since the snapshot. Where the link has no room for both, they wait behind its shards."""
        came = max(0, self._node.steps.finished - fetch.offer.step)
        return came * self._result_bytes() / max(self._ctx.now - since, 1e-6)

    def _foresee(self, fetch: Fetch, since: float) -> None:
        """Say what is to be expected of replaying, by the rates at which snapshot and results come."""
        self.meter.state_bytes = fetch.offer.manifest.nbytes
        newest, result_bytes = self._node.learner.newest(), self._result_bytes()
        rate = fetch.rate()
        link = rate + self._result_rate(fetch, since) if rate else 0.0
        found = self.meter.foresee(self._ctx.now, newest, result_bytes, self._room(), link)
        if found is not None:
            self.text = found.reason if found.mode == "replay" else f"tried first, but it may fail: {found.reason}"
            self._ctx.trace("catch_up_mode", mode="replay", reason=self.text)

    def ask_for_pause(self, expected_s: float, reason: str) -> None:
        """Have the members wait for a snapshot, or for its rest, that is expected to take so long."""
        seconds = min(2 * expected_s + 2.0, self._ctx.config.pause_limit_s)
        self._paused_until, self.text = self._ctx.now + seconds, reason
        self._ctx.trace("catch_up_mode", mode="late", reason=reason)
        self._ctx.send_all(self._ctx.view.member_ids(), Pause(seconds))

    def _result_bytes(self) -> int:
        worker = self._node.worker.worker
        return worker.layout.nbytes if worker is not None else 0
