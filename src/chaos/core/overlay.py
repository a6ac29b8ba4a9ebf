"""Which links there are to be, and the sync plan that fits those that stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from chaos.core.actions import Connect
from chaos.core.context import Context, Role
from chaos.core.messages import LinkWish
from chaos.core.types import View, pair
from chaos.planning.roots import shares

if TYPE_CHECKING:
    from chaos.core.node import Node

LOOK_S = 0.5
"""Between two looks at the links: as often as heartbeats tell of them."""
MOST_PLANNED = 64
"""With more members the shares stay equal, whatever is missing: a plan looks at each root's load on each link."""
SETTLED_S = 2.0
"""A link that is missing for so long counts as missing: a flapping one, or one that is being made, changes no plan."""


class Overlay:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._missing: dict[tuple[str, str], float] = {}
        """Links that an end says it has not, and since when."""
        self._looked_at = 0.0
        self._fitted: tuple[tuple[str, ...], tuple[tuple[str, str], ...]] = (), ()
        """Members and links of the plan that was made last."""
        self._fit: tuple[int, ...] = ()

    # --- links by order ------------------------------------------------------------------------------------

    def on_wanted(self, peer: str, connect: bool) -> None:
        """This peer's operator has spoken: all members are told, and the next view has it.

        A link that is to be is dialed at once: it may be the only way to those who decide the next view.
        """
        self.on_wish(self._ctx.id, peer, connect)
        info = self._ctx.seat(peer)
        if connect and info is not None:
            self._ctx.emit(Connect(info))
        self._ctx.send_all((p.id for p in self._ctx.view.everybody()), LinkWish(peer, connect))

    def on_wish(self, src: str, peer: str, connect: bool) -> None:
        ends = pair(src, peer)
        if src == peer or not self._ctx.views:
            return
        if not self._ctx.view.knows(peer) and ends not in self._ctx.view.cut:  # the cut waits for who is away
            return
        if connect == (ends in self._ctx.view.cut):
            self._ctx.wishes.links[ends] = connect
        else:
            self._ctx.wishes.links.pop(ends, None)

    def repeat(self, peers: list[str]) -> None:
        """Say again what this peer's operator wants: a lost link may have swallowed it."""
        for ends, connect in sorted(self._ctx.wishes.links.items()):
            if self._ctx.id in ends:
                other = ends[1] if ends[0] == self._ctx.id else ends[0]
                self._ctx.send_all(peers, LinkWish(other, connect))

    # --- the sync plan -------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Where the links ask for another plan, the first in rank has it agreed on."""
        ctx = self._ctx
        if not ctx.views or ctx.role != Role.MEMBER or ctx.now - self._looked_at < LOOK_S:
            return
        self._looked_at = ctx.now
        self._look()
        fit = self._plan(ctx.view) if self._leads() else ctx.view.shares
        ctx.wishes.shares = fit if fit != ctx.view.shares else None

    def planned(self, view: View) -> View:
        """`view` with the sync plan for the links that will stand between its members."""
        return replace(view, shares=self._plan(view))

    def _plan(self, view: View) -> tuple[int, ...]:
        """Roots' shares for these members and links. Some milliseconds of work, so the last plan is remembered."""
        lacks = self._lacking(view)
        if not lacks or len(view.members) > MOST_PLANNED:
            return ()
        fitted = view.member_ids(), tuple(ends for ends in self._pairs(view) if ends not in lacks)
        if fitted != self._fitted:
            self._fitted, self._fit = fitted, shares(*fitted)
        return self._fit

    def _leads(self) -> bool:
        suspects = self._node.views.suspects
        return next((m for m in self._ctx.view.member_ids() if m not in suspects), "") == self._ctx.id

    def _look(self) -> None:
        if len(self._ctx.view.members) > MOST_PLANNED:
            self._missing.clear()
            return
        said = {peer: beat.links for peer, beat in self._node.liveness.progress.items() if beat.links is not None}
        said[self._ctx.id] = tuple(self._ctx.linked)
        present = {info.id for info in self._ctx.view.everybody()}
        missing = {pair(a, b) for a in said.keys() & present for b in present.difference(said[a]) if a != b}
        self._missing = {ends: self._missing.get(ends, self._ctx.now) for ends in sorted(missing)}

    def _lacking(self, view: View) -> set[tuple[str, str]]:
        """Links among the view's peers that are cut, or missing for long."""
        absent = {ends for ends, since in self._missing.items() if self._ctx.now - since >= SETTLED_S}
        return {ends for ends in absent.union(view.cut) if view.knows(ends[0]) and view.knows(ends[1])}

    def _pairs(self, view: View) -> list[tuple[str, str]]:
        ids = sorted(info.id for info in view.everybody())
        return [(a, b) for number, a in enumerate(ids) for b in ids[number + 1 :]]
