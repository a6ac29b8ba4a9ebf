"""The node's side of its worker: feed it commits at each boundary, and let it go on when it is up to date."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from chaos.core.actions import ToWorker
from chaos.core.context import Context, Role
from chaos.core.departure import REFUSED
from chaos.core.lineage import OwnState
from chaos.core.types import Fingerprint, Layout, StateManifest
from chaos.core.worker_messages import (
    Boundary,
    Commit,
    Contribution,
    DeclareData,
    Declined,
    Failed,
    Finished,
    LoadState,
    PrepareSnapshot,
    Proceed,
    Register,
    SnapshotMissed,
    TakeSnapshot,
    Welcome,
)

if TYPE_CHECKING:
    from chaos.core.node import Node

STOP_ON_NONFINITE = "on_nonfinite=stop"
"""How the fingerprint's options spell that a non-finite gradient ends the run."""
BY_HAND_AND_SKIP = (
    "scripts that call run.sync() must make every update themselves, so none may be left out; "
    "found the run with --straggler wait"
)


COPY_RATE = 1e9
"""B/s at which a worker is taken to copy its state. Hosts do better, but not always while all their cores are full."""


@dataclass
class Worker:
    """What is known of the present worker process. A restarted one starts with a fresh record."""

    fingerprint: Fingerprint
    layout: Layout
    applied: int | None = None
    """The step its parameters will be at once it has obeyed; None until it was given the run's state."""
    holds: int = 0
    """The step it said itself that it stands at: results up to there were read, later ones may still be."""
    at_boundary: bool = False
    contributed: int = 0
    """The step that its script stands in: the contribution is made, the update is not; 0: none."""
    computing: int = 0
    """The step it was last told to compute a contribution for, as a member; 0: none."""
    handed: int = 0
    """The last step of whose contribution bytes were handed over while backward went on."""
    warmed: bool = False
    waits_since: float = 0.0
    """When it contributed last."""
    waited_s: float = 0.0
    """How long it waited for the commit of the last step to which it contributed."""
    loading: bool = False
    stale_load: bool = False
    """What it is loading is not wanted any more."""
    welcomed: bool = False
    want: int = 0
    declares: tuple[str, int] | None = None
    script_ended: bool = False
    ending: bool = False
    """It was told to come to its end."""
    since: float = 0.0
    """When it was told to go on computing."""
    epoch: int = 0
    """The run's epoch at that time."""
    passed: int | None = None
    """The epoch in which it last went through its private data."""
    behind: bool = False
    """It was late for so long that results it needs are not kept: once it stands at a boundary, it heals."""
    by_hand: bool = False
    """Its script may change reduced gradients before the update."""
    former: OwnState | None = None
    """What it holds although this peer was cut off: nothing has been loaded over it since."""


