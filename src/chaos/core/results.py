"""Results of steps that others have finished and this node lacks: whom it asks, and what it answers who asks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chaos.core.actions import FetchRound, ServeResult
from chaos.core.context import Context, Role
from chaos.core.errors import RemoteProtocolError
from chaos.core.learner import Phase
from chaos.core.messages import FetchResult, FinishedStep, ResultMissing
from chaos.core.rounds import Round
from chaos.core.types import View

if TYPE_CHECKING:
    from chaos.core.node import Node

STILL_UNKNOWN, STILL_COMING = 2, 10
"""How many repetitions may pass before a step that others have is fetched: one, for what was lost to come again;
more, and as long without a byte of it, where only its bytes are missing: they take their time on a slow link."""


class Results:
    """Fetches results into the rounds of `Steps`, which commits them as it does those that it took part in."""

    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._sources: set[str] = set()
        self.owed = 0
        """The steps up to this one were finished by `_sources` when older rounds were voided."""
        self._came_at = -math.inf
        """When something of the step that is to be finished next last arrived."""

    def reset(self) -> None:
        """This peer was left behind: it takes a snapshot instead."""
        self.owed = 0

    # --- what is fetched ---------------------------------------------------------------------------------

    def owe(self, view: View) -> None:
        """A view that voids rounds says who had finished the steps before it: ask them for what is missing here."""
        self._sources, self.owed = set(view.sources) - {self._ctx.id}, view.first_step - 1
        self._fetch_missing(view)

    def _fetch_missing(self, view: View) -> None:
        steps, others = self._node.steps, [peer for peer in view.sources if peer != self._ctx.id]
        last = min(view.first_step, steps.finished + 1 + self._ctx.config.retain_results)
        for step in range(steps.finished + 1, last):
            present = steps.rounds.get(step)
            if present is not None and present.complete is not None and present.has_all:
                continue
            if others:
                self.fetch(step, others[step % len(others)])

    @property
    def abandoned(self) -> bool:
        """Those that had finished a step which this member lacks are gone, or keep it no more: it has to be redone."""
        if self._node.steps.finished >= self.owed or not self._node.steps.head:
            return False
        return not any(self._ctx.view.knows(source) for source in self._sources)

    def refetch(self, lost: str) -> None:
        """A source went away: another one serves what it owed, now, in the next view, or once it is found."""
        others = sorted(p for p in self._sources if p != lost and self._ctx.takes_part(p))
        for step, current in list(self._node.steps.rounds.items()):
            if current.fetching == lost and (current.fetched is None or current.complete is None):
                current.fetched = None
                if others:
                    self.fetch(step, others[0])

    def fetch_since(self, sources: list[str]) -> None:
        """After a snapshot: ask at once for finished results whose rounds were not followed here from the beginning.

        Whoever says that it finished a step has told its own part in it before, so that part will not come any more.
        """
        steps, progress = self._node.steps, self._node.liveness.progress
        ahead = {p: beat.finished for p in sources if (beat := progress.get(p)) is not None}
        for step in range(steps.finished + 1, max(ahead.values(), default=0) + 1):
            holders = [p for p, finished in ahead.items() if finished >= step]
            current = steps.rounds.get(step)
            told = current.contributions if current is not None else {}
            dropped = current is not None and current.dropped
            if current is not None and (current.fetching or (dropped and not self._node.worker.has_room(step))):
                continue
            if steps.head and (dropped or any(p not in told for p in holders)):
                self.fetch(step, holders[step % len(holders)])

    def catch_up(self, still: int) -> None:
        """Others finished the step at which I stand still: if I can't, ask for its result, each time another one.

        Where all contributions are known its bytes are under way, and a fetch would only start them anew: all of them,
        from one member, however little is still to come.
        `still`: for how many repetitions nothing has moved.
        """
        step, progress = self._node.steps.finished + 1, self._node.liveness.progress
        current = self._node.steps.rounds.get(step)
        if not self._node.steps.head or self._ctx.role == Role.JOINER:
            return
        if current is not None and (current.fetched is not None or current.dropped):
            return
        comes = current is not None and not current.fetching and current.has_all
        if still < (STILL_COMING if comes else STILL_UNKNOWN) or (comes and self._is_on_its_way()):
            return
        everybody = [p.id for p in self._ctx.view.everybody()]
        ahead = sorted(p for p in everybody if (beat := progress.get(p)) is not None and beat.finished >= step)
        if ahead:
            last = current.fetching if current is not None else ""
            self.fetch(step, next((p for p in ahead if p > last), ahead[0]))

    def on_bytes(self, step: int) -> None:
        """Something of the result of `step` has arrived."""
        if step == self._node.steps.finished + 1:
            self._came_at = self._ctx.now

    def _is_on_its_way(self) -> bool:
        """Bytes of the next result came lately, or queue behind the shards of this learner's state."""
        lately = self._ctx.now - self._came_at < STILL_COMING * self._ctx.config.repeat_s
        return lately or self._node.learner.phase == Phase.FETCH

    def fetch(self, step: int, source: str) -> None:
        """Ask `source` for the result of `step`."""
        governing = self._ctx.view_for(step)
        if governing is None:
            self._node.lost_track(f"no view is known under which step {step} ran")
            return
        current = self._node.steps.rounds.setdefault(step, Round(governing))
        current.fetching, current.fetched, current.complete, current.dropped = source, None, None, False
        current.mark = self._ctx.view.id
        self._ctx.emit(FetchRound(self._ctx.view.id, step))
        self._ctx.send(source, FetchResult(step, self._ctx.view.id))

    # --- for which there was no room ---------------------------------------------------------------------

    def on_dropped(self, step: int) -> None:
        """There was no room for the bytes of this step."""
        view = self._ctx.view_for(step)
        if view is not None and step > self._node.steps.finished:
            current = self._node.steps.rounds.setdefault(step, Round(view))
            current.dropped, current.fetching, current.fetched = True, "", None

    def lacks_dropped(self) -> bool:
        """Whether results are still to be fetched for which there was no room."""
        return any(current.dropped for current in self._node.steps.rounds.values())

    # --- asked and answered ------------------------------------------------------------------------------

    def on_fetch(self, src: str, message: FetchResult) -> None:
        """Somebody lacks the result of a step: send it what is kept."""
        done = self._node.steps.history.get(message.step)
        if done is None:
            self._ctx.trace("fetch_refused", step=message.step, peer=self._ctx.name(src), reason="not kept any more")
            self._ctx.send(src, ResultMissing(message.step))
            return
        reply = FinishedStep(done.view_id, done.step, done.contributions, done.digest, done.nonfinite)
        self._ctx.send(src, reply)
        if done.weight > 0 or done.digest:
            self._ctx.emit(ServeResult(src, message.view_id, message.step))

    def on_finished_step(self, src: str, message: FinishedStep) -> None:
        """Answer to `FetchResult`: the contributions that made the result."""
        current = self._node.steps.rounds.get(message.step)
        if current is None or current.fetching != src:
            return
        if current.view.id != message.view_id:
            self._node.lost_track(f"step {message.step} ran under a view that is not known here")
            return
        if not all(part.weight < math.inf for _, part in message.contributions):
            raise RemoteProtocolError(f"step {message.step} with a weight that is no number")
        current.contributions = dict(message.contributions)
        current.fetched = message
        self._ctx.trace("fetched", step=message.step, source=self._ctx.name(src))
        self._node.steps.advance()

    def on_result_missing(self, src: str, message: ResultMissing) -> None:
        """A learner takes a newer snapshot; so does a member, once all that are ahead and alive have refused."""
        current = self._node.steps.rounds.get(message.step)
        if current is None or current.fetching != src or current.complete is not None:
            return
        self._sources.discard(src)
        others = {p.id for p in self._ctx.view.everybody() if p.id in self._sources}
        if self._ctx.role == Role.LEARNER or not others:
            self._node.lost_track(f"the result of step {message.step} is not kept any more")
        else:
            self.refetch(src)
