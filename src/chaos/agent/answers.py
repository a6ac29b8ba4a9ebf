"""What an agent answers clients: people's commands, observers, doctors; who may ask for what."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from chaos.agent.observer import Observer
from chaos.agent.reach import answer_dial_back, answer_probe
from chaos.agent.requests import (
    DialBackRequest,
    ForceViewRequest,
    LeaveRequest,
    LinesRequest,
    LinkRequest,
    ProbeRequest,
    SealRequest,
    StatusRequest,
    decode_request,
)
from chaos.agent.transport import Transport
from chaos.core import events as ev
from chaos.core.node import Node


class Answers:
    """One agent's. `post` has the node handle an event."""

    def __init__(
        self, node: Node, transport: Transport, observer: Observer, post: Callable[[ev.AnyEvent], None]
    ) -> None:
        self._node = node
        self._transport = transport
        self._observer = observer
        self._post = post

    async def to(self, payload: bytes, party: str) -> dict[str, Any]:
        """The answer to a client of this party. Raises RemoteProtocolError if what it says is no request."""
        me = self._node.ctx.me
        at_home = party == me.party or self._transport.security.plain
        match decode_request(payload):
            case StatusRequest():
                return self._status()
            case ProbeRequest() as probe:
                return answer_probe(probe)
            case DialBackRequest() as question:
                return await answer_dial_back(question, self._transport.security)
            case LinesRequest(after):
                return self._observer.lines(after, at_home)
            case LeaveRequest() | LinkRequest() | ForceViewRequest() if not at_home:
                return {"error": f"only the peer's own party ({me.party[:16]}) may do that"}
            case LeaveRequest(reason):
                self._post(ev.LeaveRequested(reason))
                return {"leaving": me.name}
            case ForceViewRequest(view):
                return await self._force(view)
            case LinkRequest(peer, connect):
                return self._want_link(peer, connect)
            case SealRequest(sealed):
                self._post(ev.WordsFound(sealed))
                return {"sealed": True}

    def _status(self) -> dict[str, Any]:
        status, name = self._node.status(), self._node.ctx.name
        status["links"] = {name(peer): info.for_people() for peer, info in self._transport.links().items()}
        return status

    async def _force(self, view: int | None) -> dict[str, Any]:
        """Show, or make, the view that an operator forces."""
        node = self._node
        if view is None:
            shown = node.force.preview()
            return {"error": shown["refusal"]} if shown["refusal"] else shown
        lineage = secrets.token_hex(8)
        self._post(ev.ForceRequested(lineage, view))
        while (outcome := node.force.outcomes.get(lineage)) is None and node.stopped is None:
            await asyncio.sleep(node.ctx.config.tick_s)  # `FORCE_S` at most
        return {"error": outcome or "the peer stopped"} if outcome != "" else {"lineage": lineage}

    def _want_link(self, peer: str, connect: bool) -> dict[str, Any]:
        ctx = self._node.ctx
        others = [info for info in (ctx.view.everybody() if ctx.views else ()) if info.id != ctx.id]
        found = next((info for info in others if peer in (info.name, info.id)), None)
        if found is None:
            known = ", ".join(p.name for p in others) or "none"
            return {"error": f"'{peer}' is no other peer of the run; it has {known}"}
        if connect != ctx.view.is_cut(ctx.id, found.id):
            return {"error": f"the link to {found.name} is {'not cut' if connect else 'cut already'}"}
        self._post(ev.LinkWanted(found.id, connect))
        return {"peer": ctx.me.name, "other": found.name, "view": ctx.view.id}
