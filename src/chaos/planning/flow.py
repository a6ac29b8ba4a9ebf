"""Shard plans for donors that share links: two behind one uplink, one behind another peer, all behind a downlink.

The network between the donors and the joiner is given as links; a node that is neither donor nor joiner is a
switch, a gateway or a peer that only relays. Every donor holds every shard, so only amounts matter: this is a
quickest flow (`quickest`), from a source in front of the donors to the joiner, and nothing can beat its time.
Whole shards come from the better of two roundings (docs/planning.md, section 3):

- dealt out to the paths of that flow, as to donors: at most (paths) * shard / (their summed rate) seconds more;
- packed into the links, nearest donors first, for the least time in which they fit: optimal where donors have
  one way each and links are shared as in a tree.

A donor's own rate and cost per shard limit what it starts to send, not what it relays for others; give the
uplink of a peer that does both as a link of its own, by way of a node in between. Rates count in whole B/s,
rounded down, and latencies in whole nanoseconds, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from chaos.core.errors import ChaosError
from chaos.planning.dealing import Pace, deal, makespan
from chaos.planning.quickest import Arc, Path, Quickest, first_hops, quickest
from chaos.planning.shards import MAX_RATE, MAX_SECONDS, ShardPlan, ShardRequest

_HALVINGS = 34
"""Of the span between the bound and the dealt plan: leaves 1e-10 of it."""

_ROUNDING = 1e-9
"""Relative part of every link that packing leaves free, as it counts in floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of a link. ChaosError if a number is negative, not finite or absurdly large."""

    source: str
    target: str
    bandwidth: float
    """B/s on top of what training uses. Less than 1 counts as none."""
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise ChaosError(f"link from {self.source} to itself: name two nodes")
        for what, value, limit in (("bandwidth", self.bandwidth, MAX_RATE), ("latency", self.latency_s, MAX_SECONDS)):
            if not 0 <= value <= limit:
                raise ChaosError(
                    f"link {self.source} to {self.target}: {what} is {value}, give a number from 0 to {limit:g}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One donor's use of one way to the joiner."""

    via: tuple[str, ...]
    """Nodes from the donor to the joiner, both included."""
    rate: float
    """B/s that the donor keeps to on this way while it sends."""
    count: int
    """Shards that go this way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPlan(ShardPlan):
    """A shard plan with its ways. `limit_s` is the state over the maximum flow of the network."""

    routes: tuple[Route, ...]
    """Only those that carry shards."""
    flow_s: float
    """Seconds that no plan with these costs and latencies can beat, even one with divisible shards."""


def plan(request: ShardRequest, links: Sequence[Link], joiner: str) -> FlowPlan:
    """The shard size, ways and counts with the earliest finish that rounding the quickest flow gives.

    Every size of the chain is tried if there are costs per shard, else the smallest. ChaosError if the joiner is
    among the donors or no donor's bytes reach it.
    """
    if any(donor.name == joiner for donor in request.donors):
        raise ChaosError(f"{joiner} is a donor and the joiner: give the joiner another name")
    network = _Network(request, links, joiner)
    limit = network.flow(None, request.state_bytes)
    costly = any(donor.overhead_s > 0 for donor in request.donors if donor.rate)
    sizes = request.chain if costly else request.chain[:1]
    best = min((_whole(network, size) for size in sizes), key=lambda whole: (whole.finish_s, whole.size))
    return _described(network, best, float(limit.time / 10**9))


@dataclass(frozen=True, slots=True)
class _Whole:
    """Whole shards on ways."""

    size: int
    flow_s: float
    """The bound: the time of the quickest flow."""
    finish_s: float
    ways: list[tuple[Path, float, int]]
    """With the rate in B/s and the number of shards, above 0. The rates fit into the network together."""


class _Network:
    """Names to numbers: 0 is the source in front of the donors, 1 the sink behind the joiner's downlink."""

    def __init__(self, request: ShardRequest, links: Sequence[Link], joiner: str) -> None:
        self.request = request
        self.joiner = joiner
        ends = [name for link in links for name in (link.source, link.target)]
        self.names = ["", "", *dict.fromkeys([*(donor.name for donor in request.donors), *ends, joiner])]
        self._number = {name: at for at, name in enumerate(self.names) if at > 1}
        downlink = int(MAX_RATE) if request.downlink is None else int(request.downlink)
        self._links = [
            Arc(self._number[link.source], self._number[link.target], int(link.bandwidth), _nanoseconds(link.latency_s))
            for link in links
        ]
        self._links.append(Arc(self._number[joiner], 1, downlink, 0))

    def arcs(self, size: int | None) -> list[Arc]:
        """With shards of `size`; None: without latencies and costs per shard, for the physical limit."""
        if size is None:
            own = [Arc(0, self._number[donor.name], int(donor.rate), 0) for donor in self.request.donors]
            return own + [Arc(link.tail, link.head, link.rate, 0) for link in self._links]
        own = []
        for donor in self.request.donors:
            pace = donor.pace(size)
            rate = 0 if pace is None else int(size / pace.shard)
            own.append(Arc(0, self._number[donor.name], rate, _nanoseconds(donor.latency_s)))
        return own + self._links

    def flow(self, size: int | None, volume: int) -> Quickest:
        found = quickest(len(self.names), self.arcs(size), 0, 1, volume)
        if found is None:
            listed = ", ".join(donor.name for donor in self.request.donors)
            raise ChaosError(f"no way with bandwidth leads from {listed} to {self.joiner}: check the links")
        return found

    def via(self, path: Path, size: int) -> tuple[str, ...]:
        """Names on the way, from the donor to the joiner."""
        arcs = self.arcs(size)
        return tuple(self.names[arcs[at].tail] for at in path.arcs[1:])


