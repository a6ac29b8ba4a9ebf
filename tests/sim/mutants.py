"""Planted bugs: each breaks one rule of the core, and the simulator has to notice.

`python -m tests.sim.mutants` prints a line for each: the promise that caught it and within how many seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import pytest

from chaos.core import agreement, inbox, lineage, pause, quorum, succession, views
from chaos.core.agreement import Acceptor, Proposal
from chaos.core.context import Context, Role
from chaos.core.donor import Donor
from chaos.core.learner import Learner
from chaos.core.liveness import Liveness
from chaos.core.messages import LastWords, Pause, Sealed
from chaos.core.node import Node
from chaos.core.results import Results
from chaos.core.steps import Steps
from chaos.core.types import Lease
from chaos.core.views import Views
from chaos.core.worker_desk import WorkerDesk
from chaos.sim.duels import DuelRun
from chaos.sim.reducer import Reducer
from chaos.sim.runs import RandomRun, Run, Violation, finish
from tests.sim.stories import STORIES, Story

Patch = pytest.MonkeyPatch
SEEDS = 40
"""A mutant has to be caught within so many seeds."""
TOLD = 2
"""So many seeds tell the stories: they hardly differ."""


def set_quorum(patch: Patch, rule: Callable[..., bool]) -> None:
    for module in (agreement, pause):
        patch.setattr(module, "is_quorum", rule)


def quorum_is_half(patch: Patch) -> None:
    def half(view, agreeing, gone):
        weight = {p: w for p, w in quorum.weights(view).items() if p not in gone}
        return sum(w for p, w in weight.items() if p in agreeing) * 2 >= sum(weight.values()) - 1

    set_quorum(patch, half)


def quorum_is_whoever_answers(patch: Patch) -> None:
    set_quorum(patch, lambda view, agreeing, gone: bool(agreeing))


def quorum_with_the_dead(patch: Patch) -> None:
    """Who is proven gone still counts."""
    set_quorum(patch, lambda view, agreeing, gone: quorum.is_quorum(view, agreeing, ()))


def learners_vote(patch: Patch) -> None:
    def counted(view, agreeing, gone):
        heard = [*agreeing, *(p.id for p in view.learners)]
        everybody = [*view.member_ids(), *(p.id for p in view.learners)]
        present = [p for p in everybody if p not in gone]
        return 2 * sum(p in heard for p in present) > len(present)

    set_quorum(patch, counted)


def promise_does_not_bind(patch: Patch) -> None:
    """An acceptor promises and accepts whatever comes."""

    def promise(self, ballot):
        self.promised = ballot
        return True

    patch.setattr(Acceptor, "promise", promise)


def accepted_values_are_ignored(patch: Patch) -> None:
    patch.setattr(Proposal, "recovered", lambda self: None)


def words_without_votes(patch: Patch) -> None:
    """What was promised and accepted is forgotten at death."""
    patch.setattr(Acceptor, "words", lambda self, run, me, inc: LastWords(run, me, inc, self.view, None, None))


def words_of_the_dead_are_not_read(patch: Patch) -> None:
    patch.setattr(Proposal, "already_decided", lambda self: None)
    patch.setattr(Proposal, "_relevant", lambda self: [])


def words_are_not_written(patch: Patch) -> None:
    patch.setattr(Views, "_persist", lambda self, acceptor: None)


def reset_is_death(patch: Patch) -> None:
    """A lost link is taken for last words."""

    def down(self, peer, reason):
        ctx = self._ctx
        if ctx.views and (info := ctx.view.member(peer)) is not None:
            words = LastWords(ctx.run, peer, info.incarnation, ctx.view, None, None)
            self._node.views.add_gone(Sealed(b"", b"\0" * 64), words)

    patch.setattr(Liveness, "on_link_down", down)


def promise_opens_no_gate(patch: Patch) -> None:
    """After its promise a member opens and finishes steps that its report does not name."""
    patch.setattr(Steps, "hold", lambda self, freeze: None)


def failure_does_not_freeze(patch: Patch) -> None:
    hold = Steps.hold
    patch.setattr(Steps, "hold", lambda self, freeze: hold(self, False))


def report_names_less(patch: Patch) -> None:
    """The last finished step is not reported: it runs a second time."""
    report = Steps.report
    patch.setattr(
        Steps, "report", lambda self: msgspec.structs.replace(report(self), finished=max(0, self.finished - 1))
    )


def failure_view_forgets_the_finished(patch: Patch) -> None:
    original = views.after_failure

    def forget(base, reports, wishes, cause):
        view = original(base, reports, wishes, cause)
        return view and msgspec.structs.replace(view, first_step=max(1, view.first_step - 1))

    patch.setattr(views, "after_failure", forget)


def stable_without_acks(patch: Patch) -> None:
    def update(self):
        if self._ctx.views and self.finished > self.stable:
            self.stable = self.finished
            self._node.on_stable(self.stable)
        self.release()

    patch.setattr(Steps, "_update_stable", update)


def stable_by_majority(patch: Patch) -> None:
    def update(self):
        if self._ctx.views:
            acks = sorted(self._acks.get(p, 0) for p in self._ctx.view.member_ids())
            held = min(acks[len(acks) // 2] if acks else self.finished, self.finished)
            if held > self.stable:
                self.stable = held
                self._node.on_stable(held)
        self.release()

    patch.setattr(Steps, "_update_stable", update)


def results_are_released_at_once(patch: Patch) -> None:
    patch.setattr(WorkerDesk, "applied_floor", lambda self, finished: finished)
    release = Steps.release

    def early(self):
        kept, self.stable = self.stable, self.finished
        release(self)
        self.stable = kept

    patch.setattr(Steps, "release", early)


def leases_are_not_freed(patch: Patch) -> None:
    original = lineage.advance

    def keep(data, contributions):
        after = original(data, contributions)
        if after.kind != "shard" or after.epoch != data.epoch:
            return after
        gone = [lease for lease in data.leases if lease.peer not in contributions]
        taken = [(lease.start, lease.stop) for lease in gone]
        free = tuple(s for s in after.free if not any(a <= s[0] < b for a, b in taken))
        return msgspec.structs.replace(after, free=free, leases=after.leases + tuple(gone))

    patch.setattr(lineage, "advance", keep)


def used_samples_are_given_out_again(patch: Patch) -> None:
    original = lineage.advance

    def again(data, contributions):
        after = original(data, contributions)
        used = [(r.start, r.stop) for c in contributions.values() for r in c.ranges if r.epoch == after.epoch]
        return msgspec.structs.replace(after, free=tuple(sorted([*after.free, *used[:1]])))

    patch.setattr(lineage, "advance", again)


def a_sample_is_lost(patch: Patch) -> None:
    original = lineage.advance

    def lose(data, contributions):
        after = original(data, contributions)
        departed = {lease.peer for lease in data.leases} - set(contributions)
        return msgspec.structs.replace(after, free=after.free[1:]) if departed else after

    patch.setattr(lineage, "advance", lose)


def leases_overlap(patch: Patch) -> None:
    original = lineage.advance

    def overlap(data, contributions):
        after = original(data, contributions)
        return msgspec.structs.replace(
            after, leases=tuple(Lease(x.peer, max(0, x.start - (i > 0)), x.stop) for i, x in enumerate(after.leases))
        )

    patch.setattr(lineage, "advance", overlap)


def failures_revoke_first_leases(patch: Patch) -> None:
    """What new members have computed for an attempt that is void is not theirs in the next."""
    patch.setattr(succession, "_renewed", lambda leases, first_step: ())


def first_leases_of_the_gone_are_revoked(patch: Patch) -> None:
    """Those of who came in with them, or later, move up."""
    original = succession.after_failure

    def moved(base, *others):
        after = original(base, *others)
        if after is None:
            return None
        kept = tuple(lease for lease in after.first_leases if after.member(lease.peer) is not None)
        return msgspec.structs.replace(after, first_leases=kept)

    patch.setattr(views, "after_failure", moved)


def first_leases_end_with_the_first_to_finish(patch: Patch) -> None:
    """Their step is tried again if whoever had finished it is lost."""

    def finished_by_none(base, reports):
        most = max(report.finished for report in reports.values())
        return [lease for lease in base.first_leases if lease.step > most]

    patch.setattr(succession, "_unfinished", finished_by_none)


def parts_of_void_attempts_count(patch: Patch) -> None:
    """The bytes of another view's attempt are added to this one's.

    Planted in the data plane: `Steps._note` only books who takes part, and survivors say the same in both attempts.
    """
    receive = Reducer.receive

    def any_view(self, kind, src, view_id, step, parts):
        view = self._view_for(step)
        if kind == "contribution" and view is not None and view_id < view.id:
            view_id = view.id
        receive(self, kind, src, view_id, step, parts)

    patch.setattr(Reducer, "receive", any_view)


def unstable_snapshots(patch: Patch) -> None:
    """A snapshot is offered before its step is stable."""
    offer = Donor._offer

    def early(self):
        steps = self._node.steps
        kept, steps.stable = steps.stable, max(steps.stable, steps.finished)
        offer(self)
        steps.stable = kept

    patch.setattr(Donor, "_offer", early)


def rolled_back_members_go_on(patch: Patch) -> None:
    patch.setattr(Node, "heal", lambda self, reason: None)


def strangers_may_speak(patch: Patch) -> None:
    patch.setattr(inbox, "allowed", lambda ctx, src, message: True)


def nobody_takes_over(patch: Patch) -> None:
    """Only the first rank proposes, dead or not."""
    patch.setattr(Views, "_turn", lambda self: self._ctx.view.member_ids().index(self._ctx.id) * 10**6)


def nothing_is_repeated(patch: Patch) -> None:
    patch.setattr(Steps, "repeat", lambda self, peers: None)


def nobody_catches_up(patch: Patch) -> None:
    patch.setattr(Results, "catch_up", lambda self, still: None)
    patch.setattr(Results, "_fetch_missing", lambda self, view: None)


def planned_views_need_no_promises(patch: Patch) -> None:
    """A join voids the open step, as a failure would."""
    original = views.planned
    patch.setattr(views, "planned", lambda *args: msgspec.structs.replace(original(*args), abort=True))


def joins_stall(patch: Patch) -> None:
    """A learner that joins has everybody wait for its snapshot."""
    begin = Learner.restart

    def stall(self, reason):
        begin(self, reason)
        self._ctx.send_all(self._ctx.view.member_ids(), Pause(20.0))

    patch.setattr(Learner, "restart", stall)


def seats_have_no_incarnation(patch: Patch) -> None:
    """A restarted agent takes the seat that it had, and has forgotten what it promised and voted there.

    To take the newer incarnation for present alone breaks nothing: it only hides the old one's death until the
    heartbeats are missed, as it says nothing that members say.
    """
    decided, role = Node.decided, Views._role

    def back(self, view):
        ctx = self.ctx
        if not ctx.views and view.member(ctx.id) is not None:
            self.views.install(view)
        else:
            decided(self, view)

    def seated(self, view, was):
        return Role.MEMBER if view.member(self._ctx.id) is not None else role(self, view, was)

    patch.setattr(Context, "is_present", lambda self, peer, linked: True)
    patch.setattr(Node, "decided", back)
    patch.setattr(Views, "_role", seated)


def left_behind_and_unaware(patch: Patch) -> None:
    """Who is not in the new view goes on as a member of the old one."""
    install = Views.install

    def stay(self, view):
        mine = view.member(self._ctx.id) or view.learner(self._ctx.id)
        if mine is not None or self._ctx.role != Role.MEMBER:
            install(self, view)

    patch.setattr(Views, "install", stay)


MUTANTS: list[Callable[[Patch], None]] = [
    quorum_is_half, quorum_is_whoever_answers, quorum_with_the_dead, learners_vote, promise_does_not_bind,
    accepted_values_are_ignored, words_without_votes, words_of_the_dead_are_not_read, words_are_not_written,
    reset_is_death, promise_opens_no_gate, failure_does_not_freeze, report_names_less,
    failure_view_forgets_the_finished, stable_without_acks, stable_by_majority, results_are_released_at_once,
    leases_are_not_freed, used_samples_are_given_out_again, a_sample_is_lost, leases_overlap,
    failures_revoke_first_leases, first_leases_of_the_gone_are_revoked, first_leases_end_with_the_first_to_finish,
    parts_of_void_attempts_count, unstable_snapshots, rolled_back_members_go_on, strangers_may_speak,
    nobody_takes_over, nothing_is_repeated, nobody_catches_up, planned_views_need_no_promises, joins_stall,
    seats_have_no_incarnation, left_behind_and_unaware,
]  # fmt: skip


QUICK: dict[str, tuple[str, ...]] = {
    "words_are_not_written": ("I2", "I4"),
    "stable_without_acks": ("I3",),
    "stable_by_majority": ("I3",),
    "results_are_released_at_once": ("I3", "I4", "I5"),
    "leases_are_not_freed": ("I3",),
    "used_samples_are_given_out_again": ("I3",),
    "a_sample_is_lost": ("I3",),
    "leases_overlap": ("I3",),
    "failures_revoke_first_leases": ("I3",),
    "first_leases_of_the_gone_are_revoked": ("I3",),
    "first_leases_end_with_the_first_to_finish": ("I3",),
    "unstable_snapshots": ("I3",),
    "nobody_takes_over": ("I4",),
    "strangers_may_speak": ("I6", "I2", "I4", "crash"),
    "planned_views_need_no_promises": ("I5",),
    "joins_stall": ("I5",),
}
"""Those that a few runs suffice for, and the promises that may catch them."""


@dataclass(frozen=True)
class Caught:
    violation: Violation
    kind: str
    seeds: int


def hunt(mutant: Callable[[Patch], None], seeds: int = SEEDS) -> Caught | None:
    """The first violation with this bug planted, and how many seeds it took; None if it survives."""
    with pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        for seed in range(seeds):
            for name, run in runs_of(seed):
                violation = finish(run()).violation
                if violation is not None:
                    return Caught(violation, name, seed + 1)
    return None


def runs_of(seed: int) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Name and maker of each run of a seed: the stories, told anew by the first seeds only, then random ones."""
    for teller in STORIES if seed < TOLD else ():
        yield teller.__name__, lambda teller=teller: Story(teller, seed)  # type: ignore[misc]
    yield DuelRun.__name__, lambda: DuelRun(seed)
    yield RandomRun.__name__, lambda: RandomRun(seed)


def main() -> int:
    survived = 0
    for mutant in MUTANTS:
        caught = hunt(mutant)
        if caught is None:
            survived += 1
            print(f"{mutant.__name__:36} SURVIVED", flush=True)
        else:
            seen = (
                f"{caught.violation.promise} within {caught.seeds} seeds ({caught.kind}): {caught.violation.text[:80]}"
            )
            print(f"{mutant.__name__:36} caught   {seen}", flush=True)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
