"""Which samples belong to whom: leases that change only by commits and views, the same way on every member.

A contribution says how many samples its worker would like to hold (`want`); the commit grants them from
the free positions in rank order. A new member's first ones are granted by the view that lets it in. A departed
member's leases fall back to the free positions with the first commit under a view without it, so that what it had not
committed is handed out again. So do those of a member whose worker was late: what that computes for the step counts
nowhere, and an epoch must not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from chaos.core.types import DataState, Lease, View
from chaos.core.worker_messages import Contribution

Span = tuple[int, int]


def normalise(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted, non-empty, merged where they touch or overlap."""
    merged: list[Span] = []
    for start, stop in sorted(s for s in spans if s[1] > s[0]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return tuple(merged)


def subtract(spans: Iterable[Span], taken: Iterable[Span]) -> tuple[Span, ...]:
    """What is left of `spans` without `taken`."""
    holes = normalise(taken)
    left: list[Span] = []
    for start, stop in normalise(spans):
        at = start
        for hole_start, hole_stop in holes:
            if hole_stop <= at or hole_start >= stop:
                continue
            if hole_start > at:
                left.append((at, hole_start))
            at = max(at, hole_stop)
        if at < stop:
            left.append((at, stop))
    return tuple(left)


def take(spans: Sequence[Span], count: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The first `count` positions of `spans`, and the rest."""
    taken: list[Span] = []
    rest: list[Span] = []
    for start, stop in spans:
        cut = min(stop, start + max(0, count))
        if cut > start:
            taken.append((start, cut))
            count -= cut - start
        if cut < stop:
            rest.append((cut, stop))
    return tuple(taken), tuple(rest)


def size(spans: Iterable[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def held(data: DataState, peer: str) -> tuple[Span, ...]:
    """Positions leased to `peer`, in ascending order."""
    return tuple((lease.start, lease.stop) for lease in data.leases if lease.peer == peer)


def declare(data: DataState, kind: str, samples: int) -> DataState:
    """The run's data becomes known. The first declaration counts; a later one changes nothing."""
    if data.kind != "none":
        return data
    free = ((0, samples),) if kind == "shard" and samples else ()
    return DataState(kind=kind, samples=samples, epoch=data.epoch, free=free)


def with_first_leases(data: DataState, view: View, step: int) -> DataState:
    """What contributions to `step` draw on, under `view`: `data` after the step before, and leases for new members.

    It depends on nothing that could differ between two attempts at the step: who computed samples in one that was
    void contributes them to the next.
    """
    for first in view.first_leases if data.kind == "shard" else ():
        if first.step == step:
            granted, free = take(data.free, first.want - size(held(data, first.peer)))
            leases = (*data.leases, *(Lease(first.peer, start, stop) for start, stop in granted))
            data = msgspec.structs.replace(data, free=free, leases=leases)
    return data


def advance(data: DataState, contributions: Mapping[str, Contribution]) -> DataState:
    """The data state after a commit of these contributions (of all members, keys in rank order)."""
    for contribution in contributions.values():
        if contribution.declares is not None:
            data = declare(data, *contribution.declares)
    if data.kind == "private":
        return _advance_private(data, contributions)
    if data.kind == "shard":
        return _advance_shard(data, contributions)
    return data


def _advance_shard(data: DataState, contributions: Mapping[str, Contribution]) -> DataState:
    leases = {peer: () if c.late else held(data, peer) for peer, c in contributions.items()}
    keep = {peer for peer, c in contributions.items() if not c.late}
    given_back = [(lease.start, lease.stop) for lease in data.leases if lease.peer not in keep]
    free = normalise([*data.free, *given_back])
    for peer, contribution in contributions.items():
        used = [(r.start, r.stop) for r in contribution.ranges if r.epoch == data.epoch]
        leases[peer] = subtract(leases[peer], used)
    epoch = data.epoch
    if not free and not any(leases.values()):
        epoch, free = epoch + 1, ((0, data.samples),)
    for peer, contribution in contributions.items():
        want = 0 if contribution.late else contribution.want
        granted, free = take(free, want - size(leases[peer]))
        leases[peer] = normalise([*leases[peer], *granted])
    rows = tuple(Lease(peer, start, stop) for peer, spans in leases.items() for start, stop in spans)
    return msgspec.structs.replace(data, epoch=epoch, free=free, leases=rows)


def _advance_private(data: DataState, contributions: Mapping[str, Contribution]) -> DataState:
    """An epoch of private data ends when every member has gone at least once through its own."""
    done = set(data.passes) | {peer for peer, c in contributions.items() if c.pass_done}
    passes = tuple(peer for peer in contributions if peer in done)
    if len(passes) == len(contributions) and passes:
        return msgspec.structs.replace(data, epoch=data.epoch + 1, passes=())
    return msgspec.structs.replace(data, passes=passes)
