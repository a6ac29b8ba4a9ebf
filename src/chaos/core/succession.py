"""Which view comes next: a pure function of the present one, what members reported, and what is wished for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from blake3 import blake3
from msgspec.structs import replace

from chaos.core.messages import Report
from chaos.core.types import MAX_SEATS, Abandoned, FirstLease, PeerInfo, View

MAX_ABANDONED = 64
"""So many lineages that were given up are remembered; a peer of an older one is refused instead of taken over."""


@dataclass
class Wishes:
    """What peers asked for or what befell them; every member keeps a copy, so that any can propose."""

    admit: dict[str, PeerInfo] = field(default_factory=dict)
    """Joiners that a member has checked."""
    ready: dict[str, int] = field(default_factory=dict)
    """Learners that hold the state, and how many samples each would like to hold in its first step."""
    leaving: dict[str, int] = field(default_factory=dict)
    """Members that want out, and the last step they took part in."""
    done: set[str] = field(default_factory=set)
    """Those of them whose script ended."""
    worker_down: set[str] = field(default_factory=set)
    """Members without a worker."""
    lost_learners: set[str] = field(default_factory=set)
    """Learners that are silent or gone."""
    links: dict[tuple[str, str], bool] = field(default_factory=dict)
    """Links that an end's operator wants made (True) or cut, where the view says otherwise."""
    shares: tuple[int, ...] | None = None
    """The sync plan that this member would propose for the present overlay; None while it has no opinion."""

    def clear(self) -> None:
        for wishes in (
            self.admit, self.ready, self.leaving, self.done, self.worker_down, self.lost_learners, self.links
        ):  # fmt: skip
            wishes.clear()
        self.shares = None

    def forget(self, view: View, before: View | None) -> None:
        """Drop what this installed view, which follows `before`, has settled."""
        members, known = set(view.member_ids()), {p.id: p for p in view.everybody()}
        self.admit = {
            peer: info
            for peer, info in self.admit.items()
            if peer not in known or known[peer].incarnation < info.incarnation
        }
        learners = {p.id for p in view.learners}
        same = {p.id for p in view.learners if before is not None and p in before.learners}
        self.ready = {peer: step for peer, step in self.ready.items() if peer in same}
        self.leaving = {peer: step for peer, step in self.leaving.items() if peer in members}
        self.done &= members
        self.worker_down &= members
        self.lost_learners &= learners
        self.links = {ends: made for ends, made in self.links.items() if made == (ends in view.cut)}
        self.shares = None

    def cut(self, view: View) -> tuple[tuple[str, str], ...]:
        """The links that are not to be in the view after this one; those of peers long gone are forgotten."""
        cut = {ends for ends in view.cut if view.knows(ends[0]) or view.knows(ends[1])}
        cut |= {ends for ends, made in self.links.items() if not made}
        return tuple(sorted(cut - {ends for ends, made in self.links.items() if made}))


def after_failure(base: View, reports: Mapping[str, Report], wishes: Wishes, cause: str) -> View | None:
    """The view without those who did not report, or whose worker died. Promotes nobody, admits nobody.

    Rounds of the old view are void; steps go on after the last one that any reporter finished.
    None if nobody would be left to train.
    """
    finished = max(report.finished for report in reports.values())
    reporters = [m for m in base.members if m.id in reports]
    members = tuple(m for m in reporters if m.id not in wishes.worker_down)
    if not members:
        return None
    demoted = tuple(m for m in reporters if m.id in wishes.worker_down)
    holders = [m for m in reporters if reports[m.id].finished == finished]
    sources = tuple(m.id for m in holders if m in members) or tuple(m.id for m in holders)
    lost = [m.name for m in base.members if m not in members]
    return View(
        lineage=base.lineage,
        id=base.id + 1,
        members=members,
        learners=base.learners + demoted,
        first_step=finished + 1,
        abort=True,
        sources=sources,
        reason=f"failure: without {', '.join(lost) or 'nobody'} ({cause})",
        start=base.start,
        min_peers=base.min_peers,
        abandoned=base.abandoned,
        cut=wishes.cut(base),
        straggler_limit_s=base.straggler_limit_s,
        first_leases=_renewed(_unfinished(base, reports), finished + 1),
    )


def forced(base: View, reports: Mapping[str, Report], wishes: Wishes, lineage: str) -> View | None:
    """The first view of a new lineage, made of those who report although they are no quorum of `base`.

    None if nobody would be left to train.
    """
    after = after_failure(base, reports, wishes, "forced by an operator")
    if after is None:
        return None
    given_up = (*base.abandoned, Abandoned(base.lineage, base.id))[-MAX_ABANDONED:]
    learners = tuple(p for p in after.learners if p.id not in wishes.lost_learners)
    return replace(after, lineage=lineage, id=_far_id(base, lineage), learners=learners, abandoned=given_up)


