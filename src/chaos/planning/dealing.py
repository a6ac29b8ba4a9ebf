"""Deals equal shards out to servers of unequal pace so that the last one is done as early as possible.

Server n is done with c shards after start_n + c * shard_n seconds. Giving the next shard to whoever would
finish it earliest takes the K smallest of all finish times, which no other way of dealing out beats
(docs/planning.md, section 2). All arithmetic is exact: floats are rational numbers and are taken as such,
so equal finish times are ties and not a matter of rounding.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from chaos.core.errors import ChaosError

_ROUNDING = Fraction(1, 2**40)
"""More than the relative rounding error of `_divisible_level`, which is (N + 3) / 2**53 for N servers."""

_MARGIN = Fraction(1, 2**46)
"""By this part of it the start stays below the level that floats computed. Any value gives the same counts; a small
one leaves little to deal out one by one, and one that is too small is found out and raised."""


class Pace(NamedTuple):
    """How fast a server works off its shards. All exact."""

    start: Fraction
    """Seconds until it begins, 0 or more."""
    shard: Fraction
    """Seconds per shard, above 0."""

    def finish(self, count: int) -> Fraction:
        """Seconds until `count` shards are done; meaningful for counts above 0."""
        return self.start + count * self.shard

    def done_by(self, level: Fraction) -> int:
        """How many shards are done at `level` seconds."""
        return max(0, (level - self.start) // self.shard)


def deal(paces: Sequence[Pace | None], count: int) -> list[int]:
    """Shards per server; None gets 0. Ties go to the server listed first. O(N log N), whatever `count` is.

    ChaosError if there is something to deal out and nobody to take it.
    """
    counts = [0] * len(paces)
    usable = [(index, pace) for index, pace in enumerate(paces) if pace is not None]
    if count == 0:
        return counts
    if not usable:
        raise ChaosError(f"{count} shards and nobody to send them: name a donor with bandwidth to spare")
    keys = _Keys([pace for _, pace in usable])
    heap: list[tuple[int, int, int]] = []
    for at, ((index, _), start) in enumerate(zip(usable, _start([pace for _, pace in usable], count), strict=True)):
        counts[index] = start
        heap.append((keys.of(at, start + 1), at, index))
    heapq.heapify(heap)
    for _ in range(count - sum(counts)):
        _, at, index = heap[0]
        counts[index] += 1
        heapq.heapreplace(heap, (keys.of(at, counts[index] + 1), at, index))
    return counts


def makespan(paces: Sequence[Pace | None], counts: Sequence[int]) -> Fraction:
    """When the last of the servers that do anything is done; 0 if none does."""
    ends = [pace.finish(count) for pace, count in zip(paces, counts, strict=True) if pace is not None and count]
    return max(ends, default=Fraction(0))


def lower_bound(times: Sequence[tuple[float, float]], count: int) -> Fraction:
    """Seconds below which no dealing out of `count` > 0 shards can be done, given (start, shard) per server.

    As if shards were divisible; rounding is on the safe side.
    """
    return Fraction(_divisible_level(times, count)) * (1 - _ROUNDING)


class _Keys:
    """Whole numbers in the order of finish times, equal where these are: cheaper to compare than fractions.

    Two different times with denominators p and q are at least 1 / (p q) apart. Scaled by 2 p q and more they
    are at least 2 apart, so rounding down keeps their order.
    """

    def __init__(self, paces: Sequence[Pace]) -> None:
        self._over: list[tuple[int, int, int]] = []
        for start, shard in paces:
            below = math.lcm(start.denominator, shard.denominator)
            first = start.numerator * (below // start.denominator)
            self._over.append((first, shard.numerator * (below // shard.denominator), below))
        self._shift = 2 * max(below for _, _, below in self._over).bit_length() + 1

    def of(self, at: int, count: int) -> int:
        start, shard, below = self._over[at]
        return (start + count * shard << self._shift) // below


def _start(paces: Sequence[Pace], count: int) -> list[int]:
    """Counts that the greedy reaches in any case: what is done by some level, if that is no more than `count`.

    Fewer than N shards are left to deal out one by one if the level is that of divisible work.
    """
    level = Fraction(_divisible_level([(float(pace.start), float(pace.shard)) for pace in paces], count))
    margin = _MARGIN
    while True:
        below = level * (1 - margin)
        counts = [pace.done_by(below) for pace in paces]
        if sum(counts) <= count:
            return counts
        margin *= 2**10  # At 1 and more nobody has done anything, so this ends.


def _divisible_level(times: Sequence[tuple[float, float]], count: int) -> float:
    """Were shards divisible, all servers in use would be done at one level T: sum (T - start) / shard = count."""
    level, speed, head_start = math.inf, 0.0, 0.0
    for start, shard in sorted(times):
        if start >= level:
            break
        speed += 1 / shard
        head_start += start / shard
        level = (count + head_start) / speed
    return level
