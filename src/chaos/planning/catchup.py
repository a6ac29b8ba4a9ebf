"""How a joiner catches up with a run that goes on: by replaying what it missed, or by letting the others wait.

'replay': the donors take a snapshot now; while the joiner pulls it, the results of the steps since queue up
at the joiner, which then applies them faster than new ones come. Nobody waits for it.
'ranges': the same with the state cut into ranges that are snapshot one after the other. Results of a range are
needed from its own snapshot on only, so less of the joiner's link goes into results. 'replay' is one range.
'late': the joiner gets ready first; then the members take a snapshot and pause until it has arrived.

A pause costs every member, a longer way in only the joiner. So 'late' is chosen only where the others can't work,
unless the caller allows it where it costs the members less. The formulas are worked out in docs/planning.md,
section 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from chaos.core.errors import ChaosError

MOST_RANGES = 64
NEARLY, SPARE = 0.9, 2
"""So much of the room for results may fill before the members are asked to wait, and so many results have to fit in
still: the steps that are open when they hear of it."""
NEAR = 1.05
"""Of two numbers of ranges the smaller is taken if its delay is within this factor: each snapshot costs the members
a copy, and the estimates are no better than that."""

_ROUNDING = 1e-12
"""Relative error of floats that must not count as one result more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCosts:
    """What is measured or known about a join. ChaosError if a number is not finite or out of range."""

    state_bytes: int
    result_bytes: int
    """Bytes of one step's result, as they travel."""
    step_s: float
    """Seconds from one step of the run to the next."""
    downlink: float
    """The joiner's usable bandwidth in B/s."""
    donors_bandwidth: float
    """Sum of what the donors can send in B/s, on top of what training uses."""
    queue_bytes: int
    """Limit of the joiner's queue of results."""
    replay_s: float
    """Seconds the joiner takes to apply one result."""
    obstacle: str = ""
    """Why results can't be replayed whatever the figures say; empty: they can."""
    ranges: int = 1
    """Into so many ranges the state may be cut at most: 1 if optimizer or donors can't do ranges."""
    offer_s: float = 0.0
    """Seconds from asking for a snapshot, or one of a range, until the first byte of it comes."""
    members: int = 0
    """Members whose step time is that of their uplinks, all alike, so that results for the joiner slow them down.
    0: results travel beside the training without slowing it, or it isn't known."""
    may_pause: bool = False
    """Take 'late' also where it merely costs the members less."""

    def __post_init__(self) -> None:
        for field in ("state_bytes", "result_bytes", "step_s", "downlink", "donors_bandwidth", "queue_bytes"):
            value = getattr(self, field)
            if not 0 < value < math.inf:
                raise ChaosError(f"cannot plan a join with {field} = {value}: give a number above 0")
        for field in ("replay_s", "offer_s", "members"):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                raise ChaosError(f"cannot plan a join with {field} = {value}: give 0 or more")
        if not 1 <= self.ranges <= MOST_RANGES:
            raise ChaosError(f"cannot plan a join with ranges = {self.ranges}: give 1 to {MOST_RANGES}")


@dataclass(frozen=True, slots=True)
class CatchUp:
    """The decision, its reason in one sentence, and what to expect."""

    mode: Literal["replay", "ranges", "late"]
    reason: str
    delay_s: float
    """Seconds from asking for the (first) snapshot until the joiner has caught up."""
    pause_s: float
    """Seconds for which the members wait."""
    shares: tuple[float, ...] = (1.0,)
    """Part of the state in each range, in the order of their snapshots; they add up to 1."""
    members_lose_s: float = 0.0
    """Seconds of work that each member loses: by the pause, or as results for the joiner share its uplink."""


def choose(costs: JoinCosts) -> CatchUp:
    """'replay' or 'ranges' if the optimizer allows it, the link carries it, the queue holds it and it gains on the run.

    Of the numbers of ranges that can work the one with the least delay, or a smaller one that is nearly as good.
    """
    link = min(costs.downlink, costs.donors_bandwidth)
    needed = costs.result_bytes / costs.step_s
    if costs.obstacle:
        return _late(costs, costs.obstacle)
    if needed >= link:
        return _late(costs, f"results alone need {needed:.3g} B/s of a link of {link:.3g} B/s")
    if costs.replay_s >= costs.step_s:
        return _late(
            costs,
            f"applying a result takes {costs.replay_s:.3g} s and the run makes one in {costs.step_s:.3g} s",
        )
    courses = [_course(costs, number) for number in range(1, costs.ranges + 1)]
    possible = [course for course in courses if course.queued <= costs.queue_bytes]
    if not possible:
        least = min(courses, key=lambda course: course.queued)
        return _late(costs, _too_much(costs, least))
    best_s = min(course.delay_s for course in possible)
    chosen = next(course for course in possible if course.delay_s <= NEAR * best_s)
    late = _late(costs, f"the members would lose {chosen.members_lose_s:.3g} s by streaming results")
    if costs.may_pause and late.members_lose_s < chosen.members_lose_s:
        return late
    return _by_results(costs, courses[0], chosen)


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """How far a learner is while a snapshot comes, or is being followed by its results."""

    left_bytes: int
    """Of the snapshot, still to come."""
    waiting: int
    """Results since the snapshot, here or not."""
    room: int
    """So many may wait, here and at the members together."""
    lag: int
    """Of those waiting, results that are not here."""
    kept: int
    """So many of these the members keep."""
    result_bytes: int
    link: float
    """B/s that come of snapshot and results together, as measured; 0: not known."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The members are to wait for so long while the rest comes, and why."""

    pause_s: float
    reason: str


