"""Steps: who contributed to an attempt, when it is final, when it is stable, and what is kept till then."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from chaos.core.actions import (
    ContributionKnown,
    Finish,
    MoveResults,
    OpenRound,
    ReleaseResults,
    SendContribution,
    SetViews,
)
from chaos.core.context import Context, Role
from chaos.core.data import with_first_leases
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import RoundComplete
from chaos.core.lineage import CommittedStep, commit
from chaos.core.messages import Ack, Report, StepContribution
from chaos.core.rounds import Round
from chaos.core.types import DataState, View
from chaos.core.watch import SMALL
from chaos.core.worker_messages import Contribution

if TYPE_CHECKING:
    from chaos.core.node import Node

AHEAD = 4096
"""No honest peer is more steps ahead of anybody it talks to: a learner's queue is far shorter."""
NEAR, LARGE = 64, 16 * 2**10
"""Of steps further ahead than the first, only parts below so many bytes are kept: a step that lacks one is fetched."""
RANGE_BYTES = 200
"""What a range of samples takes in memory, about."""
PACE = 1024
"""So many of the last steps' times are kept: half a second of steps of 0.5 ms."""
STASH = 8
"""Contributions kept per peer for a view that is not installed yet; honest peers are two steps ahead at most."""


class Steps:
    """The steps of one node: open, collect, commit, acknowledge, release."""

    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.finished = 0
        self.opened = 0
        self.head = b""
        self.data = DataState()
        self.history: dict[int, CommittedStep] = {}
        self.stable = 0
        self._acks: dict[str, int] = {}
        self._gate: int | None = None
        self._frozen = False
        self.rounds: dict[int, Round] = {}
        self._own: dict[int, Contribution] = {}
        self._stash: dict[str, list[StepContribution]] = {}
        self._released = 0
        self._moved = 0
        """Results before this step lie on disk, as far as they are kept."""
        self._pauses: dict[str, float] = {}
        """Learners for whose snapshot no further round is opened, and until when."""
        self._early: dict[str, dict[int, bytes]] = {}
        """Acknowledgements of steps that are not finished here yet, to be compared then."""
        self._entry = 0
        """The first step of the view that made this peer a member."""
        self._finished_at: deque[tuple[float, int]] = deque(maxlen=PACE)
        self._moved_at = 0.0
        self._still = 0
        """For how many times `repeat_s` nothing has moved."""
        self._position = (0, 0, 0)

    def head_of(self, step: int) -> bytes:
        """The lineage after `step`; empty if it is not known here (any more)."""
        if step == self.finished:
            return self.head
        done = self.history.get(step)
        return done.head if done is not None else b""

    def held_by(self, peer: str) -> int:
        """The last step that `peer` said to hold; 0 if it said none."""
        return self._acks.get(peer, 0)

    # --- agreement's hold on the steps -----------------------------------------------------------------

    def report(self) -> Report:
        return Report(self.finished, self.opened, self.finished >= self._entry - 1)

    def hold(self, freeze: bool) -> None:
        """A promise was given: open nothing beyond what it reports; with `freeze`, finish nothing either."""
        self._gate = self.opened
        self._frozen = self._frozen or freeze

    def pause(self, learner: str, seconds: float) -> None:
        """Open no further round for a learner's sake, until it is a member, gone, or the time is over.

        One that another member has opened already is still finished.
        """
        seconds = min(seconds, self._ctx.config.pause_limit_s)
        self._pauses[learner] = self._ctx.now + seconds
        self._ctx.trace("pause", peer=self._ctx.name(learner), seconds=seconds, reason="it can't catch up otherwise")

    def _is_paused(self) -> bool:
        learners = {info.id for info in self._ctx.view.learners} - self._ctx.wishes.lost_learners
        self._pauses = {p: until for p, until in self._pauses.items() if p in learners and until > self._ctx.now}
        return bool(self._pauses)

    def end_pauses(self) -> None:
        """Go on once no pause holds any more."""
        if self._pauses and not self._is_paused():
            self.advance()

    @property
    def frozen(self) -> bool:
        return self._frozen

    @property
    def running(self) -> bool:
        return self.opened > self.finished

    @property
    def next_data(self) -> DataState:
        """What contributions to the step after the last finished one draw on."""
        view = self._ctx.view_for(self.finished + 1)
        return with_first_leases(self.data, view, self.finished + 1) if view is not None else self.data

    @property
    def highest_seen(self) -> int:
        """The highest step that somebody contributes to."""
        return max(self.rounds, default=self.finished)

    # --- views -----------------------------------------------------------------------------------------

    def adopt(self, step: int, head: bytes, data: DataState, views: tuple[View, ...] = ()) -> None:
        """Stand after `step` (founding, resuming, or a learner that knows its snapshot).

        `views`: those that govern the steps since, as the donor knows them.
        """
        self.finished = self.opened = self.stable = step
        self._released = self._moved = read = min(step, self._node.worker.read_until(step))
        self.head, self.data = head, data
        self.history.clear()
        self.rounds = {s: r for s, r in self.rounds.items() if s > step}
        self._own.clear()
        self._acks[self._ctx.id] = step
        for peer, acks in self._early.items():
            self._acks[peer] = max([self._acks.get(peer, 0), *(s for s in acks if s <= step)])
        self._early = {peer: {s: h for s, h in acks.items() if s > step} for peer, acks in self._early.items()}
        self._ctx.past = tuple(
            view for view in views if view.lineage == self._ctx.view.lineage and view.id < self._ctx.views[0].id
        )
        self._prune_views()
        self._ctx.emit(SetViews((*self._ctx.past, *self._ctx.views), step))
        self._ctx.emit(ReleaseResults(read))  # a learner that was left behind has its memory full of these
        self.advance()

    def installed(self, view: View, was: Role) -> None:
        """A view was installed (it is `ctx.view`): void what it voids, fetch what it says was finished."""
        self._gate, self._frozen = None, False
        if self._ctx.role == Role.MEMBER and was != Role.MEMBER:
            self._entry = view.first_step
        if self._ctx.role == Role.LEARNER:
            self._own.clear()  # its worker died: where those bytes lay, the next one writes
        if view.abort:
            self.rounds = {s: r for s, r in self.rounds.items() if s < view.first_step}
            self.opened = self.finished
        known = {p.id for p in view.everybody()} | {self._ctx.id}
        self._acks = {peer: step for peer, step in self._acks.items() if peer in known}
        self._early = {peer: acks for peer, acks in self._early.items() if peer in known}
        self._prune_views()
        self._void_rounds()
        self._ctx.emit(SetViews((*self._ctx.past, *self._ctx.views), self.finished))
        if view.abort and self.head and self._ctx.role in (Role.MEMBER, Role.LEARNER):
            self._node.results.owe(view)
        self._unstash()
        self._update_stable()
        self.advance()

    def _void_rounds(self) -> None:
        """Rounds of views that don't govern their steps any more: the one that voided them was missed here."""
        views = {step: self._ctx.view_for(step) for step in self.rounds if step > self.finished}
        void = [step for step, now in views.items() if now is not None and now.id != self.rounds[step].view.id]
        for step in void:
            del self.rounds[step]
        if void:
            self.opened = max(self.finished, min(self.opened, min(void) - 1))

    def _prune_views(self) -> None:
        """Keep the installed view and those that still govern a step nobody here has finished."""
        views = self._ctx.views
        if self._ctx.past and views and self.finished >= views[0].first_step - 1:
            self._ctx.past = ()
        while len(views) > 1 and views[1].first_step <= min(self.finished, self.stable) + 1:
            views.pop(0)

    def reset(self) -> None:
        """Forget where the run stands: this peer was left behind and will take a snapshot."""
        self.head, self.data = b"", DataState()
        self._ctx.past = ()
        self.finished = self.opened = self.stable = self._released = self._moved = 0
        self._node.results.reset()
        self._gate, self._frozen = None, False
        for kept in (self.history, self.rounds, self._own, self._acks, self._stash, self._early):
            kept.clear()

    # --- what a lost link may have swallowed -------------------------------------------------------------

    def tick(self) -> None:
        """While nothing moves: say again what is known, and fetch what the others have finished meanwhile."""
        if self._ctx.role == Role.MEMBER and self.finished < self._entry - 1:
            self._node.results.fetch_since([m for m in self._ctx.view.member_ids() if m != self._ctx.id])
        position = (self.finished, self.stable, self.opened)
        if position != self._position:
            self._position, self._moved_at, self._still = position, self._ctx.now, 0
        elif self._ctx.now - self._moved_at >= self._ctx.config.repeat_s:
            self._moved_at = self._ctx.now
            self._still += 1
            everybody = self._ctx.view.everybody()
            if self._still % math.ceil(len(everybody) / SMALL) == 0:  # in a large view as many messages a second
                self.repeat([p.id for p in everybody])
            self._node.results.catch_up(self._still)

    def repeat(self, peers: list[str]) -> None:
        """What I contributed to steps that are not stable, and how far I am."""
        me = self._ctx.id
        for step in range(self.stable + 1, self.finished + 1):
            done = self.history.get(step)
            own = dict(done.contributions).get(me) if done is not None else None
            if done is not None and own is not None:
                self._ctx.send_all(peers, StepContribution(done.view_id, step, done.before, own))
        step = self.finished + 1
        view = self._ctx.view_for(step)
        if self.opened >= step and step in self._own and view is not None and view.member(me) is not None:
            self._ctx.send_all(peers, StepContribution(view.id, step, self.head, self._own[step]))
        if self.finished in self.history:
            self._ctx.send_all(peers, Ack(self.finished, self.head))
        self._acknowledge_to_those_behind(peers)

    def _acknowledge_to_those_behind(self, peers: list[str]) -> None:
        """Also the step at which each of them stands: of later ones it can compare nothing yet, and without a word on
        its own it may have no memory to finish these."""
        for peer in peers:
            beat = self._node.liveness.progress.get(peer)
            if beat is not None and beat.finished in self.history and beat.finished < self.finished:
                self._ctx.send(peer, Ack(beat.finished, self.head_of(beat.finished)))

    # --- contributions ---------------------------------------------------------------------------------

    def contribute(self, step: int, contribution: Contribution) -> None:
        """The own worker's part in `step`, or an empty one in its place."""
        if step != self.finished + 1 or step in self._own or not self.head:
            return
        self._own[step] = contribution
        if self.opened >= step:
            self._announce(step)

    def contributed(self, step: int) -> bool:
        return step in self._own

    def contributed_bytes(self, step: int) -> bool:
        """Whether the own contribution to `step` is there, and has bytes in the worker's buffer."""
        return step in self._own and not self._own[step].empty

    def _announce(self, step: int) -> None:
        view, own = self._ctx.view_for(step), self._own[step]
        if view is None or view.member(self._ctx.id) is None:
            return
        message = StepContribution(view.id, step, self.head, own)
        self._ctx.send_all((p.id for p in view.everybody()), message)
        self._ctx.emit(SendContribution(view.id, step, own.weight, own.empty))
        self._note(self._ctx.id, message)

    def on_contribution(self, src: str, message: StepContribution) -> None:
        if self.head and message.step > self.finished + AHEAD:
            raise RemoteProtocolError(f"a contribution to step {message.step} while step {self.finished} is finished")
        if not message.contribution.weight < math.inf:
            raise RemoteProtocolError(f"a contribution with weight {message.contribution.weight}")
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

    def _too_large(self, message: StepContribution) -> bool:
        """Whether this would fill the memory of who is behind, were it said of each of the steps ahead."""
        part = message.contribution
        nbytes = len(part.touched) + len(part.scalars) + RANGE_BYTES * len(part.ranges)
        return message.step > self.finished + NEAR and nbytes > LARGE

    def _note(self, src: str, message: StepContribution) -> None:
        view = self._ctx.view_for(message.step)
        if view is None or view.id != message.view_id or message.step <= self.finished or view.member(src) is None:
            return
        if self._too_large(message):
            return
        if message.step == self.finished + 1 and message.head != self.head and self.head:
            self._node.on_diverged(src, message.step, message.head)
            return
        current = self.rounds.setdefault(message.step, Round(view))
        if src in current.contributions:
            return
        current.contributions[src] = message.contribution
        current.known_at[src] = self._ctx.now
        while len(self.rounds) > AHEAD:  # of a learner that waits for its snapshot
            del self.rounds[min(self.rounds)]
        part = message.contribution
        self._ctx.emit(ContributionKnown(view.id, message.step, src, part.weight, part.empty))
        self._fill_in()
        self.advance()

    def others_contribute(self, step: int) -> bool:
        """Whether somebody else takes part in the round of `step`."""
        current = self.rounds.get(step)
        return current is not None and any(peer != self._ctx.id for peer in current.contributions)

    def others_wait(self, step: int) -> bool:
        """Whether another member's worker has done its part of `step`: without one there would be steps of nobody."""
        current = self.rounds.get(step)
        parts = current.contributions.items() if current is not None else ()
        return any(peer != self._ctx.id and not part.late for peer, part in parts)

    def others_in(self, step: int) -> tuple[list[float], list[float], int] | None:
        """Of the round of `step`: when the others' parts became known, how long those computed, and all members.

        None while nobody waits for the own worker.
        """
        current = self.rounds.get(step)
        if current is None or not self.others_wait(step):
            return None
        times = [part.compute_s for part in current.contributions.values() if part.compute_s > 0]
        return list(current.known_at.values()), times, len(current.view.members)

    def waits_for_bytes(self, seconds: float) -> int:
        """The open step, if all have contributed to it for longer than that and it is not finished; else 0."""
        current = self.rounds.get(self.finished + 1)
        if current is None or not current.known_at or not current.has_all:
            return 0
        return self.finished + 1 if self._ctx.now - max(current.known_at.values()) > seconds else 0

    def _fill_in(self) -> None:
        """The open round waits for this peer: contribute nothing if its worker can't."""
        if self.running and self.opened not in self._own:
            self._node.worker.fill_in(self.opened)

    def on_round_complete(self, event: RoundComplete) -> None:
        current = self.rounds.get(event.step)
        if current is None and (view := self._ctx.view_for(event.step)) is not None:
            current = self.rounds.setdefault(event.step, Round(view))
        if current is None or event.step <= self.finished:
            return
        if event.view_id != (current.mark if current.fetching else current.view.id):
            return
        current.complete = event
        self.advance()

    # --- commit ----------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Commit what can be committed, then open the next round if nothing forbids it."""
        while self._commit_next():
            self._node.on_committed(self.history[self.finished])
        self._open_next()

    def _commit_next(self) -> bool:
        step = self.finished + 1
        current = self.rounds.get(step)
        if current is None or self._frozen or not self.head or not current.has_all:
            return False
        if current.fetching and current.fetched is None:
            return False
        contributions = {m.id: current.contributions[m.id] for m in current.view.members}
        nothing = all(c.empty for c in contributions.values())
        if current.complete is None and not nothing:
            return False
        complete = current.complete or RoundComplete(current.view.id, step, b"", ())
        nonfinite = current.fetched.nonfinite if current.fetched else complete.nonfinite
        if current.fetched and not nothing and current.fetched.digest != complete.digest:
            self._node.on_wrong_bytes(step, current.fetching)
            return False
        done = commit(self.head, self.data, current.view, step, contributions, complete.digest, nonfinite)
        del self.rounds[step]
        self._own.pop(step, None)
        self.finished, self.head, self.data = step, done.head, done.data
        self.opened = max(self.opened, step)
        self.history[step] = done
        self._finished_at.append((self._ctx.now, step))
        self._ctx.emit(Finish(step))
        for peer, acks in list(self._early.items()):
            if (head := acks.pop(step, None)) is not None:
                self.on_ack(peer, Ack(step, head))
        return True

    def acknowledge(self) -> None:
        """Tell everybody concerned that the last finished step is held here."""
        view = self._ctx.view_for(self.finished) or self._ctx.view
        peers = [p.id for p in view.everybody()] + [p.id for p in self._ctx.view.everybody()]
        self._ctx.send_all(peers, Ack(self.finished, self.head))
        self.on_ack(self._ctx.id, Ack(self.finished, self.head))

    def on_ack(self, src: str, message: Ack) -> None:
        if message.step > self.finished:
            if len(early := self._early.setdefault(src, {})) < AHEAD:
                early[message.step] = message.head
            return
        done = self.history.get(message.step)
        if done is not None and done.head != message.head:
            self._node.on_diverged(src, message.step, message.head)
            return
        before = self._acks.get(src, 0)
        self._acks[src] = max(before, message.step)
        if before <= self.stable:
            self._update_stable()
        else:  # somebody else holds the stable step back
            self.release()

    def keeps_up(self, peer: str) -> bool:
        """Whether `peer` has acknowledged all but the last step, or what was finished `promote_lag_s` ago."""
        lately = self._ctx.now - self._ctx.config.promote_lag_s
        while len(self._finished_at) > 1 and self._finished_at[1][0] <= lately:
            self._finished_at.popleft()
        due = self._finished_at[0][1] if self._finished_at else self.finished
        return max(self._acks.get(peer, 0), *self._early.get(peer, {}), 0) >= min(due, self.finished - 1)

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
        """Forget results that no member, learner or own worker can ask for any more; what only learners may ask for
        lies on disk, but for the last ones."""
        here = min(self.stable, self.finished, self._node.worker.applied_floor(self.finished))
        keep = min(here, self._node.donor.learners_floor(self.finished, self._acks))
        if keep > self._released:
            self._released = keep
            for step in [s for s in self.history if s < keep]:
                del self.history[step]
            self._prune_views()
            self._ctx.emit(ReleaseResults(keep - 1))
        move = min(here, self.finished - self._ctx.kept_results)
        if move > max(self._moved, keep) or here < self._moved:  # a new worker reads older ones than the former did
            self._moved = move
            self._ctx.emit(MoveResults(move - 1))

    def _open_next(self) -> None:
        step = self.finished + 1
        if self.opened >= step or (self._gate is not None and step > self._gate) or not self.head:
            return
        view = self._ctx.view_for(step)
        if view is None or view.member(self._ctx.id) is None or self._ctx.role == Role.JOINER:
            return
        if step <= self._node.results.owed:
            return
        if step == view.start and len(view.members) < view.min_peers:
            return
        if step > self.highest_seen and self._is_paused():
            return
        self.opened = step
        self._ctx.emit(OpenRound(view.id, step))
        self._node.worker.fill_in(step)
        if step in self._own:
            self._announce(step)
