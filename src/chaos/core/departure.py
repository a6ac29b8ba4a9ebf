"""How a peer goes: it leaves, its script ends, the run ends, or it can't go on. Each with an exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.core.actions import SendGoodbye, Stop, ToWorker
from chaos.core.context import Context, Role
from chaos.core.messages import Goodbye, Leaving
from chaos.core.types import View
from chaos.core.worker_messages import Declined

if TYPE_CHECKING:
    from chaos.core.node import Node

DONE = 0
UNCONFIRMED = 7
"""The script came to its end, but nobody could say that its last step is stable."""
REFUSED = 4
LOST = 5
TOO_LATE = 6
"""The run ended while this peer was still catching up."""
START_AGAIN = "start again from a checkpoint (--checkpoint DIR)"


class Departure:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.stopped: Stop | None = None
        self._leave_reason = ""
        self._said_goodbye = False
        self._last_applied = 0
        self._ended_members: set[str] = set()
        self._until = 0
        self._waiting_since: float | None = None

    # --- wanting out ---------------------------------------------------------------------------------------

    def leave(self, reason: str) -> None:
        """SIGTERM, or `chaos leave`."""
        if self._leave_reason:
            return
        self._leave_reason = reason
        self._ctx.trace("leave", reason=reason)
        if self._ctx.role == Role.MEMBER:
            self._announce(self._node.steps.finished, done=False)
        elif self._ctx.role in (Role.JOINER, Role.LEARNER):
            self.stop(DONE, f"left before it became a member ({reason})")

    def script_ended(self, applied: int) -> None:
        self._last_applied = applied
        self._ctx.trace("script_ended", step=applied)
        if self._ctx.role == Role.MEMBER:
            self._announce(applied, done=True)
            if self._node.steps.others_contribute(applied + 1):
                self._node.worker.fill_in(applied + 1)
        elif self._ctx.role == Role.LEAVER:
            self._node.worker.fill_in(self._node.steps.finished + 1)
        elif self._ctx.role in (Role.JOINER, Role.LEARNER):
            self.stop(DONE, "the script ended before this peer became a member")

    def _announce(self, step: int, done: bool) -> None:
        self._ctx.send_all((p.id for p in self._ctx.view.everybody()), Leaving(step, done))
        self._ctx.wishes.leaving[self._ctx.id] = step
        if done:
            self._ctx.wishes.done.add(self._ctx.id)

    def repeat(self, peers: list[str]) -> None:
        """Say again that this peer wants out: a lost link may have swallowed it."""
        wishes, me = self._ctx.wishes, self._ctx.id
        if self._ctx.role == Role.MEMBER and me in wishes.leaving:
            self._ctx.send_all(peers, Leaving(wishes.leaving[me], me in wishes.done))

    def leaving_now(self) -> bool:
        """This peer was asked to leave, and so were all others: nobody is left to go on without it."""
        leaving = self._ctx.wishes.leaving
        return bool(self._leave_reason) and all(m in leaving for m in self._ctx.view.member_ids())

    def lost_seat(self) -> bool:
        """This peer is no member any more, and nobody let it go. True if it has nothing to come back for."""
        worker = self._node.worker.worker
        if worker is not None and worker.script_ended:
            self.stop(UNCONFIRMED, f"the script ended, but the others went on before its step {self._last_applied}")
        elif self._leave_reason:
            self.stop(DONE, f"left ({self._leave_reason}) while the others went on without it")
        return self.stopped is not None

    def let_go(self, view: View, was: Role) -> None:
        """A view without this leaver: it stays until the steps that it has a part in are stable, or void."""
        last = view.first_step - 1
        if was != Role.LEAVER:
            self._until = last
        elif view.abort:
            self._until = min(self._until, last)

    def last_step(self) -> int:
        """The last step that this leaver has a part in; once all others have ended, the last that it finished."""
        if self._ended_members.issuperset(self._ctx.view.member_ids()):
            return min(self._until, self._node.steps.finished)
        return self._until

    # --- going ---------------------------------------------------------------------------------------------

    def on_goodbye(self, src: str, message: Goodbye) -> None:
        if self._ctx.takes_part(src):
            self._ended_members.update(self._ctx.view.member_ids() if message.complete else (src,))
            self._ctx.trace("goodbye", peer=self._ctx.name(src), reason=message.reason)
        self._node.on_sealed(message.sealed, announce=False)

    def check(self) -> None:
        """Stop if the time has come."""
        ctx = self._ctx
        if self.stopped is not None or not ctx.views:
            return
        if ctx.role == Role.MEMBER:
            self._check_end()
        elif ctx.role == Role.LEAVER:
            self._check_left()
        elif ctx.role == Role.LEARNER:
            self._check_deserted()

    def _check_end(self) -> None:
        """All scripts have ended: stop as soon as the last step is stable."""
        ctx, stable = self._ctx, self._node.steps.stable
        if self._leave_reason and self._node.pause.reason:
            if self._waited():
                self.stop(UNCONFIRMED, f"left ({self._leave_reason}) while nobody could let it go")
        elif ctx.id not in ctx.wishes.done or not all(m in ctx.wishes.leaving for m in ctx.view.member_ids()):
            self._waiting_since = None
        elif stable >= self._last_applied:
            self._farewell(f"the run is complete after step {stable}", complete=True)
            self.stop(DONE, f"the run is complete after step {stable}")
        elif self._waited():
            self.stop(UNCONFIRMED, f"the script ended after step {self._last_applied}, of which {stable} are stable")

    def _check_left(self) -> None:
        """A leaver has seen the others begin without it: it goes once its last step is stable."""
        steps, worker = self._node.steps, self._node.worker.worker
        if steps.stable >= self.last_step() and not self._said_goodbye:
            self._farewell(self._leave_reason or "script ended")
            self._node.worker.pump()
        ended = worker is None or worker.script_ended or worker.applied is None  # a restarted one without state
        if self._said_goodbye and ended:
            self.stop(DONE, f"left after step {steps.finished}; all members hold it")
        elif not self._said_goodbye and self._waited():
            self.stop(UNCONFIRMED, f"left after step {steps.finished}, of which {steps.stable} are stable")

    def _check_deserted(self) -> None:
        """A learner has nobody left to learn from."""
        members = self._ctx.view.member_ids()
        if self._ended_members.issuperset(members):
            self.stop(TOO_LATE, "the run ended before this peer became a member")
        elif all(m in self._node.views.gone for m in members):
            self.stop(LOST, f"all members of the run died; {START_AGAIN}")

    def _waited(self) -> bool:
        if self._waiting_since is None:
            self._waiting_since = self._ctx.now
        return self._ctx.now - self._waiting_since > self._ctx.config.linger_s

    def _farewell(self, reason: str, complete: bool = False) -> None:
        """To everybody, relayed where there is no link."""
        self._said_goodbye = True
        everybody = {p.id for view in self._ctx.views for p in view.everybody()} - {self._ctx.id}
        self._ctx.emit(SendGoodbye(tuple(sorted(everybody | self._ctx.linked.keys())), reason, complete))

    def refuse(self, reason: str) -> None:
        """The run does not take this peer: its worker raises, the agent stops."""
        self._ctx.emit(ToWorker(Declined(reason)))
        self.stop(REFUSED, reason)

    def stop(self, code: int, reason: str) -> None:
        if self.stopped is not None:
            return
        if self._node.pause.reason:
            reason = f"{reason}; it was paused: {self._node.pause.reason}"
        if not self._said_goodbye and self._ctx.views:
            self._farewell(reason)
        self.stopped = Stop(code, reason)
        self._ctx.trace("stop", code=code, reason=reason)
        self._ctx.emit(self.stopped)
