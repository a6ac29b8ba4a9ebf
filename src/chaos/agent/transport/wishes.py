"""Links that are wanted until further notice: dialed, and dialed again when they break."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from chaos.agent.transport.dialer import STEADY_S, Dialer
from chaos.agent.transport.shared import Shared
from chaos.core.errors import ChaosError
from chaos.core.types import PeerInfo


class _Wish:
    """A peer to whom a link is wanted."""

    def __init__(self, info: PeerInfo) -> None:
        self.info = info
        self.news = asyncio.Event()
        """Set when `info` changed: the next try need not wait."""
        self.task: asyncio.Task[None] | None = None
        self.complaints: dict[str, str] = {}
        """Last reason by address, so that each is reported once."""


class Wishes:
    """Calls `on_refused(address, reason)` when a try fails for a reason not yet reported."""

    def __init__(self, shared: Shared, dialer: Dialer, on_refused: Callable[[str, str], None]) -> None:
        self._shared = shared
        self._config = shared.config
        self._roster = shared.roster
        self._dialer = dialer
        self._on_refused = on_refused
        self._wishes: dict[str, _Wish] = {}

    def want(self, info: PeerInfo) -> None:
        """Keep a link to this peer; called again with newer addresses or incarnation, it uses those."""
        wish = self._wishes.get(info.id)
        if wish is None:
            wish = self._wishes[info.id] = _Wish(info)
            wish.task = self._shared.spawn(self._pursue(wish))
        elif wish.info != info:
            wish.info = info
            wish.complaints.clear()
            wish.news.set()
        link = self._roster.links.get(info.id)
        if link is not None and link.info.incarnation < info.incarnation:
            link.close(f"the peer was restarted (incarnation {info.incarnation})")

    def forget(self, peer: str) -> None:
        wish = self._wishes.pop(peer, None)
        if wish is not None and wish.task is not None:
            wish.task.cancel()

    async def _pursue(self, wish: _Wish) -> None:
        """Keeps a link to one peer until cancelled."""
        now = asyncio.get_running_loop().time
        pause = self._config.backoff_first_s
        while True:
            link = self._roster.links.get(wish.info.id)
            if link is not None:
                since = now()
                await link.ended.wait()
                if now() - since >= STEADY_S:
                    pause = self._config.backoff_first_s
                    continue
            elif await self._try_addresses(wish):
                continue
            await self._rest(wish, pause)
            pause = min(2 * pause, self._config.backoff_max_s)

    async def _try_addresses(self, wish: _Wish) -> bool:
        """One round over a peer's addresses. True: there is a link."""
        peer = wish.info.id
        wish.news.clear()
        left = self._roster.quarantined(peer, asyncio.get_running_loop().time())
        if left:
            await asyncio.sleep(left)
        for address in wish.info.addresses:
            if peer in self._roster.links:
                return True
            try:
                await self._dialer.dial(address, peer)
            except ChaosError as error:
                self._complain(wish, address, str(error))
            else:
                wish.complaints.clear()
                return True
        return peer in self._roster.links

    def _complain(self, wish: _Wish, address: str, reason: str) -> None:
        if wish.complaints.get(address) != reason:
            wish.complaints[address] = reason
            self._on_refused(address, reason)

    async def _rest(self, wish: _Wish, pause: float) -> None:
        """Waits 0.5 to 1 times `pause`, so that two peers do not dial in step; less if there is news."""
        try:
            async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):
                await wish.news.wait()
        except TimeoutError:
            return
