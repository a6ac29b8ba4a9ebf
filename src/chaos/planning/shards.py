"""Which donor sends how many shards of a snapshot, and how large a shard is.

With shards of one size s, donor n is done after

    l_n + c_n * (o_n + s / b_n)

seconds, where c_n is its number of shards, l_n its latency, o_n its cost per shard and b_n its rate. The
plan minimises the largest of these over the donors that send anything. docs/planning.md has the proofs.

- For one size, `dealing.deal` is optimal: the next shard goes to the donor that would finish it earliest.
- Sizes form a divisibility chain. Without costs per shard, whatever can be done with a size can be done with
  each of its divisors, so the smallest is best; with costs every size is tried.
- The joiner's downlink bounds the finish from below, as if the donors' streams could share it without loss.
  `flow.plan` has it, and every other shared link, as a constraint.
- The last shard may be shorter than the others and is charged in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from chaos.core.errors import ChaosError
from chaos.planning.dealing import Pace, deal, lower_bound, makespan

MAX_SECONDS = 1e9
"""Bound of latencies and costs per shard (some 30 years): keeps sums of products finite."""

MAX_RATE = 1e15
"""Bound of bandwidths in B/s, for the same reason."""

SMALLEST, LARGEST = 2**16, 2**22
"""Shards of a snapshot. A smaller one costs more in headers and hashes (32 bytes each) than it saves; a larger one
takes a link of 10 Mbit/s more than the 5 s after which a silent donor is asked again."""
FEW_ENOUGH = 4096
"""Shards of one snapshot, as long as they are not larger than that: a plan of so many takes 5 ms, and the last of
them is 1/4096 of the state."""
MAX_BYTES = 2**63 - 1
"""Bound of states and shards."""


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

    def pace(self, shard_bytes: int) -> Pace | None:
        """Its exact pace with shards of this size; None for a donor that can give nothing."""
        rate = self.rate
        if not rate:
            return None
        above, below = rate.as_integer_ratio()
        return Pace(Fraction(self.latency_s), Fraction(self.overhead_s) + Fraction(shard_bytes * below, above))

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
        if not 0 < self.state_bytes <= MAX_BYTES:
            raise ChaosError(f"state of {self.state_bytes} bytes: give its size, 1 to {MAX_BYTES}")
        if not self.chain or self.chain[0] <= 0 or self.chain[-1] > MAX_BYTES:
            raise ChaosError(f"shard sizes {list(self.chain)}: give one or more sizes of 1 to {MAX_BYTES} bytes")
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


def shard_size(state_bytes: int) -> int:
    """The size of the shards in which a state of so many bytes is served, the same at every donor."""
    size = SMALLEST
    while size < LARGEST and size * FEW_ENOUGH < state_bytes:
        size *= 2
    return size


def plan(request: ShardRequest) -> ShardPlan:
    """The shard size and the counts with the earliest finish; of equal sizes the smaller one."""
    finish, size, counts = _best(request)
    pooled_s = request.state_bytes / sum(donor.rate for donor in request.donors)
    downlink_s = request.state_bytes / request.downlink if request.downlink else 0.0
    return ShardPlan(
        shard_bytes=size,
        counts={donor.name: count for donor, count in zip(request.donors, counts, strict=True)},
        finish_s=max(float(finish), downlink_s),
        limit_s=max(pooled_s, downlink_s),
        reason=_reason(request, size, counts, float(finish), downlink_s),
    )


def _best(request: ShardRequest) -> tuple[Fraction, int, list[int]]:
    """Finish, size and counts. Sizes whose lower bound is worse than what was found are not dealt out."""
    usable = [donor for donor in request.donors if donor.rate]
    sizes = request.chain if any(donor.overhead_s > 0 for donor in usable) else request.chain[:1]
    number = {size: -(-request.state_bytes // size) for size in sizes}
    times = {size: [(donor.latency_s, donor.shard_s(size)) for donor in usable] for size in sizes}
    found: list[tuple[Fraction, int, list[int]]] = []
    for bound, size in sorted((lower_bound(times[size], number[size]), size) for size in sizes):
        if found and bound > min(found)[0]:
            break
        paces = [donor.pace(size) for donor in request.donors]
        counts = deal(paces, number[size])
        found.append((makespan(paces, counts), size, counts))
    return min(found)


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
    counts = deal([donor.pace(shard_bytes) for donor in donors], len(shard_ids))
    for donor, count in zip(donors, counts, strict=True):
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


def _reason(request: ShardRequest, size: int, counts: Sequence[int], donors_s: float, downlink_s: float) -> str:
    busy = [(d.finish_s(c, size), d.name) for d, c in zip(request.donors, counts, strict=True) if c]
    last = max(busy, key=lambda pair: pair[0])[1]
    text = f"{sum(counts)} shards of {size} bytes from {len(busy)} of {len(request.donors)} donors; "
    text += f"{last} is the last to finish, after {donors_s:.3f} s"
    if downlink_s > donors_s:
        text += f", but the joiner's downlink needs {downlink_s:.3f} s"
    return text
