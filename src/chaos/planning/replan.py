"""What to ask of whom from now on, when donors turn out slower or faster than planned, come or go.

A shard that was verified is in no plan any more. One that is still queued at its donor can be asked of another
instead; one that is on the wire comes anyway, and is asked of another only if waiting for it would cost more.
A plan that would save next to nothing is not made, so that estimates which waver don't move shards about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from chaos.core.errors import ChaosError
from chaos.planning.dealing import Pace, deal, makespan
from chaos.planning.shards import Donor

WORTH = 0.1
"""Part of the time to go that a change must save. A guess: measured rates of TCP waver by about as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A donor as the joiner sees it now."""

    donor: Donor
    """Its bandwidth as measured lately, 0.0 if it stalls, is gone or is not to be trusted."""
    queue: tuple[int, ...] = ()
    """Shards asked of it and not verified, in the order in which it sends them."""
    on_wire: int = 0
    """So many of the first in the queue are on their way and can't be called back."""
    may: frozenset[int] | None = None
    """What else it can be asked for, if it is another joiner: shards that it has, or gets before. None: anything."""

    def __post_init__(self) -> None:
        if not 0 <= self.on_wire <= len(self.queue):
            raise ChaosError(f"donor {self.donor.name}: {self.on_wire} shards on the wire of {len(self.queue)} asked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replan:
    """What to ask of each donor from now on, in place of what it was asked before."""

    asks: dict[str, tuple[int, ...]]
    """Per donor, in order. Shards on the wire are not named: asking for them would have them sent twice."""
    changed: bool
    """False: everybody's queue stays as it is, and nothing needs to be sent."""
    moved: tuple[int, ...]
    """Shards that were queued at another donor."""
    again: tuple[int, ...]
    """Shards on the wire that are asked of a second donor."""
    finish_s: float
    """Seconds until all is here, by this plan."""
    before_s: float
    """Seconds it would take if nothing changed; infinite if something would never come."""
    reason: str


def replan(missing: Sequence[int], shard_bytes: int, sources: Sequence[Source], worth: float = WORTH) -> Replan:
    """Deals out the `missing` shards (not verified) anew, if that saves at least the part `worth` of the time.

    ChaosError if shards are missing and no donor has bandwidth, or if something is listed twice.
    """
    _check(missing, shard_bytes, sources)
    sources = _trimmed(missing, sources)
    before_s = _before(missing, shard_bytes, sources)
    plan = tried = _Plan(missing, shard_bytes, sources, ())
    while (worst := tried.last_on_wire()) is not None:
        tried = _Plan(missing, shard_bytes, sources, (*tried.given_up, worst))
        if tried.finish < plan.finish * (1 - Fraction(worth)):
            plan = tried  # one of several that are as slow gains nothing, all of them may
    if float(plan.finish) >= before_s * (1 - worth):
        return _unchanged(sources, before_s, float(plan.finish))
    return _described(plan, before_s)


class _Plan:
    """One way of dealing out: what is on the wire stays where it is, but for donors that are given up."""

    def __init__(self, missing: Sequence[int], size: int, sources: Sequence[Source], given_up: tuple[int, ...]) -> None:
        self.sources = sources
        self.given_up = given_up
        self._each = [None if at in given_up else s.donor.pace(size) for at, s in enumerate(sources)]
        self._arrivals = self._on_wire()
        self.pool = [shard for shard in missing if shard not in self._arrivals]
        paces = [_pace(s, pace) for s, pace in zip(sources, self._each, strict=True)]
        self.counts = _deal(paces, sources, self.pool)
        self.finish = max([makespan(paces, self.counts), *(end for end, _ in self._arrivals.values())])

    def _on_wire(self) -> dict[int, tuple[Fraction, int]]:
        """When and from whom (its place) each shard on the wire of a donor that is not given up comes."""
        arrivals: dict[int, tuple[Fraction, int]] = {}
        for at, (source, pace) in enumerate(zip(self.sources, self._each, strict=True)):
            if pace is None:
                continue
            for place, shard in enumerate(source.queue[: source.on_wire], 1):
                arrival = (place * pace.shard, at)
                arrivals[shard] = min(arrival, arrivals.get(shard, arrival))
        return arrivals

    def last_on_wire(self) -> int | None:
        """The source whose shards on the wire the end waits for. None if it waits for others, or no other has all."""
        if not self._arrivals:
            return None
        end, worst = max(self._arrivals.values())
        able = [at for at, s in enumerate(self.sources) if s.may is None and self._each[at] is not None and at != worst]
        return worst if end == self.finish and able else None

    def asks(self) -> dict[str, tuple[int, ...]]:
        """Everybody keeps the head of its own queue up to its count; the rest is dealt out in runs.

        Those that can send only some shards choose first, and get theirs wherever they are queued now.
        """
        unclaimed = dict.fromkeys(self.pool)
        kept: list[list[int]] = [[] for _ in self.sources]
        order = sorted(range(len(self.sources)), key=lambda at: self.sources[at].may is None)
        for at in order:
            source, count = self.sources[at], self.counts[at]
            own = [shard for shard in source.queue[source.on_wire :] if shard in unclaimed][:count]
            for shard in own:
                del unclaimed[shard]
            if source.may is not None:
                more = [shard for shard in unclaimed if shard in source.may][: count - len(own)]
                own.extend(more)
                for shard in more:
                    del unclaimed[shard]
            kept[at] = own
        rest = iter(unclaimed)
        takers = [at for at, s in enumerate(self.sources) if s.may is None and self._each[at] is not None]
        for at in takers:
            kept[at].extend(list(islice(rest, max(0, self.counts[at] - len(kept[at])))))
        for shard in rest:  # two joiners may send it, and both counted on it
            at = min(takers, key=lambda at: len(kept[at]) - self.counts[at])
            kept[at].append(shard)
        return {source.donor.name: tuple(own) for source, own in zip(self.sources, kept, strict=True)}


def _deal(paces: Sequence[Pace | None], sources: Sequence[Source], pool: Sequence[int]) -> list[int]:
    """Counts by the greedy rule; a source that can send only some of the pool gets no more than those."""
    room = {at: sum(shard in s.may for shard in pool) for at, s in enumerate(sources) if s.may is not None}
    able = [None if room.get(at) == 0 else pace for at, pace in enumerate(paces)]
    full: dict[int, int] = {}
    while True:
        counts = deal(able, len(pool) - sum(full.values()))
        over = [at for at, most in room.items() if at not in full and counts[at] > most]
        if not over:
            return [full.get(at, count) for at, count in enumerate(counts)]
        for at in over:
            full[at] = room[at]
            able[at] = None


def _pace(source: Source, pace: Pace | None) -> Pace | None:
    """When it can begin with what is asked now: after what is on the wire, and not before the request is there."""
    if pace is None:
        return None
    return Pace(max(pace.start, source.on_wire * pace.shard), pace.shard)


def _before(missing: Sequence[int], size: int, sources: Sequence[Source]) -> float:
    """Seconds until all is here if queues are worked off as they are. A queue needs no new request."""
    arrivals: dict[int, float] = {}
    for source in sources:
        each = source.donor.shard_s(size) if source.donor.rate else math.inf
        for place, shard in enumerate(source.queue, 1):
            arrivals[shard] = min(place * each, arrivals.get(shard, math.inf))
    return max((arrivals.get(shard, math.inf) for shard in missing), default=0.0)


def _trimmed(missing: Sequence[int], sources: Sequence[Source]) -> list[Source]:
    """Without shards that have come from elsewhere in the meantime."""
    wanted = set(missing)
    return [
        Source(
            donor=s.donor,
            queue=tuple(shard for shard in s.queue if shard in wanted),
            on_wire=sum(shard in wanted for shard in s.queue[: s.on_wire]),
            may=s.may,
        )
        for s in sources
    ]


def _check(missing: Sequence[int], shard_bytes: int, sources: Sequence[Source]) -> None:
    if shard_bytes <= 0:
        raise ChaosError(f"shards of {shard_bytes} bytes: give a size above 0")
    if len(set(missing)) != len(missing):
        raise ChaosError("a shard is listed twice: name every missing shard once")
    names = [source.donor.name for source in sources]
    if len(set(names)) != len(names):
        raise ChaosError("a donor is listed twice: give every donor a name of its own")
    if missing and not any(source.donor.rate for source in sources if source.may is None):
        raise ChaosError(f"{len(missing)} shards are missing and no donor sends anything: find others")


def _unchanged(sources: Sequence[Source], before_s: float, finish_s: float) -> Replan:
    return Replan(
        asks={s.donor.name: s.queue[s.on_wire :] for s in sources},
        changed=False,
        moved=(),
        again=(),
        finish_s=before_s,
        before_s=before_s,
        reason=f"left as it is: {before_s:.3f} s to go, and {finish_s:.3f} s with the best change",
    )


def _described(plan: _Plan, before_s: float) -> Replan:
    asks = plan.asks()
    was = {shard: s.donor.name for s in plan.sources for shard in s.queue[s.on_wire :]}
    wire = {shard for s in plan.sources for shard in s.queue[: s.on_wire]}
    moved = [shard for name, shards in asks.items() for shard in shards if was.get(shard, name) != name]
    again = [shard for shards in asks.values() for shard in shards if shard in wire]
    late = [plan.sources[at].donor.name for at in plan.given_up]
    idle = [s.donor.name for s in plan.sources if not s.donor.rate and s.queue]
    parts = [f"{len(plan.pool)} shards dealt out, {len(moved)} of them asked of others before"]
    parts += [f"nothing comes from {', '.join(idle)}"] if idle else []
    parts += [f"{len(again)} on the wire from {', '.join(late)} are asked again"] if late else []
    parts.append(f"{float(plan.finish):.3f} s to go" + (f" instead of {before_s:.3f} s" if before_s < math.inf else ""))
    return Replan(
        asks=asks,
        changed=True,
        moved=tuple(sorted(moved)),
        again=tuple(sorted(again)),
        finish_s=float(plan.finish),
        before_s=before_s,
        reason="; ".join(parts),
    )
