"""Which donor sends how many shards of a snapshot, and how large a shard is.

With shards of one size s, donor n is done after

    l_n + c_n * (o_n + s / b_n)

seconds, where c_n is its number of shards, l_n its latency, o_n its cost per shard and b_n its rate. The
plan minimises the largest of these over the donors that send anything.

- For one size, giving the next shard to the donor that would finish it earliest is optimal: it takes the
  smallest values out of the union of the donors' (ascending) finish times.
- Sizes form a divisibility chain. Without costs per shard, whatever can be done with a size can be done with
  each of its divisors, so the smallest is best; with costs every size is tried.
- The joiner's downlink is not modelled shard by shard: it only bounds the finish from below, as if the
  donors' streams could share it without loss.
- The last shard may be shorter than the others and is charged in full.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.core.errors import ChaosError

MAX_SECONDS = 1e9
"""Bound of latencies and costs per shard (some 30 years): keeps sums of products finite."""

MAX_RATE = 1e15
"""Bound of bandwidths in B/s, for the same reason."""

_ROUNDING = 1e-12
"""Relative amount by which the closed-form start stays below the level it aims at. Far above the rounding
of its sums, so that it never hands out a shard that the greedy would have given to somebody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Donor:
    """A neighbour that serves shards. ChaosError if a number is negative, not finite or absurdly large."""

    name: str
    bandwidth: float
    """B/s towards the joiner, as measured, on top of what training uses. Less than 1 counts as none."""
    latency_s: float = 0.0
    """Seconds before its first byte can arrive, which for a busy donor includes the time until it is free."""
    overhead_s: float = 0.0
    """Seconds per shard, whatever its size."""
    cap: float | None = None
    """B/s that the donor is willing to spend; None: no cap."""

    def __post_init__(self) -> None:
        limits = (
            ("bandwidth", self.bandwidth, MAX_RATE),
            ("cap", 0.0 if self.cap is None else self.cap, MAX_RATE),
            ("latency", self.latency_s, MAX_SECONDS),
            ("cost per shard", self.overhead_s, MAX_SECONDS),
        )
        for what, value, limit in limits:
            if not 0 <= value <= limit:
                raise ChaosError(f"donor {self.name}: {what} is {value}, give a number from 0 to {limit:g}")

    @property
    def rate(self) -> float:
        """Usable bandwidth in B/s, 0.0 for a donor that can give nothing."""
        rate = self.bandwidth if self.cap is None else min(self.bandwidth, self.cap)
        return rate if rate >= 1.0 else 0.0

    def shard_s(self, shard_bytes: int) -> float:
        """Seconds that one shard of `shard_bytes` keeps the donor busy. Needs a rate above 0."""
        return self.overhead_s + shard_bytes / self.rate

    def finish_s(self, count: int, shard_bytes: int) -> float:
        """Seconds until `count` > 0 shards of `shard_bytes` have arrived. Needs a rate above 0."""
        return self.latency_s + count * self.shard_s(shard_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRequest:
    """What a joiner knows before it pulls. ChaosError if it makes no sense."""

    state_bytes: int
    chain: tuple[int, ...]
    """Admissible shard sizes in bytes, ascending; each divides the next."""
    donors: tuple[Donor, ...]
    downlink: float | None = None
    """The joiner's own B/s; None: unknown or no limit."""

    def __post_init__(self) -> None:
        if self.state_bytes <= 0:
            raise ChaosError(f"state of {self.state_bytes} bytes: there is nothing to plan, give its size")
        if not self.chain or self.chain[0] <= 0:
            raise ChaosError(f"shard sizes {self.chain}: give one or more sizes above 0 bytes")
        for smaller, larger in zip(self.chain, self.chain[1:], strict=False):
            if larger <= smaller or larger % smaller:
                raise ChaosError(f"shard sizes {smaller} and {larger}: list them ascending, each dividing the next")
        if self.downlink is not None and not 1.0 <= self.downlink <= MAX_RATE:
            raise ChaosError(f"downlink of {self.downlink} B/s: give a number from 1 to {MAX_RATE:g}")
        _check_donors(self.donors)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """How many shards each donor sends, and what to expect of it."""

    shard_bytes: int
    counts: dict[str, int]
    """Shards per donor's name, 0 for a donor that sends none; their sum is ceil(state / shard_bytes)."""
    finish_s: float
    """Seconds until the whole state has arrived, by the cost model."""
    limit_s: float
    """Seconds that no plan can beat: the state over the downlink or over the donors' summed rates."""
    reason: str


def plan(request: ShardRequest) -> ShardPlan:
    """The shard size and the counts with the earliest finish; of equal sizes the smaller one."""
    costly = any(donor.overhead_s > 0 for donor in request.donors)
    sizes = request.chain if costly else request.chain[:1]
    best_s, best_size, best_counts = math.inf, 0, [0]
    for size in sizes:
        counts = _greedy(request.donors, size, -(-request.state_bytes // size))
        finish_s = _makespan(request.donors, counts, size)
        if finish_s < best_s:
            best_s, best_size, best_counts = finish_s, size, counts

    pooled_s = request.state_bytes / sum(donor.rate for donor in request.donors)
    downlink_s = request.state_bytes / request.downlink if request.downlink else 0.0
    return ShardPlan(
        shard_bytes=best_size,
        counts={donor.name: count for donor, count in zip(request.donors, best_counts, strict=True)},
        finish_s=max(best_s, downlink_s),
        limit_s=max(pooled_s, downlink_s),
        reason=_reason(request, best_size, best_counts, best_s, downlink_s),
    )


def assign(shard_ids: Sequence[int], shard_bytes: int, donors: Sequence[Donor]) -> dict[str, tuple[int, ...]]:
    """Deals the given shards out to the donors, in consecutive runs of `shard_ids`, by the greedy counts.

    A joiner calls it once with all shards, and again with those still missing when a donor comes, slows down
    or goes. Every donor is in the answer, with () if it is to send nothing. ChaosError as for a request.
    """
    _check_donors(donors)
    if shard_bytes <= 0:
        raise ChaosError(f"shards of {shard_bytes} bytes: give a size above 0")
    if len(set(shard_ids)) != len(shard_ids):
        raise ChaosError("a shard is listed twice: name every missing shard once")
    runs: dict[str, tuple[int, ...]] = {}
    start = 0
    for donor, count in zip(donors, _greedy(donors, shard_bytes, len(shard_ids)), strict=True):
        runs[donor.name] = tuple(shard_ids[start : start + count])
        start += count
    return runs


def _check_donors(donors: Sequence[Donor]) -> None:
    names = [donor.name for donor in donors]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ChaosError(f"donor {twice} is listed twice: give every donor a name of its own")
    if not any(donor.rate for donor in donors):
        listed = ", ".join(names) or "none listed"
        raise ChaosError(f"no donor has bandwidth to spare ({listed}): raise their caps or wait for others")


def _greedy(donors: Sequence[Donor], shard_bytes: int, count: int) -> list[int]:
    """Shards per donor; ties go to the donor listed first. Takes O(N log N), whatever the count."""
    counts = _start(donors, shard_bytes, count)
    heap = [(donor.finish_s(counts[index] + 1, shard_bytes), index) for index, donor in enumerate(donors) if donor.rate]
    heapq.heapify(heap)
    for _ in range(count - sum(counts)):
        index = heap[0][1]
        counts[index] += 1
        heapq.heapreplace(heap, (donors[index].finish_s(counts[index] + 1, shard_bytes), index))
    return counts


def _start(donors: Sequence[Donor], shard_bytes: int, count: int) -> list[int]:
    """Counts that the greedy reaches in any case: what is done just before divisible work would all be.

    Were shards divisible, all donors in use would finish at one level T, with sum (T - l_n) / t_n = count.
    Whole shards that finish before T are at most `count`, so they are among the `count` earliest.
    """
    usable = [index for index, donor in enumerate(donors) if donor.rate]
    level, speed, head_start = math.inf, 0.0, 0.0
    for index in sorted(usable, key=lambda index: donors[index].latency_s):
        donor = donors[index]
        if donor.latency_s >= level:
            break
        speed += 1 / donor.shard_s(shard_bytes)
        head_start += donor.latency_s / donor.shard_s(shard_bytes)
        level = (count + head_start) / speed
    level *= 1 - _ROUNDING
    counts = [0] * len(donors)
    for index in usable:
        counts[index] = max(0, int((level - donors[index].latency_s) / donors[index].shard_s(shard_bytes)))
    return counts


def _makespan(donors: Sequence[Donor], counts: Sequence[int], shard_bytes: int) -> float:
    return max(d.finish_s(c, shard_bytes) for d, c in zip(donors, counts, strict=True) if c)


def _reason(request: ShardRequest, size: int, counts: Sequence[int], donors_s: float, downlink_s: float) -> str:
    busy = [(d.finish_s(c, size), d.name) for d, c in zip(request.donors, counts, strict=True) if c]
    last = max(busy, key=lambda pair: pair[0])[1]
    text = f"{sum(counts)} shards of {size} bytes from {len(busy)} of {len(request.donors)} donors; "
    text += f"{last} is the last to finish, after {donors_s:.3f} s"
    if downlink_s > donors_s:
        text += f", but the joiner's downlink needs {downlink_s:.3f} s"
    return text