def _far_id(base: View, lineage: str) -> int:
    """Frames name their view by its id alone: two lineages that follow one view must not use the same ids."""
    drawn = int.from_bytes(blake3(lineage.encode()).digest(3), "big")
    return base.id + 1_000_000 + drawn


def planned(base: View, reports: Mapping[str, Report], wishes: Wishes, releasing: tuple[str, ...]) -> View:
    """The view with joiners admitted, ready learners promoted and leavers gone. All members of `base` report.

    Steps before `first_step` finish under the old view; nobody has opened one at or after it. What the old view
    left to be fetched from others is still to be fetched.
    """
    assert all(m.id in reports for m in base.members)
    admitted = sorted(wishes.admit.values(), key=lambda p: p.id)
    renewed = {p.id for p in admitted}
    promoted = [
        p for p in base.learners if p.id in wishes.ready and p.id not in wishes.lost_learners and p.id not in renewed
    ]
    members = tuple(m for m in base.members if m.id not in releasing) + tuple(promoted)
    member_ids = {m.id for m in members}
    kept = [
        p for p in base.learners if p.id not in member_ids and p.id not in renewed and p.id not in wishes.lost_learners
    ]
    learners = tuple(kept) + tuple(p for p in admitted if p.id not in member_ids)
    first_step = max(base.first_step, *(report.opened + 1 for report in reports.values()))
    view = View(
        lineage=base.lineage,
        id=base.id + 1,
        members=members,
        learners=learners,
        first_step=first_step,
        abort=False,
        sources=(),
        reason=_planned_reason(base, promoted, admitted, releasing, wishes),
        start=base.start,
        min_peers=base.min_peers,
        abandoned=base.abandoned,
        cut=wishes.cut(base),
        straggler_limit_s=base.straggler_limit_s,
        first_leases=_first_leases(base, reports, first_step, {p.id: wishes.ready[p.id] for p in promoted}),
    )
    return replace(view, cut=_without_isolating(base, view))


def _first_leases(
    base: View, reports: Mapping[str, Report], first_step: int, new: Mapping[str, int]
) -> tuple[FirstLease, ...]:
    """Those of steps that may still be tried again come first and unchanged, whoever has gone since: who stays may
    have computed what is theirs then."""
    leases = [*_unfinished(base, reports), *(FirstLease(first_step, peer, want) for peer, want in new.items())]
    return tuple(leases[:MAX_SEATS])


def _unfinished(base: View, reports: Mapping[str, Report]) -> list[FirstLease]:
    """Those of steps that somebody has not finished: who has may be lost, and the step is tried once more."""
    finished = min(report.finished for report in reports.values())
    return [lease for lease in base.first_leases if lease.step > finished]


def _renewed(leases: Iterable[FirstLease], first_step: int) -> tuple[FirstLease, ...]:
    """After a failure: who would have begun with a later step now begins with this one, after those that had before."""
    return tuple(replace(lease, step=min(lease.step, first_step)) for lease in leases)


def _without_isolating(base: View, view: View) -> tuple[tuple[str, str], ...]:
    """`view.cut` without the cuts of a newcomer that has none but cut links to those who were there before.

    It was there once, and came back over one of these links: cut off at once, it would be lost and let in for ever.
    """
    new = {p.id for p in view.everybody() if not base.knows(p.id)}
    old = [p.id for p in view.everybody() if p.id not in new]
    isolated = {peer for peer in new if all(view.is_cut(peer, other) for other in old)}
    return tuple(ends for ends in view.cut if isolated.isdisjoint(ends))


def _planned_reason(
    base: View,
    promoted: list[PeerInfo],
    admitted: list[PeerInfo],
    releasing: tuple[str, ...],
    wishes: Wishes,
) -> str:
    parts = [f"scale-out: {p.name} becomes a member" for p in promoted]
    parts += [f"{p.name} is admitted as learner" for p in admitted]
    parts += [f"scale-in: {m.name} leaves" for m in base.members if m.id in releasing]
    parts += [f"learner {p.name} is lost" for p in base.learners if p.id in wishes.lost_learners]
    names = {p.id: p.name for p in base.everybody()}
    if wishes.shares is not None and not wishes.links:
        parts.append("sync plan: it follows the links")
    for (a, b), made in sorted(wishes.links.items()):
        parts.append(f"{'connect' if made else 'disconnect'}-link: {names.get(a, a)} - {names.get(b, b)}")
    return "; ".join(parts) or "nothing left to change"
