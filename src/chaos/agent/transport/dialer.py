"""Makes links: the control connection and its hello, then the lanes, for as long as the link stands."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from chaos.agent.transport.channel import Channel
from chaos.agent.transport.contact import DialFailed, ask, explained, open_channel
from chaos.agent.transport.hello import Goodbye, Hello, Identity
from chaos.agent.transport.link import Link, State
from chaos.agent.transport.security import Security
from chaos.agent.transport.shared import Shared
from chaos.core.errors import ChaosError, Refused
from chaos.core.types import PeerInfo

STEADY_S = 5.0
"""What stood this long is dialed anew at once when it breaks; else after a pause (guess)."""


class _Opened(NamedTuple):
    """A connection whose TLS handshake is done. `security` is what it was checked against."""

    channel: Channel
    proven: Identity | None
    security: Security


class _Duplicate(Exception):
    """The other end keeps another link between the two. The argument is its peer id."""


class Dialer:
    """Makes single links on request; whoever asks decides about another try."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._config = shared.config
        self._roster = shared.roster

    async def dial(self, address: str, expects: str = "") -> Link:
        """A link that is up. `expects` is the peer that must answer; empty at first contact.

        If a link to whoever answers exists, or the other end makes one at the same time, that one is returned.
        Raises DialFailed, or Refused with the other end's reason.
        """
        work = asyncio.get_running_loop().create_task(self._dial(address, expects))
        self._shared.own(work)
        try:
            await asyncio.wait({work})
        finally:
            work.cancel()
        if work.cancelled():
            raise DialFailed(f"{address} was being dialed when this agent ended")
        return work.result()

    async def _dial(self, address: str, expects: str) -> Link:
        # The first lane's connection is opened beside that of control, which saves two round trips.
        lane = asyncio.get_running_loop().create_task(self._open(address))
        link = None
        try:
            link = await self._contact(await self._open(address), expects)
            self._shared.spawn(self._tend(link, lane))
        except _Duplicate as other:
            return await self._other_link(address, str(other))
        finally:
            if link is None:
                await _discard(lane)
        return await _until_up(link)

    async def _open(self, address: str) -> _Opened:
        security = self._shared.security
        return _Opened(*await open_channel(address, security, self._config, self._shared.resolver), security)

    async def _other_link(self, address: str, peer: str) -> Link:
        """The link that the other end keeps instead. Raises DialFailed if it does not come up here."""
        try:
            async with asyncio.timeout(self._config.handshake_timeout_s):
                link = await self._roster.arrival(peer)
        except TimeoutError as error:
            raise DialFailed(f"{address} holds on to an old link: it lets go of it when that breaks") from error
        return await _until_up(link)

    async def _contact(self, opened: _Opened, expects: str) -> Link:
        """Exchanges hellos for a control connection, and makes the link. Raises _Duplicate, DialFailed or Refused."""
        shared, roster, channel = self._shared, self._roster, opened.channel
        peer = opened.proven.peer_id if opened.proven else expects
        if peer and (peer in roster.links or peer in roster.greeting):
            channel.close()
            raise _Duplicate(peer)
        number = roster.next_number()
        roster.greeting.add(peer)
        try:
            hello = shared.hello("control", number, roster.recall(peer).accepted, expects=expects)
            theirs, run = await self._exchange(opened, hello)
        except (ChaosError, _Duplicate, asyncio.CancelledError):
            channel.close()
            raise
        finally:
            roster.greeting.discard(peer)
        standing = roster.links.get(theirs.id)
        if standing is not None:
            if shared.me.id > theirs.id:
                channel.close()
                raise _Duplicate(theirs.id)
            standing.close("both ends dialed at once, and the other connection is kept")
        link = shared.new_link(theirs, run, number, outgoing=True, address=channel.remote)
        link.attach_control(channel.release())
        return link

    async def _exchange(self, opened: _Opened, hello: Hello) -> tuple[PeerInfo, str]:
        """Hello for hello. Returns who answered, and its run. Raises Refused, DialFailed or _Duplicate."""
        shared, (channel, proven, security) = self._shared, opened
        with explained(channel.remote, security, self._config.handshake_timeout_s):
            async with asyncio.timeout(self._config.handshake_timeout_s):
                answer = await ask(channel, hello)
                if isinstance(answer, Goodbye):
                    if answer.duplicate:
                        raise _Duplicate(answer.peer)
                    raise Refused(f"{channel.remote} refuses: {answer.reason}")
                if not isinstance(answer, Hello) or answer.info is None:
                    raise Refused(f"{channel.remote} answers out of order: make both the same version")
                reason = shared.objection(answer, proven)
                if hello.expects not in ("", answer.info.id):
                    reason = f"peer {answer.info.id} answers, not {hello.expects}: give the present address of that"
                elif not reason and shared.security is not security:
                    reason = "the set of admitted parties changed at this moment: another try follows"
                if reason:
                    await channel.say(shared.refusal(reason))
                    raise Refused(f"{channel.remote}: {reason}")
        if not shared.run_id:
            shared.run_id = answer.run
        return answer.info, answer.run

    async def _tend(self, link: Link, ahead: asyncio.Task[_Opened] | None) -> None:
        """Dials the lanes of a link that this end dialed, until it closes. `ahead` is used for the first of them."""
        now = asyncio.get_running_loop().time
        last, pause = dict.fromkeys(range(self._config.lanes), -STEADY_S), self._config.backoff_first_s
        try:
            while link.state is not State.CLOSED:
                link.changed.clear()
                missing = link.missing_lane()
                if missing is None:
                    await link.changed.wait()
                    continue
                if now() - last[missing[0]] < STEADY_S:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, self._config.backoff_max_s)
                else:
                    pause = self._config.backoff_first_s
                last[missing[0]] = now()
                opening = ahead or asyncio.get_running_loop().create_task(self._open(link.address))
                ahead = None
                await self._add_lane(link, opening, *missing)
        finally:
            if ahead is not None:
                await _discard(ahead)

    async def _add_lane(self, link: Link, opening: asyncio.Task[_Opened], index: int, serial: int) -> None:
        """One bulk connection for a link; if it fails, a link that has none yet is closed."""
        try:
            opened = await opening
            try:
                hello = self._shared.hello("bulk", link.number, lane=index, serial=serial, expects=link.info.id)
                info, _ = await self._exchange(opened, hello)
                if info.incarnation != link.info.incarnation:
                    raise Refused(f"{link.address} leads to another incarnation: the link is to be made anew")
                if link.state is not State.CLOSED:
                    link.attach_lane(opened.channel.release(), index, serial)
            finally:
                opened.channel.close()
        except (ChaosError, _Duplicate) as error:
            if link.state is State.OPENING:
                link.close(str(error))


async def _until_up(link: Link) -> Link:
    """Bounded, as a link closes itself if it does not come up. Raises DialFailed then."""
    await asyncio.wait({link.up})
    if link.up.cancelled():
        raise DialFailed(f"{link.address}: the link closed before it was up ({link.closed_for})")
    return link


async def _discard(opening: asyncio.Task[_Opened]) -> None:
    """Closes a connection that is not needed, wherever it stands."""
    opening.cancel()
    (result,) = await asyncio.gather(opening, return_exceptions=True)
    if isinstance(result, _Opened):
        result.channel.close()
