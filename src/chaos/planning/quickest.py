"""The quickest flow: how soon a volume can pass through a network whose links have rates and latencies.

Ford and Fulkerson (1958): of all ways to send, also those whose rates change all the time, some constant rates
along paths deliver the most by a time T, namely max over static flows f of  T |f| - sum over links latency f.
Augmenting along shortest paths (latency as length) gives these flows for all T at once: with path lengths
l_1 <= l_2 <= ... and amounts x_1, x_2, ...,  delivered(T) = sum x_i max(0, T - l_i)  (docs/planning.md,
section 3). Rates are whole B/s and latencies whole nanoseconds, so everything here is exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Arc:
    """A directed link between two nodes, which are numbers from 0."""

    tail: int
    head: int
    rate: int
    """B/s, 0 or more."""
    latency: int
    """Nanoseconds, 0 or more."""


@dataclass(frozen=True, slots=True)
class Path:
    """One way from the source to the sink, without a node twice, and how much of it to use."""

    arcs: tuple[int, ...]
    """Places in the list of arcs."""
    rate: int
    """B/s, above 0."""
    latency: int
    """Nanoseconds."""


@dataclass(frozen=True, slots=True)
class Quickest:
    """The answer, and what proves it."""

    time: Fraction
    """Nanoseconds, the least in which the volume can arrive."""
    steps: tuple[tuple[int, int], ...]
    """(length in nanoseconds, amount in B/s) of the augmentations, by length; all shorter than `time`."""
    paths: tuple[Path, ...]
    """Rates that reach `time`. Together they fit through every link."""


def quickest(nodes: int, arcs: Sequence[Arc], source: int, sink: int, volume: int) -> Quickest | None:
    """The least time for `volume` > 0 bytes from `source` to `sink`, a different node. None if no way leads there."""
    residual = _Residual(nodes, arcs)
    steps: list[tuple[int, int]] = []
    time: Fraction | None = None
    speed, head_start = 0, 0
    while True:
        step = residual.augment(source, sink, time)
        if step is None:
            break
        steps.append(step)
        speed += step[1]
        head_start += step[0] * step[1]
        time = Fraction(volume * 10**9 + head_start, speed)
    if time is None:
        return None
    return Quickest(time, tuple(steps), tuple(residual.paths(source, sink)))


def first_hops(nodes: int, arcs: Sequence[Arc], source: int, sink: int) -> list[Path]:
    """For every arc out of the source the shortest way that begins with it, with the rate it has to itself."""
    residual = _Residual(nodes, arcs)
    beyond = [0 if source in (arc.tail, arc.head) else arc.rate for arc in arcs]
    found: list[Path] = []
    for first, arc in enumerate(arcs):
        rest = residual.walk(arc.head, sink, beyond) if arc.tail == source and arc.rate else None
        if rest is not None:
            way = (first, *rest)
            found.append(Path(way, min(arcs[at].rate for at in way), sum(arcs[at].latency for at in way)))
    return found


class _Residual:
    """A flow that grows along shortest paths. Arc 2 i is arc i of the network, 2 i + 1 the way back on it."""

    def __init__(self, nodes: int, arcs: Sequence[Arc]) -> None:
        self._arcs = arcs
        self._room = [room for arc in arcs for room in (arc.rate, 0)]
        self._length = [length for arc in arcs for length in (arc.latency, -arc.latency)]
        self._head = [node for arc in arcs for node in (arc.head, arc.tail)]
        self._out: list[list[int]] = [[] for _ in range(nodes)]
        for index, arc in enumerate(arcs):
            self._out[arc.tail].append(2 * index)
            self._out[arc.head].append(2 * index + 1)
        self._potential = [0] * nodes

    def augment(self, source: int, sink: int, limit: Fraction | None) -> tuple[int, int] | None:
        """Sends as much as fits along a shortest path: its length and the amount. None if none is below `limit`."""
        distance, reached_by = self._shortest(source)
        if sink not in distance:
            return None
        farthest = max(distance.values())
        for node in range(len(self._potential)):
            self._potential[node] += distance.get(node, farthest)
        length = self._potential[sink] - self._potential[source]
        if limit is not None and length >= limit:
            return None
        way: list[int] = []
        node = sink
        while node != source:
            way.append(reached_by[node])
            node = self._head[reached_by[node] ^ 1]
        amount = min(self._room[arc] for arc in way)
        for arc in way:
            self._room[arc] -= amount
            self._room[arc ^ 1] += amount
        return length, amount

    def _shortest(self, source: int) -> tuple[dict[int, int], dict[int, int]]:
        """Dijkstra; lengths reduced by the potentials are never negative."""
        distance: dict[int, int] = {}
        reached_by: dict[int, int] = {}
        heap = [(0, source, -1)]
        while heap:
            length, node, by = heapq.heappop(heap)
            if node in distance:
                continue
            distance[node], reached_by[node] = length, by
            for arc in self._out[node]:
                head = self._head[arc]
                if self._room[arc] and head not in distance:
                    reduced = self._length[arc] + self._potential[node] - self._potential[head]
                    heapq.heappush(heap, (length + reduced, head, arc))
        return distance, reached_by

    def paths(self, source: int, sink: int) -> list[Path]:
        """The flow as paths. Flow in circles (of latency 0) is left out."""
        used = [self._room[2 * index + 1] for index in range(len(self._arcs))]
        found: list[Path] = []
        while True:
            way = self.walk(source, sink, used)
            if way is None:
                return found
            rate = min(used[index] for index in way)
            for index in way:
                used[index] -= rate
            found.append(Path(tuple(way), rate, sum(self._arcs[index].latency for index in way)))

    def walk(self, source: int, sink: int, used: Sequence[int]) -> list[int] | None:
        """Arcs of a shortest way along arcs with `used` above 0, of the shortest one with the fewest; None: no way."""
        heap: list[tuple[int, int, int, int]] = [(0, 0, source, -1)]
        reached_by: dict[int, int] = {}
        while heap:
            length, hops, node, by = heapq.heappop(heap)
            if node in reached_by:
                continue
            reached_by[node] = by
            for arc in self._out[node]:
                if arc % 2 == 0 and used[arc // 2] and self._head[arc] not in reached_by:
                    heapq.heappush(heap, (length + self._length[arc], hops + 1, self._head[arc], arc))
        if sink not in reached_by:
            return None
        way: list[int] = []
        node = sink
        while node != source:
            way.append(reached_by[node] // 2)
            node = self._arcs[way[-1]].tail
        return way[::-1]