def wait_for_rest(backlog: Backlog, limit_s: float) -> Wait | None:
    """Have the members wait once the room for results is nearly full, for no longer than the rest takes to come.

    None while there is room, and where it would be of no use: the rest takes longer than they wait at most, or results
    are lost already.
    """
    full = backlog.left_bytes > 0 and _is_nearly(backlog.waiting, backlog.room)
    late = _is_nearly(backlog.lag, backlog.kept)
    lost = backlog.waiting > backlog.room or backlog.lag > backlog.kept
    if not (full or late) or lost or backlog.link <= 0:
        return None
    pause_s = (backlog.left_bytes + backlog.lag * backlog.result_bytes) / backlog.link
    if pause_s > limit_s:
        return None
    which = f"{backlog.waiting} of {backlog.room} results wait" if full else f"it lags {backlog.lag} results"
    rest = f"{backlog.left_bytes} bytes of the state" if backlog.left_bytes else "results"
    return Wait(pause_s, f"{which}; the members pause for about {pause_s:.3g} s while the last {rest} come")


def _is_nearly(count: int, room: int) -> bool:
    """Whether so little room is left. Where there is room for a few only, a lag of some steps says nothing."""
    return room > 4 * SPARE and count >= min(NEARLY * room, room - SPARE)


@dataclass(frozen=True, slots=True)
class _Course:
    """How a join with so many ranges goes."""

    shares: tuple[float, ...]
    transfer_s: float
    """Until the last byte of state, waiting for snapshots included."""
    missed: int
    """Results, or parts of them, that come while the ranges they belong to travel, counted in steps per range."""
    queued: float
    """Most bytes of results that wait at a time."""
    drain_s: float
    """From the last byte of state until all waiting results are applied."""
    members_lose_s: float

    @property
    def delay_s(self) -> float:
        return self.transfer_s + self.drain_s


def _course(costs: JoinCosts, number: int) -> _Course:
    """Ranges such that each takes the same time, which is the least in sum (docs/planning.md, section 6)."""
    link = min(costs.downlink, costs.donors_bandwidth)
    part = costs.result_bytes / costs.step_s / link  # of the link that all results take; below 1
    busy = costs.replay_s / costs.step_s  # of the joiner's time that replaying takes; below 1
    ratio = (1 - part) ** (-1 / number)
    each_s = costs.state_bytes / (link * part) * (ratio - 1)
    steps = math.ceil(each_s / costs.step_s * (1 - _ROUNDING))
    here, waiting, queued, lost = 0.0, 0.0, 0.0, 0.0
    shares: list[float] = []
    for _ in range(number):
        last = len(shares) == number - 1
        share = 1 - here if last else ratio ** -len(shares) * (1 - 1 / ratio) / part
        # `waiting` counts results that are to be applied, in parts of whole ones.
        spare_s = (costs.offer_s + each_s) * (1 - busy * here)
        waiting = max(0.0, waiting - spare_s / costs.replay_s) if costs.replay_s else 0.0
        here += share
        waiting += steps * share
        queued = max(queued, waiting * costs.result_bytes * (1 - _ROUNDING))
        lost += each_s * _slowdown(costs.members, here)
        shares.append(share)
    return _Course(
        shares=tuple(shares),
        transfer_s=number * (costs.offer_s + each_s),
        missed=steps,
        queued=queued,
        drain_s=waiting * costs.replay_s / (1 - busy),
        members_lose_s=lost,
    )


def _slowdown(members: int, share: float) -> float:
    """Part of a member's time that is lost while it streams this share of each result to one joiner.

    A member's uplink carries 2 (N - 1) / N results per step, and then share / N more.
    """
    if members < 2:
        return 0.0
    more = share / (2 * (members - 1))
    return more / (1 + more)


def _too_much(costs: JoinCosts, least: _Course) -> str:
    text = f"{least.missed} results of {costs.result_bytes} bytes come while the snapshot does, "
    if len(least.shares) > 1:
        text = f"with {len(least.shares)} ranges {least.queued:.3g} bytes of results wait at a time, "
    return text + f"and the queue holds {costs.queue_bytes} bytes"


def _by_results(costs: JoinCosts, whole: _Course, chosen: _Course) -> CatchUp:
    """'replay' or 'ranges', with the reason in words."""
    number = len(chosen.shares)
    if number == 1:
        text = (
            f"the snapshot takes {chosen.transfer_s:.3g} s beside the results, and the {chosen.missed} results "
            f"that come meanwhile take {chosen.drain_s:.3g} s to replay"
        )
    else:
        text = (
            f"results take {costs.result_bytes / costs.step_s:.3g} B/s of the link, but those of a range only from its "
            f"own snapshot on: in {number} ranges the joiner has caught up after {chosen.delay_s:.3g} s, "
        )
        fits = whole.queued <= costs.queue_bytes
        text += f"with one snapshot after {whole.delay_s:.3g} s" if fits else _too_much(costs, whole)
    if chosen.members_lose_s:
        text += f"; each member loses {chosen.members_lose_s:.3g} s as it streams them"
    return CatchUp(
        mode="replay" if number == 1 else "ranges",
        reason=text,
        delay_s=chosen.delay_s,
        pause_s=0.0,
        shares=chosen.shares,
        members_lose_s=chosen.members_lose_s,
    )


def _late(costs: JoinCosts, why: str) -> CatchUp:
    """No results travel during the pause, so the snapshot has the link to itself."""
    pause_s = costs.offer_s + costs.state_bytes / min(costs.downlink, costs.donors_bandwidth)
    return CatchUp(
        mode="late",
        reason=f"{why}; so the members pause for about {pause_s:.3g} s while the snapshot travels",
        delay_s=pause_s,
        pause_s=pause_s,
        members_lose_s=pause_s,
    )
