"""The agent's network layer: links to peers, control messages and bulk payloads over them, and clients.

Input and output only: what messages mean, whom to connect and what a broken link proves is decided elsewhere.
Everything runs in one event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from chaos.agent.transport.bulk import Bytes, Verdict
from chaos.agent.transport.config import TransportConfig
from chaos.agent.transport.control import ControlConnection
from chaos.agent.transport.dialer import Dialer
from chaos.agent.transport.frames import BulkHeader, ControlFrame
from chaos.agent.transport.handlers import Handlers
from chaos.agent.transport.link import Link, LinkInfo, State
from chaos.agent.transport.listener import Listener
from chaos.agent.transport.router import Router
from chaos.agent.transport.security import Security
from chaos.agent.transport.shared import Shared
from chaos.agent.transport.wishes import Wishes
from chaos.core.types import PeerInfo

LINGER_S = 1.0
"""How long the last message of a link may take to leave while the transport goes on."""


class Transport:
    """See the module. Use: `await start()`, then the rest, then `await close()`."""

    def __init__(
        self,
        me: PeerInfo,
        run_id: str,
        listen: Sequence[str],
        security: Security,
        handlers: Handlers,
        config: TransportConfig | None = None,
    ) -> None:
        """`run_id` is empty for a joiner that learns it from its contact. `listen` holds HOST:PORT, port 0: any."""
        self._listen = list(listen)
        self._handlers = handlers
        self._shared = Shared(me, run_id, security, config or TransportConfig(), self)
        self._dialer = Dialer(self._shared)
        self._wishes = Wishes(self._shared, self._dialer, handlers.on_refused)
        self._listener = Listener(self._shared, handlers.on_client)
        self._router = Router(self._shared, handlers, self.resume_bulk)
        self._lingering: set[ControlConnection] = set()
        self._all_left = asyncio.Event()
        self._resuming = False

    @property
    def run_id(self) -> str:
        return self._shared.run_id

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, relayed and refused since the start, by kind."""
        return self._shared.counters

    async def start(self) -> list[str]:
        """Listens. Returns the addresses with the ports that were bound. Raises ChaosError, e.g. port in use."""
        return await self._listener.open(self._listen)

    async def close(self, reason: str = "the agent ends") -> None:
        """Ends all links, telling the peers why; queued control may leave for a short while, queued bulk does not."""
        self._listener.close()
        for link in list(self._shared.roster.links.values()):
            link.close("closed here", farewell=reason)
        await self._shared.stop_tasks()
        self._all_left.clear()
        if self._lingering:
            try:
                async with asyncio.timeout(self._shared.config.close_flush_s):
                    await self._all_left.wait()
            except TimeoutError:
                self._shared.counters["not_flushed"] += len(self._lingering)
        for control in list(self._lingering):
            control.close()
        self._lingering.clear()

    # --- peers ----------------------------------------------------------------------------------

    def connect(self, info: PeerInfo) -> None:
        """Keep a link to this peer until `disconnect`: dial its addresses in order, again and again."""
        self._wishes.want(info)

    async def dial(self, address: str) -> PeerInfo:
        """First contact: a link to whoever answers at HOST:PORT, which is then up. Learns the run id if it is empty.

        The link is not made anew when it breaks; `connect` does that. Raises ChaosError: nobody listens, no answer
        in time, or Refused with the other end's reason.
        """
        return (await self._dialer.dial(address)).info

    def disconnect(self, peer: str, reason: str) -> None:
        """End the link, tell the peer why, and dial it no more. It may still dial this one."""
        self._wishes.forget(peer)
        link = self._shared.roster.links.get(peer)
        if link is not None:
            link.close(reason, farewell=reason)

    def set_me(self, me: PeerInfo) -> None:
        """What hellos say from now on; id, key and incarnation stay as they are."""
        self._shared.me = me

    def set_run_id(self, run_id: str) -> None:
        self._shared.run_id = run_id

    @property
    def security(self) -> Security:
        """The one in force now."""
        return self._shared.security

    def set_security(self, security: Security) -> None:
        """For connections from now on. Links that stand are not checked again: disconnect those of an evicted party."""
        self._shared.security = security

    def set_routes(self, routes: Mapping[str, str]) -> None:
        """Next hop by destination, for destinations without a link of their own. Replaces all earlier routes."""
        self._router.set_routes(routes)

    def links(self) -> dict[str, LinkInfo]:
        """Measurements of the links that are up, by peer."""
        links = self._shared.roster.links
        return {peer: link.describe() for peer, link in links.items() if link.state is State.UP}

    # --- sending --------------------------------------------------------------------------------

    def send_control(self, dst: str, body: bytes) -> bool:
        """Queue a message of at most 4 MiB; in order per destination. False: no link and no route, nothing is sent.

        True is no promise: what is queued on a link that breaks, or at a relay without a route, is lost.
        """
        return self._router.send_control(dst, body)

    def send_bulk(
        self,
        dst: str,
        header: BulkHeader,
        payload: Bytes,
        urgent: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> bool:
        """Queue a payload of at most 16 MiB without copying it; `urgent` ones go before the others. No order is kept.

        The memory must stay as it is until `on_sent`: the next hop has the whole frame. That is at most one round trip
        and 50 ms after it left. If the link goes down first, `on_sent` is not called. False: no link and no route.
        """
        return self._router.send_bulk(dst, header, payload, urgent, on_sent)

    def queued_bytes(self, dst: str) -> int:
        """Bulk bytes that wait to leave by the link that leads to `dst`, for whatever destination."""
        link = self._router.next_link(dst)
        return link.queued_bytes() if link is not None else 0

    def drop_bulk(self, predicate: Callable[[BulkHeader], bool]) -> int:
        """Forget queued frames whose header fits; returns how many. Frames that were begun are still sent."""
        return sum(link.drop_bulk(predicate) for link in self._shared.roster.links.values())

    def resume_bulk(self) -> None:
        """There is room again: in the next turn of the event loop, every connection that got PAUSE asks again."""
        if not self._resuming:
            self._resuming = True
            asyncio.get_running_loop().call_soon(self._resume)

    # --- called by links ------------------------------------------------------------------------

    def link_is_up(self, link: Link) -> None:
        self._handlers.on_link_up(link.info, link.run)
        self.resume_bulk()

    def link_is_closed(self, link: Link, reason: str, misbehaved: bool, was_up: bool) -> None:
        shared = self._shared
        shared.roster.remove(link)
        if misbehaved:
            until = asyncio.get_running_loop().time() + shared.config.quarantine_s
            shared.roster.quarantine(link.info.id, until)
            shared.counters["misbehaved"] += 1
        self.resume_bulk()
        if was_up:
            self._handlers.on_link_down(link.info.id, reason)

    def linger(self, control: ControlConnection) -> None:
        def left() -> None:
            timer.cancel()
            control.close()
            self._lingering.discard(control)
            if not self._lingering:
                self._all_left.set()

        timer = asyncio.get_running_loop().call_later(LINGER_S, left)
        self._lingering.add(control)
        control.flush_then(left)

    def control_received(self, link: Link, frame: ControlFrame) -> None:
        self._router.control_received(link, frame)

    def bulk_begins(self, link: Link, header: BulkHeader) -> memoryview | Verdict:
        return self._router.bulk_begins(link, header)

    def bulk_done(self, link: Link, header: BulkHeader, payload: memoryview) -> None:
        self._router.bulk_done(link, header, payload)

    def bulk_aborted(self, link: Link, header: BulkHeader, payload: memoryview) -> None:
        self._router.bulk_aborted(link, header, payload)

    def _resume(self) -> None:
        self._resuming = False
        for link in list(self._shared.roster.links.values()):
            link.resume()