def _nanoseconds(seconds: float) -> int:
    return math.ceil(Fraction(seconds) * 10**9)


def _whole(network: _Network, size: int) -> _Whole:
    """The better rounding of the quickest flow with shards of `size`."""
    number = -(-network.request.state_bytes // size)
    flow = network.flow(size, size * number)
    paces = [Pace(Fraction(path.latency, 10**9), Fraction(size, path.rate)) for path in flow.paths]
    counts = deal(paces, number)
    flow_s, dealt_s = float(flow.time / 10**9), float(makespan(paces, counts))
    arcs = network.arcs(size)
    packing = _Packing(arcs, first_hops(len(network.names), arcs, 0, 1), size)
    packed_s = packing.least_s(number, flow_s, dealt_s)
    if packed_s is None:
        ways = [(path, float(path.rate), count) for path, count in zip(flow.paths, counts, strict=True) if count]
        return _Whole(size, flow_s, dealt_s, ways)
    return _Whole(size, flow_s, packed_s, packing.by(packed_s, number))


class _Packing:
    """How many shards fit by a time, each way keeping to one rate. Nearest ways come first: a shard on them needs
    the least of every link, and in a tree of links whatever stands in its way needs no less (section 3)."""

    def __init__(self, arcs: Sequence[Arc], ways: Sequence[Path], size: int) -> None:
        self._rates = [arc.rate * (1 - _ROUNDING) for arc in arcs]
        self._ways = sorted(ways, key=lambda way: way.latency)
        self._size = size

    def by(self, seconds: float, number: int) -> list[tuple[Path, float, int]]:
        """Ways in use, the rates that have them done by then, and their shards, `number` in all at most."""
        room = list(self._rates)
        left = number
        found: list[tuple[Path, float, int]] = []
        for way in self._ways:
            time = seconds - way.latency / 1e9
            if time <= 0:
                break
            count = min(left, int(min(room[at] for at in way.arcs) * time / self._size))
            if count:
                rate = count * self._size / time
                for at in way.arcs:
                    room[at] -= rate
                left -= count
                found.append((way, rate, count))
        return found

    def least_s(self, number: int, low: float, high: float) -> float | None:
        """The least time for `number` shards by bisection between two times; None if it is not below `high`."""
        best = None
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if sum(count for _, _, count in self.by(middle, number)) == number:
                best = high = middle
            else:
                low = middle
        return best


def _described(network: _Network, whole: _Whole, limit_s: float) -> FlowPlan:
    counts = {donor.name: 0 for donor in network.request.donors}
    routes = []
    for path, rate, count in whole.ways:
        via = network.via(path, whole.size)
        counts[via[0]] += count
        routes.append(Route(via=via, rate=rate, count=count))
    number, busy = sum(counts.values()), sum(count > 0 for count in counts.values())
    return FlowPlan(
        shard_bytes=whole.size,
        counts=counts,
        finish_s=whole.finish_s,
        limit_s=limit_s,
        reason=f"{number} shards of {whole.size} bytes from {busy} of {len(counts)} donors over {len(routes)} ways; "
        f"done after {whole.finish_s:.3f} s, where divisible shards would need {whole.flow_s:.3f} s",
        routes=tuple(routes),
        flow_s=whole.flow_s,
    )
