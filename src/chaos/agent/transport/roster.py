"""Which links exist, what is remembered of peers, and what to do with a hello for a link that exists already."""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections import OrderedDict
from typing import NamedTuple

from chaos.agent.transport.link import Link, State
from chaos.core.types import PeerInfo

MAX_KNOWN = 4096
"""Peers remembered; the longest unheard are forgotten. A view has 1024 members at most."""


class Memory(NamedTuple):
    """What is remembered of a peer without a link."""

    incarnation: int
    accepted: int
    """Highest number of a link that this incarnation dialed and that was taken up here."""


class Claim(enum.Enum):
    """What becomes of a hello for a new link."""

    ACCEPT = "there is no other link"
    REPLACE = "the other end has given up the old link, or is a new incarnation"
    DUPLICATE = "another link stands or is being made, and is the one to keep"


class Roster:
    """All links by peer, and the rules that make two peers agree on one of them."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self.greeting: set[str] = set()
        """Peers to whom a hello for a new link was sent and who have not answered."""
        self._added = asyncio.Event()
        self._numbers = itertools.count(1)
        self._memory: OrderedDict[str, Memory] = OrderedDict()
        self._quarantine: OrderedDict[str, float] = OrderedDict()

    def next_number(self) -> int:
        """Number of the next link that this end dials."""
        return next(self._numbers)

    def recall(self, peer: str) -> Memory:
        return self._memory.get(peer, Memory(0, 0))

    def add(self, link: Link) -> None:
        """A new link, of a peer that has none."""
        peer = link.info.id
        self.links[peer] = link
        self._added.set()
        self._added = asyncio.Event()
        old = self.recall(peer)
        accepted = old.accepted if old.incarnation == link.info.incarnation else 0
        if not link.outgoing:
            accepted = max(accepted, link.number)
        self._memory[peer] = Memory(max(old.incarnation, link.info.incarnation), accepted)
        self._memory.move_to_end(peer)
        if len(self._memory) > MAX_KNOWN:
            self._memory.popitem(last=False)

    async def arrival(self, peer: str) -> Link:
        """The peer's link, as soon as there is one. The caller sets a time limit."""
        while peer not in self.links:
            await self._added.wait()
        return self.links[peer]

    def remove(self, link: Link) -> None:
        if self.links.get(link.info.id) is link:
            del self.links[link.info.id]

    def up(self, peer: str) -> Link | None:
        """The peer's link, if it is up."""
        link = self.links.get(peer)
        return link if link is not None and link.state is State.UP else None

    def claim(self, info: PeerInfo, accepted: int, me: str) -> Claim:
        """Decides on a hello from `info`, who says that the last link of ours it took up has number `accepted`.

        A peer dials only while it has no link. So a hello against a standing link either comes from a peer
        that has lost that link, or was sent before the peer took the link up: `accepted` tells which.
        If both dial at once, the dial of the lower id wins.
        """
        link = self.links.get(info.id)
        if link is None:
            return Claim.DUPLICATE if info.id in self.greeting and me < info.id else Claim.ACCEPT
        late = link.outgoing and accepted < link.number
        if info.incarnation <= link.info.incarnation and late:
            return Claim.DUPLICATE
        return Claim.REPLACE

    def quarantine(self, peer: str, until: float) -> None:
        self._quarantine[peer] = until
        self._quarantine.move_to_end(peer)
        if len(self._quarantine) > MAX_KNOWN:
            self._quarantine.popitem(last=False)

    def quarantined(self, peer: str, now: float) -> float:
        """Seconds for which the peer is neither dialed nor accepted; 0 if it may."""
        left = self._quarantine.get(peer, now) - now
        if left <= 0:
            self._quarantine.pop(peer, None)
        return max(left, 0.0)
