"""A member without a quorum: it waits, says so with its reason, serves nobody, and goes on by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.core.actions import Tell
from chaos.core.context import Context
from chaos.core.quorum import is_quorum

if TYPE_CHECKING:
    from chaos.core.node import Node

REMEDY = "It goes on by itself when they are back; if they are gone for good, see `chaos force-view`"


class Pause:
    """Whether the members that this one hears can decide anything."""

    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.reason = ""
        """Why this member is paused; empty: it is not."""
        self._since = 0.0
        self._by_quorum = False

    def update(self) -> None:
        """Look again who is heard: called whenever anything has happened to a member."""
        views, view = self._node.views, self._ctx.view
        if not views.suspects and not self._by_quorum:
            return
        silent = [m for m in view.members if m.id in views.suspects and m.id not in views.gone]
        heard = [m for m in view.member_ids() if m not in views.suspects and m not in views.gone]
        if silent and not is_quorum(view, heard, views.gone.keys()):
            self._by_quorum = True
            self.begin(f"no quorum without {', '.join(m.name for m in silent)}")
        elif self._by_quorum:
            self.end()

    def begin(self, reason: str) -> None:
        """This member can't go on, for this reason."""
        if reason == self.reason:
            return
        if not self.reason:
            self._since = self._ctx.now
            self._node.donor.paused()
        self.reason = reason
        self._ctx.trace("paused", view=self._ctx.view.id, reason=reason)
        where = f"{self._ctx.me.name} is paused after step {self._node.steps.finished}"
        self._ctx.emit(Tell(f"{where}: {reason}. {REMEDY}"))

    def end(self) -> None:
        """There is a quorum again, or another view."""
        if not self.reason:
            return
        self.reason, self._by_quorum = "", False
        seconds = round(self.seconds(), 3)
        self._ctx.trace("unpaused", seconds=seconds)
        self._ctx.emit(Tell(f"{self._ctx.me.name} is not paused any more, after {seconds:.1f} s"))
        self._node.donor.on_stable()

    def seconds(self) -> float:
        """Since when this member has been paused."""
        return self._ctx.now - self._since
