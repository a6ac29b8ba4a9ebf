"""One peer's whole protocol. `Node.handle(event, now)` is the only way in, its actions the only way out.

    views (agreement) -> steps (rounds, commits, stability) -> worker_desk (boundaries)
    liveness (suspicion)   admission (joins)   donor, learner (replication)

The parts know each other through the node; each writes only its own state and its fields of `Context`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from chaos.core.actions import AnyAction, Disconnect, Stop
from chaos.core.admission import Admission
from chaos.core.attendance import Attendance
from chaos.core.codec import decode_words
from chaos.core.context import Context, NodeConfig, Role
from chaos.core.departure import LOST, START_AGAIN, UNCONFIRMED, Departure
from chaos.core.donor import Donor
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import (
    AnyEvent,
    DialRefused,
    ForceRequested,
    LeaveRequested,
    LinkDown,
    LinksMeasured,
    LinkUp,
    LinkWanted,
    PathChanged,
    Received,
    ResultComes,
    ResultDropped,
    ResultMemory,
    ResultUnsent,
    RoundComplete,
    ShardsHeld,
    ShardStored,
    SnapshotFreed,
    SnapshotHashed,
    Tick,
    WordsFound,
    WorkerDied,
    WorkerSaid,
)
from chaos.core.force import Force
from chaos.core.inbox import receive
from chaos.core.learner import Learner, Phase
from chaos.core.lineage import CommittedStep, first_head
from chaos.core.liveness import Liveness
from chaos.core.messages import (
    Decide,
    ResultMissing,
    Seal,
    Sealed,
    WorkerDown,
)
from chaos.core.overlay import Overlay
from chaos.core.pause import Pause as Paused
from chaos.core.results import Results
from chaos.core.returning import Returning
from chaos.core.status import describe
from chaos.core.steps import Steps
from chaos.core.stragglers import Stragglers
from chaos.core.types import DataState, PeerInfo, StateManifest, View
from chaos.core.views import Views
from chaos.core.worker_desk import WorkerDesk
from chaos.core.worker_messages import (
    Applied,
    Boundary,
    BucketReady,
    DeclareData,
    Failed,
    Finished,
    FromWorker,
    Register,
    SnapshotDeclined,
    SnapshotMissed,
    SnapshotPrepared,
    SnapshotTaken,
    StateLoaded,
    StateRefused,
)


@dataclass(frozen=True)
class Founding:
    """How a founder begins: a new run, or one that goes on from a checkpoint (`manifest` set)."""

    run: str
    lineage: str
    seed: int = 0
    view_id: int = 1
    step: int = 0
    head: bytes = b""
    data: DataState = field(default_factory=DataState)
    manifest: StateManifest | None = None


class Node:
    """The protocol of one peer.

    Args:
        me: how the others know this peer.
        config: time-outs and options.
        founding: set if this peer founds the run; otherwise it joins one.
    """

    def __init__(self, me: PeerInfo, config: NodeConfig, founding: Founding | None = None) -> None:
        self.ctx = Context(config, me)
        self._founding = founding
        """None once the run is founded: who loses its place in it afterwards joins as anybody does."""
        self._seed = founding.seed if founding is not None else 0
        if founding is not None:
            self.ctx.run = founding.run
        self.views = Views(self.ctx, self)
        self.steps = Steps(self.ctx, self)
        self.results = Results(self.ctx, self)
        self.worker = WorkerDesk(self.ctx, self)
        self.liveness = Liveness(self.ctx, self)
        self.admission = Admission(self.ctx, self)
        self.pause = Paused(self.ctx, self)
        self.force = Force(self.ctx, self)
        self.donor = Donor(self.ctx, self)
        self.learner = Learner(self.ctx, self)
        self.returning = Returning(self.ctx, self)
        self.departure = Departure(self.ctx, self)
        self.overlay = Overlay(self.ctx, self)
        self.stragglers = Stragglers(self.ctx, self)
        self.attendance = Attendance()
        self._claims: dict[int, dict[str, bytes]] = {}
        self._diverged = False
        self._learner_differs = False
        """To be acted on once the present event is handled: it may have come up in the midst of a commit."""
        self._repeated_at = 0.0
        self.left: View | None = None
        """The view that left this peer out: it comes back with a newer one only."""

    @property
    def stopped(self) -> Stop | None:
        """Set once this peer is done."""
        return self.departure.stopped

    # --- in and out ----------------------------------------------------------------------------------------

    def handle(self, event: AnyEvent, now: float) -> list[AnyAction]:
        """Take one event at time `now` (seconds, monotonic) and return what is to be done, in order.

        Raises:
            RemoteProtocolError: a remote's message is out of range; the caller drops its link.
        """
        ctx = self.ctx
        ctx.now = now
        if self.stopped is None:
            self._dispatch(event)
            self._settle()
        actions, ctx.out = ctx.out, []
        return actions

    def _settle(self) -> None:
        """Messages to myself, and what follows from the new state."""
        ctx, departure = self.ctx, self.departure
        while departure.stopped is None:
            while ctx.loopback and departure.stopped is None:
                receive(self, ctx.id, ctx.loopback.pop(0))
            if self._learner_differs:
                self._renew_learner()
            departure.check()
            if departure.stopped is None and ctx.views:
                self.views.tick()
            if not ctx.loopback:
                return

    def _renew_learner(self) -> None:
        """A learner whose lineage is not the members' takes a new snapshot, and is no candidate meanwhile."""
        self._learner_differs = False
        if self.ctx.role == Role.LEARNER:
            reason = "its state differs from that of the members"
            self.ctx.send_all(self.ctx.view.member_ids(), WorkerDown(reason))
            self.steps.reset()
            self.learner.begin(reason)

    def _dispatch(self, event: AnyEvent) -> None:
        match event:
            case Tick():
                self.liveness.tick()
                self.admission.tick()
                self.learner.tick()
                self.donor.tick()
                if self.ctx.views:
                    self.force.tick()
                    self.steps.end_pauses()
                    self.overlay.tick()
                    self._tick_steps()
            case Received(src, message):
                receive(self, src, message)
            case WorkerSaid(message):
                self._from_worker(message)
            case WorkerDied(reason):
                self._worker_died(reason)
            case ResultMemory(slots, on_disk):
                self.ctx.result_slots, self.ctx.disk_slots = slots, on_disk
            case ResultUnsent(dst, step):
                self.ctx.send(dst, ResultMissing(step))
            case ResultComes(step):
                self.results.on_bytes(step)
            case ResultDropped(step, reason):
                self.results.on_dropped(step)
                self.learner.course.on_dropped(step, reason)
            case RoundComplete():
                self.steps.on_round_complete(event)
            case LinkUp(info, run):
                self._link_up(info, run)
            case LinkDown(peer, reason):
                self._link_down(peer, reason)
            case DialRefused(_, reason):
                if not self.ctx.views:
                    self.departure.refuse(reason)
            case WordsFound(sealed):
                self.on_sealed(sealed, announce=True)
            case ShardStored():
                self.learner.on_shard(event)
            case ShardsHeld():
                self.learner.on_held(event)
            case SnapshotHashed():
                self.donor.on_hashed(event)
                self.learner.on_own_hashed(event)
            case SnapshotFreed(step):
                self.donor.release("checkpoint", step)
            case LinksMeasured():
                self.learner.on_links(event)
            case LeaveRequested(reason):
                self.departure.leave(reason)
            case ForceRequested(lineage, view_id):
                self.force.begin(lineage, view_id)
            case LinkWanted(peer, connect):
                if self.ctx.views:
                    self.overlay.on_wanted(peer, connect)
            case PathChanged(peer):
                self._path_changed(peer)

    def _path_changed(self, peer: str) -> None:
        if self.ctx.views:
            self.steps.repeat([peer])
            self.learner.on_link(peer, up=True)
            self._repeat_wishes([peer])

    def _tick_steps(self) -> None:
        self.steps.tick()
        self.stragglers.tick()
        if self.ctx.now - self._repeated_at >= self.ctx.config.repeat_s:
            self._repeated_at = self.ctx.now
            self._repeat_wishes([p.id for p in self.ctx.view.everybody()])

    def _repeat_wishes(self, peers: list[str]) -> None:
        self.departure.repeat(peers)
        self.overlay.repeat(peers)
        if self.ctx.role == Role.MEMBER and self.ctx.id in self.ctx.wishes.worker_down:
            self.ctx.send_all(peers, WorkerDown("its worker is still not there"))

    # --- links ---------------------------------------------------------------------------------------------

    def learn_run(self, run: str) -> None:
        """A peer that this one is linked with says which run this is."""
        if not self.ctx.run:
            self.ctx.run = run
            self._begin()

    def _link_up(self, info: PeerInfo, run: str) -> None:
        ctx = self.ctx
        if run:
            self.learn_run(run)
        ctx.linked[info.id] = info
        ctx.trace("link_up", peer=info.name, party=info.party[:16])
        self.liveness.on_link_up(info)
        if ctx.views:
            ctx.send(info.id, Decide(ctx.view))
            self.steps.repeat([info.id])
            self.learner.on_link(info.id, up=True)
            self._repeat_wishes([info.id])
        else:
            self.admission.linked()

    def _link_down(self, peer: str, reason: str) -> None:
        info = self.ctx.linked.pop(peer, None)
        self.ctx.trace("link_down", peer=info.name if info else peer, reason=reason)
        self.force.link_lost(peer)
        self.liveness.on_link_down(peer, reason)
        self.learner.on_link(peer, up=False)
        if self.ctx.views and not self.ctx.takes_part(peer):
            self.ctx.emit(Disconnect(peer, "not part of the run any more"))

    # --- views ---------------------------------------------------------------------------------------------

    def decided(self, view: View) -> None:
        """A member says that this view is decided."""
        ctx = self.ctx
        if not ctx.views and (refusal := self.admission.disagreement(view)):
            self.departure.refuse(refusal)
            return
        left = self.left
        if not ctx.views and left is not None and view.lineage == left.lineage and view.id <= left.id:
            return  # said before this peer was left out, and late on its way
        known = view.member(ctx.id) or view.learner(ctx.id)
        if not ctx.views and (known is None or known.incarnation != ctx.me.incarnation or view.member(ctx.id)):
            self.admission.learn_addresses(view)
            return
        self.views.install(view)

    def on_installed(self, view: View, was: Role) -> None:
        """Called by `views` right after it made `view` the installed one."""
        role = self.ctx.role
        self.attendance.installed(view)
        self.liveness.installed()
        if role == Role.JOINER:
            self.rejoin("the others went on without this peer")
            return
        self.admission.admitted()
        self.returning.installed(view)
        self.donor.installed(view)
        if role == Role.LEAVER:
            self.departure.let_go(view, was)
        elif role == Role.LEARNER and was == Role.MEMBER and self.departure.lost_seat():
            return
        rolled_back = view.abort and bool(self.steps.head) and self.steps.finished >= view.first_step
        if role == Role.LEARNER and (self._diverged or rolled_back):
            self.steps.reset()
            self.learner.reset()
        self._diverged = self._diverged and role == Role.MEMBER
        if role != was:
            self._claims.clear()
        unfit = role == Role.MEMBER and was != Role.MEMBER and not self._holds_state(was)
        self.learner.installed()
        if not view.abort:
            self.worker.pump()
        self.steps.installed(view, was)
        self.worker.pump()
        if unfit:
            self.heal("it became a member without a worker that holds the state")
        elif role == Role.MEMBER and rolled_back:
            self.heal("it had finished a step that the others rolled back")

    def _holds_state(self, was: Role) -> bool:
        worker = self.worker.worker
        verified = was == Role.JOINER or self.learner.phase == Phase.READY  # a founder's state is the run's
        return verified and worker is not None and worker.applied is not None and not worker.loading

    def rejoin(self, reason: str) -> None:
        """Start over as a joiner: this peer was left behind, or does not hold what it would need."""
        ctx = self.ctx
        ctx.trace("rejoin", reason=reason)
        if all(m in self.views.gone for m in ctx.view.member_ids()):
            self.departure.stop(LOST, f"{reason}, and died; {START_AGAIN}")
            return
        if self.departure.lost_seat():
            return
        ctx.role = Role.JOINER
        self.left = ctx.view if ctx.views else self.left
        for info in ctx.view.everybody() if ctx.views else ():
            if info.id != ctx.id:
                self.admission.remember(info)
        ctx.views.clear()
        ctx.wishes.clear()
        self.donor.give_up()
        self.views.forget()
        self.liveness.reset()
        self.returning.reset()
        self.worker.lose_place(self.returning.own_state())
        self.steps.reset()
        self.learner.reset()
        self.admission.ask_soon()

    def lost_track(self, reason: str) -> None:
        """Steps are missing here that nobody keeps: this peer needs a snapshot."""
        self.ctx.trace("lost_track", reason=reason)
        if self.ctx.role == Role.LEARNER:
            self.steps.reset()
            self.learner.lost_track(reason)
        elif self.ctx.role == Role.MEMBER:
            self.heal(reason)
        elif self.ctx.role == Role.LEAVER:
            self.worker.forget_state()  # nobody gives a leaver another one: it goes without

    def heal(self, reason: str) -> None:
        """This member's state is not the run's (any more): it goes back to being a learner."""
        self.worker.forget_state()
        self._diverged = True
        self._worker_down(reason)

    def on_sealed(self, sealed: Sealed, announce: bool) -> None:
        """A dead peer's last words: checked, then proof that it is gone."""
        words = decode_words(sealed)
        ctx = self.ctx
        if not ctx.views or words.run != ctx.run:
            return
        info = ctx.seat(words.peer)
        if info is None or info.incarnation != words.incarnation:
            return
        if not ctx.config.verify(info.key, sealed.signature, sealed.words):
            raise RemoteProtocolError(f"the last words of {info.name} bear a wrong signature")
        if not self.views.add_gone(sealed, words):
            return
        vote = words.accepted
        ctx.trace("gone", peer=info.name, reason="its last words are sealed", words_view=words.view.id,
                  promised=words.promised, voted=(vote.ballot, vote.view.id) if vote else None)  # fmt: skip
        self.learner.on_donor_lost(words.peer, "it is gone")
        self.results.refetch(words.peer)
        if announce:
            ctx.send_all((p.id for p in ctx.view.everybody()), Seal(sealed))

    def on_diverged(self, peer: str, step: int, head: bytes) -> None:
        """Somebody's lineage differs from mine at `step`. Whoever is in the minority heals.

        With a tie, the side with the lower rank is believed. What is said again is judged again: by then members may be
        gone that did not say what they hold.
        """
        ctx = self.ctx
        if not ctx.views:
            return
        claims = self._claims.setdefault(step, {})
        if peer not in claims:
            claims[peer] = head
            self._claims = {s: c for s, c in self._claims.items() if s > step - 8}
            ctx.trace("diverged", peer=ctx.name(peer), step=step)
        members = ctx.view.member_ids()
        against = [m for m in members if claims.get(m) == head]
        with_me = [m for m in members if m not in claims]
        sides = bool(against and with_me)
        outvoted = sides and len(against) > len(with_me)
        tied = sides and len(against) == len(with_me)
        unhealed = ctx.role == Role.MEMBER and not self._diverged
        if unhealed and (outvoted or (tied and members.index(against[0]) < members.index(with_me[0]))):
            self.heal("its state differs from that of the others")
        elif ctx.role == Role.LEARNER and against:
            self._learner_differs = True

    def on_wrong_bytes(self, step: int, source: str) -> None:
        """A result that was fetched is not the one that its source finished: this peer can't get at it."""
        if self.ctx.role == Role.MEMBER and not self._diverged:
            self.heal(f"the result of step {step} that came is not the one that {self.ctx.name(source)} finished")
        elif self.ctx.role == Role.LEARNER:
            self._learner_differs = True

    # --- the worker ----------------------------------------------------------------------------------------

    def _from_worker(self, message: FromWorker) -> None:
        match message:
            case Boundary():
                self.worker.on_boundary(message)
            case Applied(step):
                self.worker.on_applied(step)
            case BucketReady(step):
                if self.worker.worker is not None:
                    self.worker.worker.handed = step
            case Register():
                self.worker.on_register(message)
            case DeclareData():
                self.worker.on_declare(message)
            case StateLoaded(step):
                self.worker.on_loaded(step)
                self._found_resumed(step)
            case StateRefused(reason):
                self.departure.refuse(reason)
            case SnapshotPrepared(nbytes):
                self.donor.on_prepared(nbytes)
            case SnapshotDeclined(reason):
                self.donor.on_declined(reason)
                self.learner.on_own_declined(reason)
            case SnapshotTaken():
                self.donor.on_taken(message)
                self.learner.on_own_taken(message)
            case SnapshotMissed():
                self.worker.on_snapshot_missed(message)
            case Finished():
                self.worker.on_finished(message)
            case Failed():
                self.worker.on_failed(message)

    def on_worker_registered(self) -> None:
        """The worker is there: found the run, join it, or catch up again after a restart."""
        if self.ctx.run:
            self._begin()
        if self.learner.phase == Phase.IDLE:
            self.learner.begin("its worker is back")

    def _begin(self) -> None:
        founding, desk = self._founding, self.worker
        if desk.worker is None:
            return
        if founding is None:
            desk.welcome(founder=False, seed=self._seed)
            self.admission.ask_soon()
            self.admission.tick()
        elif founding.manifest is None:
            self.steps.adopt(0, first_head(founding.run, founding.lineage), founding.data)
            desk.welcome(founder=True, seed=founding.seed)
            self._install_first(founding)
        else:
            desk.welcome(founder=False, seed=founding.seed)

    def offer_checkpoint(self) -> None:
        """The worker of a founder that resumes stands ready: give it the checkpoint's state."""
        if self._founding is not None and self._founding.manifest is not None:
            self.worker.load(self._founding.manifest)

    def _found_resumed(self, step: int) -> None:
        founding = self._founding
        if founding is None or founding.manifest is None or step != founding.step:
            return
        self.steps.adopt(step, founding.head, founding.data)
        self._install_first(founding)

    def _install_first(self, founding: Founding) -> None:
        self._founding = None
        reason = "resumed from a checkpoint" if founding.manifest else "founded"
        config, step = self.ctx.config, founding.step + 1
        first = View(
            founding.lineage, founding.view_id, (self.ctx.me,), (), step, False, (), reason, step,
            config.min_peers, straggler_limit_s=config.straggler_limit_s or 0.0,
        )  # fmt: skip
        self.views.install(first)

    def _worker_died(self, reason: str) -> None:
        worker = self.worker.worker
        if worker is None:
            return
        if worker.script_ended:
            return
        self.worker.died()
        self.ctx.trace("worker_died", reason=reason)
        self.donor.on_worker_died()
        self.learner.on_worker_died()
        if self.ctx.role == Role.MEMBER:
            self._worker_down(reason)
        elif self.ctx.role == Role.LEARNER:
            self.ctx.send_all(self.ctx.view.member_ids(), WorkerDown(reason))
        elif self.ctx.role == Role.LEAVER and worker.handed > self.steps.finished:
            # Its part can't be empty any more, as bytes of it are in the sums: the others have to void the attempt.
            self.departure.stop(UNCONFIRMED, f"its worker died in the midst of step {worker.handed}, the last it owed")
        elif self.ctx.role == Role.LEAVER:
            self.worker.fill_in(self.steps.finished + 1)

    def _worker_down(self, reason: str) -> None:
        self.ctx.send_all((p.id for p in self.ctx.view.everybody()), WorkerDown(reason))
        self.ctx.wishes.worker_down.add(self.ctx.id)

    # --- steps ---------------------------------------------------------------------------------------------

    def on_committed(self, done: CommittedStep) -> None:
        """Called by `steps` after each commit, before the next round opens."""
        view = self.ctx.view_for(done.step) or self.ctx.view
        samples = [(peer, r.epoch, r.start, r.stop) for peer, c in done.contributions for r in c.ranges]
        self.ctx.trace(
            "commit", step=done.step, view=done.view_id, lineage=view.lineage, head=done.head.hex(),
            digest=done.digest.hex(), loss=done.loss, weight=done.weight, skip=done.skip,
            contributors=[peer for peer, c in done.contributions if not c.empty], samples=samples,
            epoch=done.data.epoch, late=[peer for peer, c in done.contributions if c.late],
        )  # fmt: skip
        self.stragglers.on_committed(done)
        self.steps.acknowledge()
        self.donor.on_committed(done.step)
        self.worker.pump()

    def on_stable(self, step: int) -> None:
        """Called by `steps` when every member holds the result of `step`."""
        self.ctx.trace("stable", step=step)
        self.donor.on_stable()

    # --- for people ----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `chaos status` shows of this peer's knowledge."""
        return describe(self)
