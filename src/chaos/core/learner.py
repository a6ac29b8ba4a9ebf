"""Catching up: from a learner without state to one that may be promoted.

prepare -> offer -> fetch -> load -> verify -> ready. A setback (no donor left, a digest that differs, a
snapshot missed) leads back to an earlier phase; nothing verified is fetched twice within one snapshot.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from chaos.core.actions import HashSnapshot, ReceiveSnapshot, ReleaseSnapshot
from chaos.core.context import Context, Role
from chaos.core.donor import BUSY, OWN_WORKER, PAUSED
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import LinksMeasured, ShardsHeld, ShardStored, SnapshotHashed
from chaos.core.fallback import Course
from chaos.core.fetch import Fetch
from chaos.core.messages import (
    DonorReady,
    Ready,
    SnapshotAt,
    SnapshotMissing,
    SnapshotOffer,
    SnapshotPrepare,
    SnapshotRelease,
)
from chaos.core.offers import flaw
from chaos.core.sharing import Sharing
from chaos.core.types import StateManifest
from chaos.core.watch import watchers
from chaos.core.worker_messages import SnapshotTaken
from chaos.planning.shards import shard_size

if TYPE_CHECKING:
    from chaos.core.node import Node

BY_HAND = "the script changes gradients between sync() and step(), so results alone can't be replayed"
RETRY_S = 0.3
"""Between attempts where a donor was busy with another learner's snapshot."""


class Phase(StrEnum):
    IDLE = "idle"
    PREPARE = "prepare"
    OFFER = "offer"
    FETCH = "fetch"
    LOAD = "load"
    VERIFY = "verify"
    READY = "ready"


