"""Makes links: first contact, links that are wanted until further notice, and the lanes of those it dialed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from chaos.agent.transport.channel import Channel
from chaos.agent.transport.contact import DialFailed, ask, explained, open_channel
from chaos.agent.transport.hello import Goodbye, Greeting, Hello, Identity
from chaos.agent.transport.link import Link, State
from chaos.agent.transport.security import Security
from chaos.agent.transport.shared import Shared
from chaos.core.errors import ChaosError, Refused
from chaos.core.types import PeerInfo

STABLE_S = 5.0
"""A link that stood this long is dialed anew at once when it breaks; others after a pause (guess)."""


class _Duplicate(Exception):
    """The other end keeps another link between the two. The argument is its peer id."""


class _Wish:
    """A peer to whom a link is wanted."""

    def __init__(self, info: PeerInfo) -> None:
        self.info = info
        self.news = asyncio.Event()
        """Set when `info` changed: the next try need not wait."""
        self.task: asyncio.Task[None] | None = None
        self.complaints: dict[str, str] = {}
        """Last reason by address, so that each is reported once."""


class Dialer:
    """Calls `on_refused(address, reason)` when a try for a wanted link fails for a reason not yet reported."""

    def __init__(self, shared: Shared, on_refused: Callable[[str, str], None]) -> None:
        self._shared = shared
        self._config = shared.config
        self._roster = shared.roster
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

    async def dial(self, address: str, expects: str = "") -> Link:
        """A link that is up. `expects` is the peer that must answer; empty at first contact.

        If a link to whoever answers exists, or the other end makes one at the same time, that one is returned.
        Raises DialFailed, or Refused with the other end's reason.
        """
        shared, security = self._shared, self._shared.security
        channel, proven = await open_channel(address, security, self._config, shared.resolver)
        try:
            with explained(address, security, self._config.handshake_timeout_s):
                async with asyncio.timeout(self._config.handshake_timeout_s):
                    link = await self._greet(channel, proven, expects, security)
        except _Duplicate as other:
            link = await self._other_link(address, str(other))
        finally:
            channel.close()
        await asyncio.wait({link.up})
        if link.up.cancelled():
            raise DialFailed(f"{address}: the link closed before it was up ({link.closed_for})")
        return link

    async def _other_link(self, address: str, peer: str) -> Link:
        """The link that the other end keeps instead. Raises DialFailed if it does not appear here."""
        try:
            async with asyncio.timeout(self._config.handshake_timeout_s):
                return await self._roster.arrival(peer)
        except TimeoutError as error:
            raise DialFailed(f"{address} holds on to an old link: it lets go of it when that breaks") from error

    async def _greet(self, channel: Channel, proven: Identity | None, expects: str, security: Security) -> Link:
        """Exchanges hellos for a control connection, and makes the link."""
        shared, roster = self._shared, self._roster
        peer = proven.peer_id if proven else expects
        if expects not in ("", peer):
            raise Refused(f"{channel.remote} leads to peer {peer}, not {expects}: give its present address")
        if peer and (peer in roster.links or peer in roster.greeting):
            raise _Duplicate(peer)
        number = roster.next_number()
        hello = shared.hello("control", number, accepted=roster.recall(peer).accepted, expects=expects)
        roster.greeting.add(peer)
        try:
            answer = await ask(channel, hello)
        finally:
            roster.greeting.discard(peer)
        theirs, run = await self._check(channel, answer, proven, security)
        if expects not in ("", theirs.id):
            raise Refused(f"{channel.remote} leads to peer {theirs.id}, not {expects}: give its present address")
        standing = roster.links.get(theirs.id)
        if standing is not None:
            if shared.me.id > theirs.id:
                raise _Duplicate(theirs.id)
            standing.close("both ends dialed at once, and the other connection is kept")
        link = shared.new_link(theirs, run, number, outgoing=True, address=channel.remote)
        link.attach_control(channel.release())
        shared.spawn(self._tend(link))
        return link

    async def _check(
        self, channel: Channel, answer: Greeting, proven: Identity | None, security: Security
    ) -> tuple[PeerInfo, str]:
        """Sender and run of a hello that is in order. Raises Refused or _Duplicate for any other answer."""
        shared = self._shared
        if isinstance(answer, Goodbye):
            if answer.duplicate:
                raise _Duplicate(answer.peer)
            raise Refused(f"{channel.remote} refuses: {answer.reason}")
        if not isinstance(answer, Hello) or answer.info is None:
            raise Refused(f"{channel.remote} answers out of order: make both the same version")
        reason = shared.objection(answer, proven)
        if not reason and shared.security is not security:
            reason = "the set of admitted parties changed at this moment: another try follows"
        if reason:
            await channel.say(shared.refusal(reason))
            raise Refused(f"{channel.remote}: {reason}")
        if not shared.run_id:
            shared.run_id = answer.run
        return answer.info, answer.run

    async def _pursue(self, wish: _Wish) -> None:
        """Keeps a link to one peer until cancelled."""
        pause = self._config.backoff_first_s
        while True:
            link = self._roster.links.get(wish.info.id)
            if link is not None:
                since = asyncio.get_running_loop().time()
                await link.ended.wait()
                if asyncio.get_running_loop().time() - since >= STABLE_S:
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
                await self.dial(address, peer)
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

    async def _tend(self, link: Link) -> None:
        """Dials the lanes of a link that this end dialed, until it closes."""
        loop = asyncio.get_running_loop()
        last, pause = dict.fromkeys(range(self._config.lanes), -STABLE_S), self._config.backoff_first_s
        while link.state is not State.CLOSED:
            link.changed.clear()
            missing = link.missing_lane()
            if missing is None:
                await link.changed.wait()
                continue
            if loop.time() - last[missing[0]] < STABLE_S:
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._config.backoff_max_s)
            else:
                pause = self._config.backoff_first_s
            last[missing[0]] = loop.time()
            try:
                await self._dial_lane(link, *missing)
            except ChaosError as error:
                if link.state is State.OPENING:
                    link.close(str(error))

    async def _dial_lane(self, link: Link, index: int, serial: int) -> None:
        """One bulk connection for a link. Raises DialFailed or Refused."""
        shared, security = self._shared, self._shared.security
        channel, proven = await open_channel(link.address, security, self._config, shared.resolver)
        try:
            with explained(link.address, security, self._config.handshake_timeout_s):
                async with asyncio.timeout(self._config.handshake_timeout_s):
                    hello = shared.hello("bulk", link.number, 0, index, serial, expects=link.info.id)
                    info, _ = await self._check(channel, await ask(channel, hello), proven, security)
            if info.id != link.info.id or info.incarnation != link.info.incarnation:
                raise Refused(f"{link.address} now leads to another agent than its link: the link is made anew")
            if link.state is not State.CLOSED:
                link.attach_lane(channel.release(), index, serial)
        except _Duplicate:
            raise Refused(
                f"{link.address} takes a bulk connection for a new link: make both the same version"
            ) from None
        finally:
            channel.close()
