"""Steps: who contributed to an attempt, when it is final, when it is stable, and what is kept till then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from chaos.core.actions import (
    ContributionKnown,
    FetchRound,
    Finish,
    OpenRound,
    ReleaseResults,
    SendContribution,
    ServeResult,
    SetViews,
)
from chaos.core.context import Context, Role
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import RoundComplete
from chaos.core.lineage import CommittedStep, commit
from chaos.core.messages import Ack, FetchResult, FinishedStep, Report, StepContribution
from chaos.core.types import DataState, View
from chaos.core.worker_messages import Contribution

if TYPE_CHECKING:
    from chaos.core.node import Node

AHEAD = 4096
"""No honest peer is more steps ahead of anybody it talks to: a learner's queue is far shorter."""
STASH = 8
"""Contributions kept per peer for a view that is not installed yet; honest peers are two steps ahead at most."""


@dataclass
class Round:
    """One attempt at a step."""

    view: View
    contributions: dict[str, Contribution] = field(default_factory=dict)
    complete: RoundComplete | None = None
    fetched: FinishedStep | None = None
    """Set where the result was fetched from a member that had finished it."""


class Steps:
    """The steps of one node: open, collect, commit, acknowledge, release."""

    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.finished = 0
        self.start = 0
        """The step the run began or resumed at, for the founder's gate."""
        self.opened = 0
        self.head = b""
        self.data = DataState()
        self.slots: dict[int, int] = {}
        self.history: dict[int, CommittedStep] = {}
        self.stable = 0
        self._acks: dict[str, int] = {}
        self._gate: int | None = None
        self._frozen = False
        self._rounds: dict[int, Round] = {}
        self._own: dict[int, Contribution] = {}
        self._stash: dict[str, list[StepContribution]] = {}
        self._released = 0

    # --- agreement's hold on the steps -----------------------------------------------------------------

    def report(self) -> Report:
        return Report(self.finished, self.opened)

    def hold(self, freeze: bool) -> None:
        """A promise was given: open nothing beyond what it reports; with `freeze`, finish nothing either."""
        self._gate = self.opened
        self._frozen = self._frozen or freeze

    @property
    def running(self) -> bool:
        return self.opened > self.finished

    @property
    def highest_seen(self) -> int:
        """The highest step that somebody contributes to."""
        return max(self._rounds, default=self.finished)

    # --- views -----------------------------------------------------------------------------------------

    def adopt(self, step: int, head: bytes, data: DataState) -> None:
        """Stand after `step` (founding, resuming, or a learner that knows its snapshot)."""
        self.finished = self.opened = self.stable = self._released = step
        self.head, self.data = head, data
        self.history.clear()
        self.slots.clear()
        self._rounds = {s: r for s, r in self._rounds.items() if s > step}
        self._own.clear()
        self._frozen = False
        self._acks[self._ctx.id] = step
        self._ctx.emit(SetViews(tuple(self._ctx.views), step))
        self.advance()

    def installed(self, view: View) -> None:
        """A view was installed (it is `ctx.view`): void what it voids, fetch what it says was finished."""
        self._gate, self._frozen = None, False
        if view.abort:
            self._rounds = {s: r for s, r in self._rounds.items() if s < view.first_step}
            self.opened = self.finished
        for info in view.members:
            self._acks[info.id] = max(self._acks.get(info.id, 0), view.first_step - 1 if not view.abort else 0)
        known = {p.id for p in view.everybody()} | {self._ctx.id}
        self._acks = {peer: step for peer, step in self._acks.items() if peer in known}
        self._prune_views()
        self._ctx.emit(SetViews(tuple(self._ctx.views), self.finished))
        if view.abort and self.head and self._ctx.role in (Role.MEMBER, Role.LEARNER):
            self._fetch_missing(view)
        self._unstash()
        self.advance()

    def _prune_views(self) -> None:
        """Keep the installed view and those that still govern a step nobody here has finished."""
        views = self._ctx.views
        while len(views) > 1 and views[1].first_step <= min(self.finished, self.stable) + 1:
            views.pop(0)

    def _fetch_missing(self, view: View) -> None:
        sources = [peer for peer in view.sources if peer != self._ctx.id]
        for step in range(self.finished + 1, view.first_step):
            present = self._rounds.get(step)
            if present is not None and present.complete is not None and self._all_contributed(present):
                continue
            if not sources:
                break
            governing = self._ctx.view_for(step)
            if governing is None:
                break
            self._rounds[step] = Round(governing)
            self._ctx.emit(FetchRound(view.id, step))
            self._ctx.send(sources[step % len(sources)], FetchResult(step))

    def refetch(self, lost: str) -> None:
        """A source went away; the next view, or this one's other sources, will serve what it owed."""
        view = self._ctx.view
        if view.abort and lost in view.sources and self.finished < view.first_step - 1:
            others = tuple(p for p in view.sources if p != lost)
            self._fetch_missing(msgspec.structs.replace(view, sources=others))

    def reset(self) -> None:
        """Forget where the run stands: this peer was left behind and will take a snapshot."""
        self.head, self.data = b"", DataState()
        self.finished = self.opened = self.stable = self._released = 0
        self._gate, self._frozen = None, False
        for kept in (self.history, self.slots, self._rounds, self._own, self._acks, self._stash):
            kept.clear()

    # --- contributions ---------------------------------------------------------------------------------

    def contribute(self, step: int, contribution: Contribution) -> None:
        """The own worker's part in `step`, or an empty one in its place."""
        if step != self.finished + 1 or step in self._own:
            return
        self._own[step] = contribution
        if self.opened >= step:
            self._announce(step)

    def contributed(self, step: int) -> bool:
        return step in self._own

    def _announce(self, step: int) -> None:
        view, own = self._ctx.view_for(step), self._own[step]
        if view is None or view.member(self._ctx.id) is None:
            return
        message = StepContribution(view.id, step, self.head, own)
        self._ctx.send_all((p.id for p in view.everybody()), message)
        self._ctx.emit(SendContribution(view.id, step, own.weight, own.empty))
        self._note(self._ctx.id, message)

    def on_contribution(self, src: str, message: StepContribution) -> None:
        if len(self._rounds) > AHEAD or (self.head and message.step > self.finished + AHEAD):
            raise RemoteProtocolError(f"a contribution to step {message.step} while step {self.finished} is finished")
        if not self._ctx.views or message.view_id > self._ctx.view.id:
            stash = self._stash.setdefault(src, [])
            if len(stash) < STASH:
                stash.append(message)
            return
        self._note(src, message)

    def _unstash(self) -> None:
        stashed, self._stash = self._stash, {}
        for src, messages in stashed.items():
            for message in messages:
                self.on_contribution(src, message)

    def _note(self, src: str, message: StepContribution) -> None:
        view = self._ctx.view_for(message.step)
        if view is None or view.id != message.view_id or message.step <= self.finished or view.member(src) is None:
            return
        if message.step == self.finished + 1 and message.head != self.head and self.head:
            self._node.on_diverged(src, message.step, message.head)
            return
        current = self._rounds.setdefault(message.step, Round(view))
        if src in current.contributions:
            return
        current.contributions[src] = message.contribution
        part = message.contribution
        self._ctx.emit(ContributionKnown(view.id, message.step, src, part.weight, part.empty))
        self.advance()

    def on_round_complete(self, event: RoundComplete) -> None:
        current = self._rounds.get(event.step)
        if current is None and (view := self._ctx.view_for(event.step)) is not None:
            current = self._rounds.setdefault(event.step, Round(view))
        if current is None or event.step <= self.finished:
            return
        if current.view.id != event.view_id and event.view_id != self._ctx.view.id:
            return
        current.complete = event
        self.advance()

    def on_finished_step(self, src: str, message: FinishedStep) -> None:
        """Answer to `FetchResult`: the contributions that made the result."""
        current = self._rounds.get(message.step)
        if current is None or current.view.id != message.view_id:
            return
        current.contributions = dict(message.contributions)
        current.fetched = message
        self._ctx.trace("fetched", step=message.step, source=self._ctx.name(src))
        self.advance()

    def on_fetch(self, src: str, message: FetchResult) -> None:
        done = self.history.get(message.step)
        if done is None:
            self._ctx.trace("fetch_refused", step=message.step, peer=self._ctx.name(src), reason="not kept any more")
            return
        reply = FinishedStep(done.view_id, done.step, done.contributions, done.digest, done.nonfinite)
        self._ctx.send(src, reply)
        if done.weight > 0 or done.digest:
            self._ctx.emit(ServeResult(src, self._ctx.view.id, message.step))

    # --- commit ----------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Commit what can be committed, then open the next round if nothing forbids it."""
        while self._commit_next():
            self._node.on_committed(self.history[self.finished])
        self._open_next()

    def _all_contributed(self, current: Round) -> bool:
        return all(m.id in current.contributions for m in current.view.members)

    def _commit_next(self) -> bool:
        step = self.finished + 1
        current = self._rounds.get(step)
        if current is None or self._frozen or not self.head or not self._all_contributed(current):
            return False
        contributions = {m.id: current.contributions[m.id] for m in current.view.members}
        nothing = all(c.empty for c in contributions.values())
        if current.complete is None and not nothing:
            return False
        complete = current.complete or RoundComplete(current.view.id, step, 0, b"", ())
        nonfinite = current.fetched.nonfinite if current.fetched else complete.nonfinite
        if current.fetched and not nothing and current.fetched.digest != complete.digest:
            self._node.on_diverged(current.view.members[0].id, step, current.fetched.digest)
            return False
        done = commit(self.head, self.data, current.view, step, contributions, complete.digest, nonfinite)
        del self._rounds[step]
        self._own.pop(step, None)
        self.finished, self.head, self.data = step, done.head, done.data
        self.opened = max(self.opened, step)
        self.history[step], self.slots[step] = done, complete.slot
        self._ctx.emit(Finish(step))
        return True

    def acknowledge(self) -> None:
        """Tell everybody concerned that the last finished step is held here."""
        view = self._ctx.view_for(self.finished) or self._ctx.view
        peers = [p.id for p in view.everybody()] + [p.id for p in self._ctx.view.everybody()]
        self._ctx.send_all(peers, Ack(self.finished, self.head))
        self.on_ack(self._ctx.id, Ack(self.finished, self.head))

    def on_ack(self, src: str, message: Ack) -> None:
        done = self.history.get(message.step)
        if done is not None and done.head != message.head:
            self._node.on_diverged(src, message.step, message.head)
            return
        self._acks[src] = max(self._acks.get(src, 0), message.step)
        self._update_stable()

    def acked(self, peer: str) -> int:
        return self._acks.get(peer, 0)

    def _update_stable(self) -> None:
        if not self._ctx.views:
            return
        members = self._ctx.view.member_ids()
        held = min((self._acks.get(peer, 0) for peer in members), default=self.finished)
        held = min(held, self.finished)
        if held > self.stable:
            self.stable = held
            self._node.on_stable(held)
        self.release()

    def release(self) -> None:
        """Forget results that no member, learner or own worker can ask for any more."""
        keep = min(self.stable, self.finished, self._node.worker.applied_floor(self.finished))
        for info in self._ctx.view.learners if self._ctx.views else ():
            behind = self._node.donor.floor(info.id)
            if behind is not None and info.id != self._ctx.id:
                behind = max(behind, self._acks.get(info.id, 0))
                if behind > self.finished - self._ctx.config.retain_results:
                    keep = min(keep, behind)
        if keep > self._released:
            self._released = keep
            for step in [s for s in self.history if s < keep]:
                del self.history[step]
                self.slots.pop(step, None)
            self._prune_views()
            self._ctx.emit(ReleaseResults(keep - 1))

    def _open_next(self) -> None:
        step = self.finished + 1
        if self.opened >= step or (self._gate is not None and step > self._gate) or not self.head:
            return
        view = self._ctx.view_for(step)
        if view is None or view.member(self._ctx.id) is None or self._ctx.role == Role.JOINER:
            return
        if self._ctx.view.abort and step < self._ctx.view.first_step:
            return
        if self.finished == self.start and len(view.members) < self._ctx.config.min_peers:
            return
        self.opened = step
        self._ctx.emit(OpenRound(view.id, step))
        self._node.worker.fill_in(step)
        if step in self._own:
            self._announce(step)