class Learner:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.phase = Phase.IDLE
        self._since = 0.0
        self._measured: dict[str, tuple[float, float]] = {}
        self._attempts = 0
        self.course = Course(ctx, node)
        self.corrupt: dict[str, int] = {}
        """Corrupt shards by the donor that sent them."""
        self.sharing = Sharing(ctx, node)
        self._clear()

    def _clear(self) -> None:
        self._margin = 0
        self._ready: dict[str, DonorReady] = {}
        self._refused: set[str] = set()
        self._target = 0
        self._due_after = 0
        """Once this step is finished, every donor's worker has stood where it takes the snapshot."""
        self._retry_at = 0.0
        self._asked_at = 0.0
        self._due_since: float | None = None
        self._base: int | None = None
        self._keepers: tuple[str, ...] | None = None
        """It goes on from its worker's own state, with results that these members keep for it; None: it doesn't."""
        self._least = 0
        """So far the worker has to be before its state is compared: only then all that it missed is here."""
        self._offer: SnapshotOffer | None = None
        self._fetch: Fetch | None = None
        self._verify_donor = ""
        self._own: StateManifest | None = None
        self._own_hashes: tuple[bytes, ...] | None = None
        self._theirs: SnapshotOffer | None = None
        self.sharing.dismiss()

    @property
    def _has_base(self) -> bool:
        """A state is chosen from which this learner goes on: a snapshot, or its worker's own."""
        return self._offer is not None or self._keepers is not None

    @property
    def fetch(self) -> Fetch | None:
        """The snapshot that is being fetched, or was; None before one is chosen."""
        return self._fetch

    @property
    def _donors(self) -> list[str]:
        """Those whose snapshot is the one that is being fetched."""
        return self._fetch.donors if self._fetch is not None else []

    @property
    def base_step(self) -> int:
        """Results above this step are needed; while no snapshot is chosen, none of the past."""
        return self._node.steps.finished if self._base is None else self._base

    def _enter(self, phase: Phase) -> None:
        self.phase, self._since, self._due_since = phase, self._ctx.now, None
        self._ctx.trace("learner", phase=str(phase))

    # --- start, end, restart -------------------------------------------------------------------------------

    def installed(self) -> None:
        """A view was installed."""
        if self._ctx.role == Role.LEARNER:
            if self.phase == Phase.IDLE or (self._ctx.view.abort and not self._has_base):
                self.begin("a learner now")
            donors, view = self._donors, self._ctx.view
            lost = [d for d in donors if not self._ctx.takes_part(d)]
            lost += [d for d in self._ready if d not in donors and view.member(d) is None]
            for donor in lost:
                self.on_donor_lost(donor, "the view has no such member any more")
        elif self.phase != Phase.IDLE:
            self._ctx.emit(ReleaseSnapshot(received=True))
            self.reset()

    def begin(self, reason: str) -> None:
        """Catch up, if there is a worker to catch up; one that is being restarted finds a fresher snapshot.

        What was begun with a former worker begins anew even so: what there is of it leads nowhere any more.
        """
        if self._ctx.role == Role.LEARNER and (self._node.worker.worker is not None or self.phase != Phase.IDLE):
            self.restart(reason)

    def reset(self) -> None:
        """This peer is no learner any more, and no member either."""
        self._clear()
        self.phase, self._attempts = Phase.IDLE, 0
        self.course.reset()

    def lost_track(self, reason: str) -> None:
        """Results are gone that this learner would need: try again, or have the members wait for a late snapshot."""
        self.course.lost_track(reason, by_snapshot=self._keepers is None or self._offer is not None)
        self.restart(reason)

    def restart(self, reason: str) -> None:
        """Begin with new donors and a new snapshot."""
        self.course.meter.saw(self._ctx.now, self.newest())
        for donor in dict.fromkeys([*self._ready, *([self._verify_donor] if self._verify_donor else [])]):
            self._ctx.send(donor, SnapshotRelease(self._target))
        self._clear()
        self._node.worker.forget_state()
        self._ctx.trace("catch_up", reason=reason)
        if (offer := self._node.donor.own_offer()) is not None:
            self._go_on_from_snapshot(offer)
        else:
            self._enter(Phase.PREPARE)
            self._ask()

    def _ask(self) -> None:
        """Ask those members that have not answered yet, as often as need be: a link may have swallowed either."""
        self._asked_at = self._ctx.now
        silent = [m for m in self._candidates() if m not in self._ready and m not in self._refused]
        worker = self._node.worker.worker
        own = worker.former if worker is not None else None
        self._ctx.send_all(silent, SnapshotPrepare(own.step, own.head) if own is not None else SnapshotPrepare())

    def _candidates(self) -> list[str]:
        """Members that may be donors: all of them, or in a large view those that this learner hears of."""
        return [peer for peer in watchers(self._ctx.view, self._ctx.id) if self._ctx.view.member(peer) is not None]

    def tick(self) -> None:
        if self._ctx.role != Role.LEARNER:
            return
        now = self._ctx.now
        if self._has_base:
            members = self._ctx.view.member_ids()
            self._node.results.fetch_since([m for m in self._keepers or () if m in members] or list(members))
        if self.phase == Phase.PREPARE:
            if now - self._asked_at >= RETRY_S:
                self._ask()
            self._maybe_choose()
        elif self.phase == Phase.OFFER:
            self._await_offer()
        elif self.phase == Phase.FETCH and self._fetch is not None:
            for donor in self._fetch.tick():
                self.on_donor_lost(donor, "nothing comes from it")
            self.course.look(self._fetch, self._since)
        elif self.phase == Phase.LOAD:
            self._maybe_verify()
            if self.phase == Phase.LOAD and self._fetch is not None:
                self.course.look(self._fetch, self._since)
        elif self.phase == Phase.VERIFY:
            if (self._retry_at and now >= self._retry_at) or self._is_overdue() or self._waits_for_nothing():
                self._start_verify()
        elif self.phase == Phase.READY and now - self._since > self._ctx.config.join_retry_s:
            self._announce_ready()

    # --- prepare, offer ------------------------------------------------------------------------------------

    def on_donor_ready(self, src: str, message: DonorReady) -> None:
        if self.phase == Phase.PREPARE:
            self._ready[src] = message
            self._refused.discard(src)
            self._maybe_choose()

    def _maybe_choose(self) -> None:
        members = self._candidates()
        answered = set(self._ready) | self._refused
        waited = self._ctx.now - self._since > self._ctx.config.donor_wait_s
        if self._ready and (waited or all(m in answered for m in members)):
            self._choose_or_pause()
        elif not self._ready and self._ctx.now - self._since > 5 * self._ctx.config.donor_wait_s:
            self.restart("no member answered")

    def _choose_or_pause(self) -> None:
        """Where results can't be replayed, first have the run stand still, then choose."""
        if all(r.replayable for r in self._ready.values()):
            if not self._go_on_from_own():
                self._choose()
        elif not self.course.late:
            self.course.ask_for_pause(self._ctx.config.pause_limit_s, BY_HAND)
            self._ready.clear()
        elif any(r.running for r in self._ready.values()):
            self._ready.clear()  # the round that was open at the pause is still to end: ask again
        else:
            self._choose()

    def _choose(self) -> None:
        """One step for all donors: that under way, or later by what made them all say that it was past."""
        self._retry_at = 0.0
        seen = [r.finished for r in self._ready.values()]
        seen += [beat.finished for beat in self._node.liveness.progress.values()]
        finished = max(self._node.steps.finished, *seen)
        running = any(r.running for r in self._ready.values()) or self._node.steps.highest_seen > finished
        running = running and not self.course.late
        step = finished + (1 + self._margin if running else 0)
        self._target = self._shared_step() or max(step, self._ctx.view.first_step - 1)
        self._base = self._due_after = self._target
        self._refused.clear()
        self._enter(Phase.OFFER)
        for donor in self._ready:
            self._ctx.send(donor, SnapshotAt(self._target))
        self._let_go(set(self._candidates()))

    def _go_on_from_own(self) -> bool:
        """Go on from what the worker holds, if that is fewer bytes than a snapshot; whether it does."""
        choice = self._node.returning.choose(self._ready)
        if choice is None:
            return False
        own, start, keepers = choice
        source = "own state" if start.from_own else "snapshot"
        self._ctx.trace("catch_up_from", source=source, step=own.step, reason=start.reason)
        if not start.from_own:
            return False
        views = self._ready[keepers[0]].since
        self._least = max(self._ready[peer].finished for peer in keepers)
        self._keepers, self._base = tuple(keepers), own.step
        self.course.text = f"from its worker's own state: {start.reason}"
        self._ready.clear()
        self._let_go(set(self._candidates()))
        self._enter(Phase.LOAD)
        self._node.worker.go_on_from(own)
        self._node.steps.adopt(own.step, own.head, own.data, views)
        self._node.worker.pump()
        return True

    def _go_on_from_snapshot(self, offer: SnapshotOffer) -> None:
        """Go on from the snapshot that this peer itself held when its worker died: all since is here too."""
        missed = self._node.steps.finished - offer.step
        reason = f"it lies in this peer's own memory, as do the {missed} results since"
        self._ctx.trace("catch_up_from", source="own snapshot", step=offer.step, reason=reason)
        self.course.text = f"from the snapshot of step {offer.step}: {reason}"
        self._target = self._base = offer.step
        self._let_go(set(self._candidates()))
        self._accept_offer(offer)

    def _let_go(self, members: set[str]) -> None:
        """Say to those of them who are no donors of this peer now that they aren't: a lost link may have swallowed it.

        Each has room for one snapshot, and serves nobody else while it takes that to be in use.
        """
        others = sorted(members.intersection(self._ctx.view.member_ids()) - {*self._ready, self._verify_donor})
        self._ctx.send_all(others, SnapshotRelease(None))

    def _shared_step(self) -> int:
        """The snapshot that most donors serve to other learners already; 0 if none does, or it did not work before."""
        serves = [ready.serves for ready in self._ready.values() if ready.serves]
        if not serves or self.course.late or self.course.meter.losses:
            return 0
        return max(serves, key=lambda step: (serves.count(step), step))

    def _await_offer(self) -> None:
        if (self._retry_at and self._ctx.now >= self._retry_at) or self._waits_for_nothing():
            self._choose()
        elif self._is_overdue():
            self.restart("no donor offered its snapshot in time")

    def _is_overdue(self) -> bool:
        """The step whose snapshot this phase waits for has passed for long, and nothing came of it."""
        if self.newest() < self._due_after:
            self._due_since = None
        elif self._due_since is None:
            self._due_since = self._ctx.now
        due = self._due_since
        return due is not None and self._ctx.now - due > self._ctx.config.snapshot_timeout_s

    def _waits_for_nothing(self) -> bool:
        """The snapshot is of a step to come, and by now the members say that none is under way."""
        beats = self._node.liveness.progress.values()
        standing = bool(beats) and not any(beat.running for beat in beats)
        return standing and self._target > self.newest() and self._ctx.now - self._since > RETRY_S

    def newest(self) -> int:
        """The highest step that anybody is known to have finished."""
        beats = [beat.finished for beat in self._node.liveness.progress.values()]
        return max([self._node.steps.finished, *beats])

    def on_missing(self, src: str, message: SnapshotMissing) -> None:
        if self.phase == Phase.PREPARE:
            self._refused.add(src)
            self._maybe_choose()
        elif self.phase == Phase.OFFER and message.step == self._target:
            self._refused.add(src)
            if message.reason not in (BUSY, PAUSED):
                self._widen()
            if src in self._ready:
                known = self._ready[src]
                self._ready[src] = replace(known, finished=max(known.finished, message.applied), serves=0)
            if self._offer is None and self._refused.issuperset(self._ready):
                self._retry_at = self._ctx.now + (RETRY_S if message.reason in (BUSY, PAUSED) else 0.0)
                self._retry_at = self._retry_at or self._ctx.now
        elif self.phase == Phase.FETCH and message.step == self._target:
            self.on_donor_lost(src, message.reason)
        elif self.phase == Phase.VERIFY and src == self._verify_donor and message.step == self._target:
            if message.reason not in (BUSY, PAUSED):
                self._widen()
            self._retry_at = self._ctx.now + (RETRY_S if message.reason in (BUSY, PAUSED) else 0.001)

    def _widen(self) -> None:
        """A step was past before the order came: aim further ahead, but not beyond the results that are kept."""
        self._margin = min(2 * self._margin + 1, self._ctx.kept_results)

    def on_offer(self, src: str, message: SnapshotOffer) -> None:
        if self.phase == Phase.VERIFY and src == self._verify_donor:
            self._theirs = message
            self._compare()
        elif self.phase in (Phase.OFFER, Phase.FETCH) and message.step == self._target and src in self._ready:
            if self._offer is None:
                self._accept_offer(message)
            elif (message.hashes, message.head) != (self._offer.hashes, self._offer.head):
                self._ctx.trace("donor_differs", peer=self._ctx.name(src), step=message.step)
                return
            assert self._fetch is not None
            self._fetch.add(src, self._measured.get(src))

    def _accept_offer(self, offer: SnapshotOffer) -> None:
        worker = self._node.worker.known
        if reason := flaw(offer, worker):
            raise RemoteProtocolError(reason)
        self._offer = offer
        steps = self._node.steps
        if not steps.head or offer.step > steps.finished or (offer.step == steps.finished and offer.head != steps.head):
            steps.adopt(offer.step, offer.head, offer.data, offer.views)
        self._fetch = Fetch(self._ctx, offer)
        self._ctx.emit(ReceiveSnapshot(offer.step, offer.manifest.nbytes, offer.shard_bytes, offer.hashes))
        self._enter(Phase.FETCH)

    # --- fetch ---------------------------------------------------------------------------------------------

    def on_links(self, event: LinksMeasured) -> None:
        self._measured = dict(event.links)

    def on_link(self, peer: str, up: bool) -> None:
        """A link, or another way to this peer, is there now; or its link is lost."""
        if self.phase == Phase.FETCH and self._fetch is not None:
            if up:
                self._fetch.way_found(peer)
            else:
                self._fetch.link_lost(peer)
        if up and self.phase not in (Phase.IDLE, Phase.PREPARE):
            self._let_go({peer})

    def on_held(self, event: ShardsHeld) -> None:
        """What this host has of the snapshot need not be fetched."""
        fetch = self._fetch
        if self.phase == Phase.FETCH and fetch is not None and event.step == fetch.offer.step:
            fetch.on_held(event.shards)
            for info in self._ctx.view.learners:
                self.sharing.tell(fetch, info.id, answer=False)
            if fetch.complete:
                self._fetched()
            elif not fetch.has_donors:
                self._node.donor.release(OWN_WORKER, event.step)
                self.restart("the snapshot that this peer held is not in memory any more")

    def on_shard(self, event: ShardStored) -> None:
        fetch = self._fetch
        if self.phase != Phase.FETCH or fetch is None or event.step != fetch.offer.step:
            return
        if not event.ok:
            self._ctx.trace("corrupt_shard", peer=self._ctx.name(event.donor), shard=event.shard)
            self.corrupt[event.donor] = self.corrupt.get(event.donor, 0) + 1
            self.on_donor_lost(event.donor, "it sent a corrupt shard")
            return
        fetch.on_shard(event)
        if fetch.complete:
            self._fetched()

    def fetching(self) -> dict[str, Any] | None:
        """How far the state is fetched, for people: step, bytes of the whole, bytes by donor. None at other times."""
        if self.phase != Phase.FETCH or self._offer is None or self._fetch is None:
            return None
        return {"step": self._offer.step, "bytes": self._offer.manifest.nbytes, "have": self._fetch.sources()}

    def on_donor_lost(self, peer: str, reason: str) -> None:
        """A donor died, left, sent what does not match, or is too slow: the others take over its rest."""
        if self._ctx.role != Role.LEARNER:
            return
        if self._ready.pop(peer, None) is not None:
            self._ctx.send(peer, SnapshotRelease(self._target))  # it may live, and serve nobody while it holds this
        self._refused.discard(peer)
        if self.phase == Phase.OFFER and self._offer is None and not self._ready:
            self.restart("no donor is left")
        elif self.phase == Phase.FETCH and self._fetch is not None and peer in self._fetch.donors:
            self._fetch.remove(peer, reason)
            if not self._fetch.has_donors:
                self.restart("no donor is left")
        elif self.phase == Phase.VERIFY and peer == self._verify_donor:
            self._start_verify()

    def _fetched(self) -> None:
        assert self._fetch is not None
        fetch, offer = self._fetch, self._fetch.offer
        for donor in self._ready:
            self._ctx.send(donor, SnapshotRelease(offer.step))
        self.course.measure(fetch, self._since)
        self._ctx.trace(
            "fetched_state",
            step=offer.step,
            bytes=offer.manifest.nbytes,
            seconds=round(self._ctx.now - self._since, 3),
            sources=fetch.sources(),
            again=fetch.again * offer.shard_bytes,
            held=fetch.held * offer.shard_bytes,
        )
        self._enter(Phase.LOAD)
        self._node.worker.pump()

    # --- load, verify --------------------------------------------------------------------------------------

    def offer_state(self) -> None:
        """The worker stands at a boundary without state: give it what was fetched, if it is whole."""
        if self.phase in (Phase.LOAD, Phase.VERIFY, Phase.READY) and self._offer is not None:
            self._enter(Phase.LOAD)
            self._node.donor.give_up()  # its memory is going to be that of this worker's snapshots
            self._node.worker.prepare_snapshot()
            self._node.worker.load(self._offer.manifest)

    def _maybe_verify(self) -> None:
        worker = self._node.worker.worker
        if worker is None or worker.applied is None or worker.loading:
            return
        steps = self._node.steps
        if worker.applied >= max(steps.finished - 1, self._least) and not self._node.results.lacks_dropped():
            self._start_verify()

    def _start_verify(self) -> None:
        """Compare digests of the state as it is now: of the last step that anybody has finished.

        Not the one that was loaded, as it says nothing of this worker's arithmetic; nor one that a donor can't copy in
        time. Then it is the state after the step under way; if the run stands still, what there is.
        """
        members = [m for m in self._ctx.view.member_ids() if m not in self._node.views.suspects]
        if not members:
            return
        self._retry_at, was = 0.0, self.phase
        if was == Phase.VERIFY:
            self._ctx.send(self._verify_donor, SnapshotRelease(self._target))
        self._own, self._own_hashes, self._theirs = None, None, None
        self._node.donor.give_up()
        self._verify_donor = self._next_verifier(members, again=was == Phase.VERIFY)
        steps = self._node.steps
        beats = self._node.liveness.progress.values()
        running = (not beats or any(beat.running for beat in beats)) and not self.course.late
        step = self.newest() + (self._margin if running else 0)
        if running and self._offer is not None:
            step = max(step, self._offer.step + 1)
        self._target = step
        self._due_after = max(step, self.newest() + running)
        self._base = min(step, steps.finished)
        self._enter(Phase.VERIFY)
        self._node.worker.take_snapshot(step)
        self._ctx.send(self._verify_donor, SnapshotAt(step, compares=True))

    def _next_verifier(self, members: list[str], again: bool) -> str:
        """A donor first; each serves one snapshot, so learners spread over them. Then another one each time, lest
        learners wait for one another's snapshots at two members."""
        preferred = [m for m in members if m in self._donors] or members
        if again and self._verify_donor in members:
            order = [*preferred, *(m for m in members if m not in preferred)]
            return order[(order.index(self._verify_donor) + 1) % len(order)]
        mine = [info.id for info in self._ctx.view.learners].index(self._ctx.id)
        return preferred[mine % len(preferred)]

    def on_own_missed(self, step: int) -> None:
        if self.phase == Phase.VERIFY:
            self._widen()
            self._ctx.trace("verify_missed", step=step)
            self._retry_at = self._ctx.now + 0.001

    def on_own_declined(self, reason: str) -> None:
        """Without a snapshot of its own nothing can be compared, and nobody becomes a member uncompared."""
        if self._ctx.role == Role.LEARNER:
            self._node.departure.refuse(reason)

    def on_own_taken(self, message: SnapshotTaken) -> None:
        if self.phase == Phase.VERIFY:
            self._own = message.manifest
            shard_bytes = self._ctx.config.shard_bytes or shard_size(message.manifest.nbytes)
            self._ctx.emit(HashSnapshot(message.manifest.step, shard_bytes))

    def on_own_hashed(self, event: SnapshotHashed) -> None:
        if self.phase == Phase.VERIFY and self._own is not None and self._own.step == event.step:
            self._own_hashes = event.hashes
            self._compare()

    def _compare(self) -> None:
        theirs, own = self._theirs, self._own
        if theirs is None or own is None or self._own_hashes is None:
            return
        equal = (theirs.hashes, theirs.manifest) == (self._own_hashes, own)
        if equal or theirs.step != own.step:
            self._ctx.send(self._verify_donor, SnapshotRelease(theirs.step))
        if theirs.step != own.step:
            self._retry_at = self._ctx.now + RETRY_S
            return
        if equal:
            self._ctx.trace("digests_equal", step=own.step, peer=self._ctx.name(self._verify_donor))
            self._enter(Phase.READY)
            self._announce_ready()
            return
        self._attempts += 1
        wrong = sum(a != b for a, b in zip(theirs.hashes, self._own_hashes, strict=False))
        self._ctx.trace("digests_differ", step=own.step, shards=wrong, attempt=self._attempts)
        if self._attempts >= self._ctx.config.verify_attempts:
            self._node.departure.refuse(
                f"after {self._attempts} attempts this peer's state still differs from the run's at step {own.step} "
                f"({wrong} shards, scalars {'equal' if theirs.manifest.scalars == own.scalars else 'differ'}); "
                "its arithmetic is not that of the others (compare CPU, flags and versions)"
            )
            return
        self._mend(theirs)

    def _mend(self, theirs: SnapshotOffer) -> None:
        """Of what was compared, fetch the shards that differ, and go on from that step."""
        donor = self._verify_donor
        self._verify_donor = ""
        self._target = theirs.step
        self._ready = {donor: DonorReady(theirs.step, running=True)}
        self._node.worker.forget_state()
        self._accept_offer(theirs)
        assert self._fetch is not None
        self._fetch.add(donor, self._measured.get(donor))

    def _announce_ready(self) -> None:
        self._since = self._ctx.now
        self._node.steps.acknowledge()  # of a snapshot's own step, nothing else has
        self._ctx.send_all(self._ctx.view.member_ids(), Ready(self._ctx.id, self._node.worker.wanted))

    def on_worker_died(self) -> None:
        """What was fetched stays; a restarted worker is given it again. What the worker held is gone with it."""
        if self._keepers is not None and self._offer is None:
            self._clear()
            self._enter(Phase.IDLE)
        elif self.phase in (Phase.VERIFY, Phase.READY):
            self._enter(Phase.LOAD)