class WorkerDesk:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.worker: Worker | None = None
        self.present = False
        """A worker process is registered and alive."""
        self.known: Worker | None = None
        """The last worker, dead or alive: what joiners' fingerprints are compared with."""
        self._snapshot_at: set[int] = set()
        self._welcome_due: tuple[bool, int] | None = None

    @property
    def wanted(self) -> int:
        """Samples that the worker would like to hold."""
        return self.worker.want if self.worker is not None and not self.worker.script_ended else 0

    # --- what the worker says ------------------------------------------------------------------------------

    def on_register(self, message: Register) -> None:
        if self.known is not None and self.known.fingerprint != message.fingerprint:
            self._decline("the restarted script builds another model or optimizer than before; run the same script")
            return
        if self.known is not None and self.known.layout != message.layout:
            self._decline("the restarted script lays its gradients out in other buckets than before; run the same one")
            return
        self.worker = self.known = Worker(message.fingerprint, message.layout)
        self._ctx.trace("worker_registered", pid=message.pid, bytes=message.layout.nbytes)
        self._node.on_worker_registered()

    def welcome(self, founder: bool, seed: int) -> None:
        """Let the worker start: on its own state if this is the run's, else as a learner."""
        worker, steps = self.worker, self._node.steps
        if worker is None or worker.welcomed:
            return
        if self._buffer_in_use():
            self._welcome_due = founder, seed
            return
        worker.welcomed, self._welcome_due = True, None
        answer = Welcome(
            self._ctx.id, self._ctx.me.name, self._ctx.run, seed, 0, 0, founder, steps.finished, steps.data
        )
        self._ctx.emit(ToWorker(answer))
        if founder:
            worker.applied = worker.holds = steps.finished
            self._proceed(member=True)
        else:
            self._proceed(member=False)

    def _buffer_in_use(self) -> bool:
        """The contribution of a worker that died may still be sent: its successor must not write there yet."""
        step = self._node.steps.finished + 1
        return self._ctx.role in (Role.MEMBER, Role.LEAVER) and self._node.steps.contributed_bytes(step)

    def on_boundary(self, message: Boundary) -> None:
        worker = self.worker
        if worker is None:
            return
        worker.at_boundary = True
        worker.holds = message.applied
        worker.warmed = True
        worker.by_hand = worker.by_hand or message.by_hand
        self._ctx.trace("boundary", applied=message.applied, compute_s=round(message.compute_s, 6))
        if worker.by_hand and self._node.stragglers.limit_s:
            self._decline(BY_HAND_AND_SKIP)
            return
        part, step, worker.computing = message.contribution, worker.computing, 0
        if part is not None and part.pass_done:
            worker.passed = worker.epoch
        worker.contributed = message.applied + 1 if part is not None else 0
        worker.waits_since = self._ctx.now
        if part is not None and step == message.applied + 1 == self._node.steps.finished + 1:
            part = msgspec.structs.replace(part, compute_s=message.compute_s)
            self._node.steps.contribute(step, self._completed(part))
        self.pump()

    def on_applied(self, step: int) -> None:
        """The memory of results that a learner's worker has read is needed for those to come."""
        worker = self.worker
        if worker is not None and worker.applied is not None and not worker.loading:
            worker.holds = max(worker.holds, step)
            self._node.steps.release()

    def on_declare(self, message: DeclareData) -> None:
        if self.worker is None:
            return
        data = self._node.steps.data
        differs = message.kind != data.kind or (message.kind == "shard" and message.samples != data.samples)
        if data.kind != "none" and differs:
            self._decline(
                f"this peer's data is {message.kind} with {message.samples} samples, "
                f"the run's is {data.kind} with {data.samples}; give every peer the same dataset"
            )
            return
        self.worker.declares = (message.kind, message.samples)
        self.worker.want = message.want

    def on_finished(self, message: Finished) -> None:
        if self.worker is not None:
            self.worker.script_ended = True
            self.worker.at_boundary = False
        self._ctx.trace("final", step=message.applied, state=message.state.hex())
        self._node.departure.script_ended(message.applied)

    def on_failed(self, message: Failed) -> None:
        self._ctx.trace("worker_failed", traceback=message.traceback)

    def on_loaded(self, step: int) -> None:
        if self.worker is not None:
            self.worker.loading = False
            self.worker.applied = None if self.worker.stale_load else step
            self.worker.holds = step
            self._ctx.trace("state_loaded", step=step, stale=self.worker.stale_load)
            self.worker.stale_load = False
            self.pump()

    def on_snapshot_missed(self, message: SnapshotMissed) -> None:
        self._node.donor.on_missed(message.step, message.applied)
        self._node.learner.on_own_missed(message.step)

    def died(self) -> None:
        """The process is gone; what it left in shared memory stays."""
        self.worker = None
        self._welcome_due = None
        self._snapshot_at.clear()

    def _decline(self, reason: str) -> None:
        self._ctx.emit(ToWorker(Declined(reason)))
        self._node.departure.stop(REFUSED, reason)

    # --- what it is told -----------------------------------------------------------------------------------

    def prepare_snapshot(self) -> None:
        self._ctx.emit(ToWorker(PrepareSnapshot()))

    def take_snapshot(self, step: int) -> None:
        """Have the state of `step` copied as soon as the worker stands there."""
        self._snapshot_at.add(step)
        if self.worker is not None and self.worker.at_boundary:
            self._give_snapshot_order(self.worker)

    def copies_in_time(self, nbytes: int) -> bool:
        """Whether a copy of the state that the worker has now, made while it waits, is there before the next update."""
        worker = self.worker
        if worker is None or not self._node.steps.running:
            return True
        waiting = self._ctx.now - worker.waits_since if worker.at_boundary else 0.0
        return nbytes / COPY_RATE <= worker.waited_s - waiting

    def need_no_snapshot(self, step: int) -> None:
        """Nobody waits for that copy any more; one that was ordered already is still made."""
        self._snapshot_at.discard(step)

    def _give_snapshot_order(self, worker: Worker) -> None:
        due = [s for s in self._snapshot_at if worker.applied is not None and s <= worker.applied]
        for step in sorted(due):
            self._snapshot_at.discard(step)
            self._ctx.emit(ToWorker(TakeSnapshot(step)))

    def forget_state(self) -> None:
        """The worker's state is not the run's any more: it will be overwritten."""
        if self.worker is not None:
            self.worker.applied = None
            self.worker.computing = 0
            self.worker.behind = False
            self.worker.stale_load = self.worker.loading

    def lose_place(self, own: OwnState | None) -> None:
        """This peer was cut off. Its worker's state, `own`, may still be the run's, some steps ago; None: it is not.

        One that was cut off before, and nothing was loaded since, may still be too.
        """
        self.forget_state()
        if self.worker is not None and own is not None:
            self.worker.former = own

    def go_on_from(self, own: OwnState) -> None:
        """What the worker holds is the run's state after all."""
        assert self.worker is not None
        self.worker.applied, self.worker.former = own.step, None

    def load(self, manifest: StateManifest) -> None:
        worker = self.worker
        assert worker is not None
        worker.loading, worker.former = True, None
        self._ctx.emit(ToWorker(LoadState(manifest)))

    def applied_floor(self, finished: int) -> int:
        """Results above this step may still be needed by the own worker."""
        if self.worker is None or self.worker.script_ended:
            return self._node.learner.base_step if self._ctx.role == Role.LEARNER else finished
        if self.worker.applied is None:
            return self._node.learner.base_step
        if self._ctx.role == Role.LEARNER:
            compared = max(self._node.learner.base_step, finished - self._ctx.kept_results)
            return min(self.worker.holds, compared)  # if it differs, it goes back there
        return finished if self.worker.behind else self.worker.holds

    def read_until(self, step: int) -> int:
        """Of the results up to `step`, at which a state is taken up, the last that the own worker reads no more."""
        worker = self.worker
        return worker.holds if worker is not None and worker.applied is not None else step

    def has_room(self, step: int) -> bool:
        """Whether results are read here, and that of `step` is among the next for which there is memory."""
        worker = self.worker
        reads = worker is not None and worker.applied is not None and not worker.loading
        return reads and worker is not None and step <= worker.holds + self._ctx.kept_results

    def pump(self) -> None:
        """While the worker waits at a boundary: commits in order, then the signal to go on."""
        if self._welcome_due is not None:
            self.welcome(*self._welcome_due)
        worker, steps = self.worker, self._node.steps
        if worker is None or not worker.at_boundary or worker.loading or worker.script_ended:
            return
        if worker.behind:
            worker.behind = False
            self._node.lost_track("its worker was late for so long that results it needs are not kept any more")
            return
        if worker.applied is None:
            self._node.learner.offer_state()
            self._node.offer_checkpoint()
            return
        self._give_snapshot_order(worker)
        steps.release()  # says which results the worker is going to read
        while worker.applied < steps.finished:
            if not self._commit(worker, worker.applied + 1):
                return
            self._give_snapshot_order(worker)
        steps.release()
        self._go_on()

    def _commit(self, worker: Worker, step: int) -> bool:
        done = self._node.steps.history.get(step)
        if worker.by_hand and worker.contributed != step:
            self._node.lost_track(f"the update of step {step} was changed by hand and can't be replayed")
            return False
        if done is None:
            self._node.lost_track(f"the result of step {step} is not kept any more")
            return False
        stop = bool(done.nonfinite) and STOP_ON_NONFINITE in worker.fingerprint.options
        self._ctx.emit(ToWorker(Commit(step, done.weight, done.loss, done.touched, done.scalars, done.skip, stop)))
        if worker.contributed == step:
            worker.waited_s = self._ctx.now - worker.waits_since
        worker.applied = step
        return True

    def _go_on(self) -> None:
        steps, step = self._node.steps, self._node.steps.finished + 1
        departure, role = self._node.departure, self._ctx.role
        if steps.contributed(step) and (role != Role.LEAVER or step <= departure.last_step()):
            return
        if role == Role.LEAVER or departure.leaving_now():
            self._proceed(member=True, leaving=True)
            return
        view = self._ctx.view_for(step)
        if view is not None and view.member(self._ctx.id) is not None:
            self._proceed(member=True)

    def _proceed(self, member: bool, leaving: bool = False) -> None:
        worker, steps = self.worker, self._node.steps
        assert worker is not None
        worker.at_boundary = False
        step = steps.finished + 1
        worker.computing = step if member and not leaving else 0
        worker.since, worker.epoch = self._ctx.now, steps.data.epoch
        worker.ending = worker.ending or leaving
        members = len(self._ctx.view.members) if self._ctx.views else 1
        role = "member" if member else "learner"
        self._ctx.emit(ToWorker(Proceed(step, role, members, steps.next_data, steps.stable, leaving)))

    # --- contributions in its place ------------------------------------------------------------------------

    def fill_in(self, step: int) -> None:
        """The round of `step` is open: if the worker can't contribute to it, contribute nothing in its place.

        One whose script ends does so only for others that go on: where all have ended, the run has. A script that
        changes gradients by hand must be there at each update, so the round waits for it. Where no member has a worker,
        one step of nobody would follow the other.
        """
        steps, worker = self._node.steps, self.worker
        if steps.contributed(step):
            return
        if worker is not None and (worker.script_ended or worker.ending):
            if steps.others_contribute(step) or self._ctx.role == Role.LEAVER:
                steps.contribute(step, self._empty())
        elif worker is not None and 0 < worker.computing < step and self._node.stragglers.limit_s:
            if steps.others_wait(step):
                self.leave_out(step)
        elif worker is None or (worker.computing != step and not worker.by_hand):
            down = self._ctx.wishes.worker_down
            if self._ctx.role == Role.LEAVER or any(m not in down for m in self._ctx.view.member_ids()):
                steps.contribute(step, self._empty())

    def leave_out(self, step: int) -> None:
        """The worker is late for `step`, or still at an older one: what it computes now will count nowhere."""
        worker = self.worker
        assert worker is not None
        part = msgspec.structs.replace(self._empty(), late=True, compute_s=self._ctx.now - worker.since)
        self._node.steps.contribute(step, part)

    def _empty(self) -> Contribution:
        worker, passed = self.worker, False
        if worker is not None:
            passed = worker.passed is not None and worker.passed == self._node.steps.data.epoch
        return self._completed(Contribution(0.0, True, None, (), b"", b"", self.wanted, passed))

    def _completed(self, part: Contribution) -> Contribution:
        """With what the agent knows: the run's data, where this worker was the one to declare it."""
        worker = self.worker
        if worker is None or worker.declares is None or self._node.steps.data.kind != "none":
            return part
        return msgspec.structs.replace(part, declares=worker.declares)
