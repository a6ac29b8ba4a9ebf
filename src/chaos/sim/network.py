"""The network between simulated peers: links that come up and break, directions that fail, and delays.

A link is one control and two bulk connections. Each connection keeps its order, as TCP does; between them
nothing does. Where a direction is blocked, nothing arrives and nobody is told: what was sent waits, as TCP's
retransmissions do, until the direction works again or the link is given up. So links may be half open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

from chaos.core import events as ev
from chaos.core.types import PeerInfo
from chaos.sim.heap import EventHeap

REDIAL_S = 0.2
"""Between two attempts to dial a peer that does not answer."""
GIVE_UP_S = 30.0
"""A connection on which nothing is acknowledged for so long is given up (the transport's `control_timeout_s`)."""
HOPS = 8
"""A message is relayed at most so often, as in the transport."""
SELF_S = 1e-5

Pair = tuple[str, str]


class Endpoint(Protocol):
    """What the network needs to know of a peer."""

    info: PeerInfo
    alive: bool
    frozen: bool
    wants: set[str]

    @property
    def run(self) -> str: ...
    def post(self, do: Callable[[], None]) -> None: ...
    def handle(self, event: ev.AnyEvent) -> None: ...
    def next_hop(self, dst: str) -> str | None: ...


@dataclass(eq=False)
class Link:
    """A link that stood; `ends` are the peers that believe it still does."""

    ends: set[str]


def pair_of(a: str, b: str) -> Pair:
    return (a, b) if a < b else (b, a)


class Network:
    """Delivers, delays and loses. `peers` are the living ones by id; a dead one's links end with it."""

    def __init__(self, heap: EventHeap, random: Random, peers: dict[str, Endpoint], latency: float) -> None:
        self._heap = heap
        self._random = random
        self._peers = peers
        self.latency = latency
        """Seconds one way; each message takes 0.5 to 2 times that."""
        self.bulk_delay = 0.001
        """Seconds that frames need beyond what messages do."""
        self.hiccups = 0.0
        """Share of messages that are 10 times as late as usual."""
        self.links: dict[Pair, Link] = {}
        self.sent = 0
        """Control messages so far, each hop of a relayed one counted once."""
        self._cut: set[Pair] = set()
        self._blocked: set[Pair] = set()
        """Directions (from, to) in which nothing arrives."""
        self._dark: set[str] = set()
        """Hosts without power or cable."""
        self._held: dict[tuple[str, str, str], list[Callable[[], None]]] = {}
        self._spikes: dict[Pair, tuple[float, float]] = {}
        """Direction to (additional seconds, until when)."""
        self._fifo: dict[tuple[str, str, str], float] = {}
        self._dialing: set[Pair] = set()

    # --- delivery ------------------------------------------------------------------------------------------

    def _delay(self, src: str, dst: str, channel: str) -> float:
        """One way, with jitter; each channel of a link is first in, first out."""
        now, chance = self._heap.now, self._random.random
        late = 10 if self.hiccups and chance() < self.hiccups else 1
        arrival = now + self.latency * (0.5 + 1.5 * chance()) * late
        if self._spikes:
            extra, until = self._spikes.get((src, dst), (0.0, 0.0))
            if now < until:
                arrival += extra * chance()
        key = (src, dst, channel)
        arrival = max(arrival, self._fifo.get(key, 0.0))
        self._fifo[key] = arrival + 1e-9
        return arrival - now

    def transfer(self, src: str, dst: str, channel: str, arrive: Callable[[Endpoint], None], hops: int = HOPS) -> bool:
        """Deliver to the peer that is `dst` by then, relayed where `src` has no link to it.

        Returns:
            False if there is no way. True does not promise that it arrives: a link on the way may break.
        """
        link = self._link(src, dst)
        if link is not None:
            self._hop(link, src, dst, channel, arrive)
            return True
        return hops > 1 and self._relay(src, dst, channel, arrive, hops)

    def _relay(self, src: str, dst: str, channel: str, arrive: Callable[[Endpoint], None], hops: int) -> bool:
        sender = self._peers.get(src)
        via = sender.next_hop(dst) if sender is not None else None
        link = self._link(src, via) if via is not None else None
        if via is None or link is None:
            return False

        def relay(peer: Endpoint) -> None:
            peer.post(lambda: self._relayed(peer.info.id, dst, channel, arrive, hops - 1))

        self._hop(link, src, via, channel, relay)
        return True

    def _relayed(self, src: str, dst: str, channel: str, arrive: Callable[[Endpoint], None], hops: int) -> None:
        self.transfer(src, dst, channel, arrive, hops)

    def _link(self, src: str, dst: str) -> Link | None:
        """The link by which `src` can send to `dst`."""
        link = self.links.get(pair_of(src, dst))
        return link if link is not None and src in link.ends else None

    def _hop(self, link: Link, src: str, dst: str, channel: str, arrive: Callable[[Endpoint], None]) -> None:
        self.sent += channel == "control"
        self._heap.at(self._delay(src, dst, channel), partial(self._deliver, link, src, dst, channel, arrive))

    def _deliver(self, link: Link, src: str, dst: str, channel: str, arrive: Callable[[Endpoint], None]) -> None:
        if self.is_blocked(src, dst):
            again = partial(self._deliver, link, src, dst, channel, arrive)
            self._held.setdefault((src, dst, channel), []).append(again)
            return
        receiver = self._peers.get(dst)
        if receiver is not None and dst in link.ends and self.links.get(pair_of(src, dst)) is link:
            arrive(receiver)

    # --- links ---------------------------------------------------------------------------------------------

    def connect(self, a: str, b: str) -> None:
        """Dial until the link stands, as long as one of the two wants it."""
        pair = pair_of(a, b)
        if pair in self._dialing or self._stands(pair):
            return
        self._dialing.add(pair)
        self._heap.at(2 * self.latency, lambda: self._dial(pair))

    def _stands(self, pair: Pair) -> bool:
        link = self.links.get(pair)
        return link is not None and len(link.ends) == 2

    def _dial(self, pair: Pair) -> None:
        a, b = pair
        one, two = self._peers.get(a), self._peers.get(b)
        wanted = (one is not None and b in one.wants) or (two is not None and a in two.wants)
        if self._stands(pair) or not wanted:
            self._dialing.discard(pair)
            return
        if one is None or two is None or one.frozen or two.frozen or pair in self._cut or self._fails(pair):
            self._heap.at(REDIAL_S, lambda: self._dial(pair))
            return
        self._dialing.discard(pair)
        former = self.links.get(pair)
        if former is not None:
            for end, other in (pair, pair[::-1]):
                if end in former.ends:
                    former.ends.discard(end)
                    self._tell_down(end, other, "replaced by a newer link")
        link = self.links[pair] = Link({a, b})
        self._tell_up(link, one, two)
        self._tell_up(link, two, one)

    def _fails(self, pair: Pair) -> bool:
        return self.is_blocked(*pair) or self.is_blocked(*pair[::-1])

    def _tell_up(self, link: Link, peer: Endpoint, other: Endpoint) -> None:
        run = other.run

        def up() -> None:
            if peer.info.id in link.ends:
                peer.handle(ev.LinkUp(other.info, run))

        peer.post(up)

    def _tell_down(self, peer: str, other: str, reason: str) -> None:
        """`peer` learns that its link is no more; whoever wants one dials anew."""
        there = self._peers.get(peer)
        if there is not None:
            told = there
            told.post(lambda: told.handle(ev.LinkDown(other, reason)))
        self._heap.at(3 * self.latency, lambda: self.connect(peer, other))

    def close(self, src: str, dst: str, reason: str) -> None:
        """`src` closes its link: the other end hears of it after all that was sent before, if it hears at all."""
        pair = pair_of(src, dst)
        link = self.links.get(pair)
        if link is None or src not in link.ends:
            return
        link.ends.discard(src)
        self._heap.at(0.0, lambda: self._tell_down(src, dst, reason))  # not within what the node is doing now

        def fin() -> None:
            if self.is_blocked(src, dst) and dst in link.ends:
                self._held.setdefault((src, dst, "control"), []).append(fin)
                return
            self._end(pair, link, dst, "closed by the other end")

        self._heap.at(self._delay(src, dst, "control"), fin)
        self._heap.at(GIVE_UP_S, lambda: self._end(pair, link, dst, "timed out"))

    def _end(self, pair: Pair, link: Link, last: str, reason: str) -> None:
        """The last end of a link gives it up."""
        if last in link.ends:
            link.ends.discard(last)
            self._tell_down(last, pair[0] if pair[1] == last else pair[1], reason)
        if self.links.get(pair) is link and not link.ends:
            del self.links[pair]

    def reset(self, a: str, b: str) -> None:
        """The connections are lost, with all that was under way in them; both ends learn it."""
        link = self.links.pop(pair_of(a, b), None)
        if link is None:
            return
        for end, other in ((a, b), (b, a)):
            if end in link.ends:
                link.ends.discard(end)
                self._heap.at(self.latency, lambda e=end, o=other: self._tell_down(e, o, "reset"))  # type: ignore[misc]

    def links_of(self, peer: str) -> list[Pair]:
        return sorted(pair for pair in self.links if peer in pair)

    def peer_ended(self, peer: str, orderly: bool) -> None:
        """A process ended: its kernel closes its connections, in order or by resets that lose what it had said."""
        for a, b in self.links_of(peer):
            other = b if a == peer else a
            if peer in self._dark:
                self.links[(a, b)].ends.discard(peer)
            elif orderly:
                self.close(peer, other, "ended")
            else:
                self.reset(a, b)

    # --- faults --------------------------------------------------------------------------------------------

    def is_blocked(self, src: str, dst: str) -> bool:
        if not self._blocked and not self._dark:
            return False
        return (src, dst) in self._blocked or src in self._dark or dst in self._dark

    def cut(self, a: str, b: str) -> None:
        """The link breaks and both ends know; it can't be made again until `restore`."""
        self._cut.add(pair_of(a, b))
        self.reset(a, b)

    def restore(self, a: str, b: str) -> None:
        self._cut.discard(pair_of(a, b))
        self.connect(a, b)

    def block(self, src: str, dst: str) -> None:
        """Nothing from `src` arrives at `dst` any more, and nobody is told."""
        self._blocked.add((src, dst))

    def unblock(self, src: str, dst: str) -> None:
        """What was sent meanwhile arrives, in order within each connection, when TCP tries again."""
        self._blocked.discard((src, dst))
        if not self.is_blocked(src, dst):
            self._release(src, dst)

    def _release(self, src: str, dst: str) -> None:
        for key in sorted(k for k in self._held if k[:2] == (src, dst)):
            waiting = self._held.pop(key)
            due = self._random.uniform(2 * self.latency, 1.0)
            self._fifo[key] = max(self._fifo.get(key, 0.0), self._heap.now + due + 1e-9 * len(waiting))
            for position, do in enumerate(waiting):
                self._heap.at(due + 1e-9 * position, do)

    def darken(self, peer: str) -> None:
        """A host loses its power or its cable."""
        self._dark.add(peer)

    def lighten(self, peer: str) -> None:
        """The host is back: what was sent to its former process is answered with a reset."""
        self._dark.discard(peer)
        for a, b in self.links_of(peer):
            if peer not in self.links[(a, b)].ends:
                self.reset(a, b)
        for src, dst in sorted({key[:2] for key in self._held if peer in key[:2]}):
            if not self.is_blocked(src, dst):
                self._release(src, dst)

    def spike(self, directions: Iterable[Pair], extra: float, seconds: float) -> None:
        """Messages in these directions take up to `extra` seconds longer for a while."""
        for direction in directions:
            self._spikes[direction] = (extra, self._heap.now + seconds)

    def heal(self) -> None:
        """All directions and links work again, but for hosts that are lost."""
        self._spikes.clear()
        self.hiccups = 0.0
        for a, b in sorted(self._cut):
            self.restore(a, b)
        for src, dst in sorted(self._blocked):
            self.unblock(src, dst)
