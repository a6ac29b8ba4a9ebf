"""Several joiners at once: who sends which shard to whom, so that joiners serve each other what they have verified.

A shard that no joiner has goes from the donors to one joiner first, who relays it to the others. After that each
copy comes from the donors or from a joiner who has the shard: from whoever would be done earliest with it. Shards
with the fewest holders are planned first, as they leave the least choice. Where no joiner has anything yet this
comes, up to a few shards, to the least time that is possible (docs/planning.md, section 5),

    max(S / narrowest downlink,  S / donors' uplinks,  k S / (donors' uplinks + joiners' uplinks))

for k joiners and S bytes. Given the same input every peer computes the same plan. Latencies are not modelled.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from chaos.core.errors import ChaosError
from chaos.planning.shards import MAX_BYTES, MAX_RATE, Donor

MOST_UNITS = 2048
"""Runs of shards that are planned as one: bounds the time a plan takes. A relay then lags by one such run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joiner:
    """Somebody who pulls the snapshot. ChaosError if a number makes no sense."""

    name: str
    uplink: float
    """B/s that it can send to other joiners; 0.0: it relays nothing."""
    downlink: float | None = None
    """B/s; None: unknown or no limit."""
    holds: frozenset[int] = frozenset()
    """Shards that it has verified."""

    def __post_init__(self) -> None:
        if not 0 <= self.uplink <= MAX_RATE:
            raise ChaosError(f"joiner {self.name}: uplink is {self.uplink}, give a number from 0 to {MAX_RATE:g}")
        if self.downlink is not None and not 1 <= self.downlink <= MAX_RATE:
            raise ChaosError(f"joiner {self.name}: downlink is {self.downlink}, give a number from 1 to {MAX_RATE:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Who asks whom for what."""

    asks: dict[str, dict[str, tuple[int, ...]]]
    """Per joiner and sender: shards in the order in which to ask for them. A relay serves them as it gets them."""
    finish_s: float
    """Seconds for which the busiest link sends or receives. Latencies and the relays' lag come on top."""
    limit_s: float
    """Seconds that no plan can beat: the largest of the three bounds, for what is still wanted."""
    reason: str


def plan(count: int, shard_bytes: int, donors: Sequence[Donor], joiners: Sequence[Joiner]) -> Together:
    """Who asks whom for the shards 0 to `count` - 1 that it doesn't hold. Donors hold all of them.

    ChaosError if a number makes no sense, a name is used twice, or no donor has bandwidth.
    """
    _check(count, shard_bytes, donors, joiners)
    pool = sum(donor.rate for donor in donors)
    board = _Board(pool, joiners)
    copies: list[_Copy] = []
    for unit in _units(count, joiners):
        copies += board.place(unit)
    senders = _Senders(donors)
    asks: dict[str, dict[str, list[int]]] = {joiner.name: {} for joiner in joiners}
    for copy in sorted(copies, key=lambda copy: not copy.first):  # What will be relayed leaves the donors first.
        name = joiners[copy.sender].name if copy.sender is not None else senders.next(len(copy.shards))
        asks[joiners[copy.to].name].setdefault(name, []).extend(copy.shards)
    wanted = [count - len(joiner.holds) for joiner in joiners]
    downlinks = [n * shard_bytes / j.downlink for n, j in zip(wanted, joiners, strict=True) if j.downlink]
    finish_s = max([board.busiest() * shard_bytes, *downlinks])
    limits = {
        "the donors' uplinks": board.fresh * shard_bytes / pool,
        "all uplinks together": sum(wanted) * shard_bytes / (pool + sum(joiner.uplink for joiner in joiners)),
        "the narrowest downlink": max(downlinks, default=0.0),
    }
    narrow = max(limits, key=lambda name: limits[name])
    from_joiners = sum(len(copy.shards) for copy in copies if copy.sender is not None)
    return Together(
        asks={to: {name: tuple(shards) for name, shards in of.items()} for to, of in asks.items()},
        finish_s=finish_s,
        limit_s=limits[narrow],
        reason=f"{from_joiners} of {sum(wanted)} copies come from joiners; {finish_s:.3f} s, "
        f"and {narrow} alone would take {limits[narrow]:.3f} s",
    )


@dataclass(frozen=True, slots=True)
class _Unit:
    """Consecutive shards that the same joiners hold."""

    shards: range
    holders: tuple[int, ...]
    """Places of joiners."""


@dataclass(frozen=True, slots=True)
class _Copy:
    shards: range
    to: int
    sender: int | None
    """Place of a joiner; None: the donors."""
    first: bool
    """The receiver relays it."""


class _Board:
    """How long everybody's uplink is busy already."""

    def __init__(self, pool: float, joiners: Sequence[Joiner]) -> None:
        self._rates: dict[int | None, float] = {None: pool}
        self._rates |= {at: joiner.uplink for at, joiner in enumerate(joiners) if joiner.uplink >= 1}
        self._load: dict[int | None, int] = dict.fromkeys(self._rates, 0)
        self._number = len(joiners)
        self.fresh = 0
        """Shards that have to leave the donors at least once."""

    def _end(self, sender: int | None, shards: int) -> float:
        """When it would be done with so many more; per byte of a shard."""
        return (self._load[sender] + shards) / self._rates[sender]

    def place(self, unit: _Unit) -> list[_Copy]:
        """Finds a sender for every joiner that wants the unit. The one with the idlest uplink gets it first."""
        wanting = [at for at in range(self._number) if at not in unit.holders]
        able: list[int | None] = [None, *(at for at in unit.holders if at in self._rates)]
        if len(able) == 1 and wanting:
            self.fresh += len(unit.shards)
        relays = [at for at in wanting if at in self._rates] if len(wanting) > 1 else []
        relay = min(relays, key=lambda at: self._end(at, len(unit.shards)), default=None)
        copies: list[_Copy] = []
        for to in sorted(wanting, key=lambda at: at != relay):
            sender = min(able, key=lambda at: self._end(at, len(unit.shards)))
            self._load[sender] += len(unit.shards)
            copies.append(_Copy(unit.shards, to, sender, to == relay))
            if to == relay:
                able.append(relay)
        return copies

    def busiest(self) -> float:
        """When the last uplink is done; seconds per byte of a shard."""
        return max(self._end(sender, 0) for sender in self._rates)


class _Senders:
    """Spreads what the donors send over them by their rates, in turns."""

    def __init__(self, donors: Sequence[Donor]) -> None:
        self._donors = [donor for donor in donors if donor.rate]
        self._sent = [0] * len(self._donors)
        self._heap = [(1 / donor.rate, at) for at, donor in enumerate(self._donors)]
        heapq.heapify(self._heap)

    def next(self, shards: int) -> str:
        _, at = self._heap[0]
        self._sent[at] += shards
        heapq.heapreplace(self._heap, ((self._sent[at] + shards) / self._donors[at].rate, at))
        return self._donors[at].name


def _units(count: int, joiners: Sequence[Joiner]) -> list[_Unit]:
    """Runs of at most count / MOST_UNITS shards with the same holders; those with the fewest holders first."""
    longest = -(-count // MOST_UNITS)
    units: list[_Unit] = []
    start = 0
    holders = _holders(0, joiners)
    for shard in range(1, count + 1):
        following = _holders(shard, joiners) if shard < count else None
        if following != holders or shard - start == longest:
            units.append(_Unit(range(start, shard), holders))
            start, holders = shard, following or ()
    return sorted(units, key=lambda unit: len(unit.holders))


def _holders(shard: int, joiners: Sequence[Joiner]) -> tuple[int, ...]:
    return tuple(at for at, joiner in enumerate(joiners) if shard in joiner.holds)


def _check(count: int, shard_bytes: int, donors: Sequence[Donor], joiners: Sequence[Joiner]) -> None:
    if count < 1 or not 1 <= shard_bytes <= MAX_BYTES:
        raise ChaosError(f"{count} shards of {shard_bytes} bytes: there is nothing to plan, give both above 0")
    names = [*(donor.name for donor in donors), *(joiner.name for joiner in joiners)]
    if len(set(names)) != len(names) or not joiners:
        raise ChaosError(f"donors and joiners {', '.join(names)}: give at least one joiner, and each a name of its own")
    for joiner in joiners:
        if any(not 0 <= shard < count for shard in joiner.holds):
            raise ChaosError(f"joiner {joiner.name} holds a shard beyond the {count} there are: plan per snapshot")
    if not any(donor.rate for donor in donors):
        raise ChaosError("no donor has bandwidth to spare: raise their caps or wait for others")
