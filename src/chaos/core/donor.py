"""Serving state: one snapshot at a time, of a stable step, for learners and for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chaos.core.actions import HashSnapshot, ReleaseSnapshot, ServeShards, WriteCheckpoint
from chaos.core.context import Context, Role
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import SnapshotHashed
from chaos.core.messages import (
    DonorReady,
    ShardRequest,
    SnapshotAt,
    SnapshotMissing,
    SnapshotOffer,
    SnapshotPrepare,
    newest_views,
)
from chaos.core.steps import AHEAD
from chaos.core.types import DataState, StateManifest, View
from chaos.core.worker_messages import SnapshotTaken
from chaos.planning.shards import shard_size

if TYPE_CHECKING:
    from chaos.core.node import Node

CHECKPOINT, OWN_WORKER = "checkpoint", "own worker"
"""Users of a snapshot that are no learners. No valid peer ids, so they can't collide with one."""
AT_HOME = CHECKPOINT, OWN_WORKER

BUSY, PAUSED = "busy", "paused: no quorum here"
"""Reasons for which a snapshot is missing now, and may be had later."""


@dataclass
class Snapshot:
    """A snapshot from the order on: the worker copies, the agent hashes, then it is offered."""

    step: int
    head: bytes = b""
    data: DataState = field(default_factory=DataState)
    view: View | None = None
    views: list[View] = field(default_factory=list)
    """That one and those since."""
    users: list[str] = field(default_factory=list)
    offered: set[str] = field(default_factory=set)
    manifest: StateManifest | None = None
    shard_bytes: int = 1
    hashes: tuple[bytes, ...] = ()
    hashed: bool = False


class Donor:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._snapshot: Snapshot | None = None
        self._prepared = False
        self.state_bytes = 0
        """Of a snapshot, as far as the own worker has made memory for one; 0: not known."""
        self._waiting: dict[str, SnapshotPrepare] = {}
        self._floors: dict[str, int] = {}
        self._lost: dict[str, float] = {}
        """Learners that were lost in mid-transfer, and until when the snapshot is kept for their return."""

    def learners_floor(self, finished: int, acks: Mapping[str, int]) -> int:
        """Learners may still ask for results from this step on, as far as those are kept; `finished` if for none.

        `acks`: the last step that each peer has said to hold. A learner needs all after its snapshot's and that.
        """
        oldest, floor = finished - self._ctx.kept_for_learners, finished
        served = self.served_step()
        if served is not None and served > oldest:
            floor = min(floor, served)  # who joins meanwhile may take the same snapshot
        for info in self._ctx.view.learners if self._ctx.views else ():
            snapshot = self._floors.get(info.id)
            if snapshot is not None and info.id != self._ctx.id:
                behind = max(snapshot, acks.get(info.id, 0))
                floor = min(floor, behind) if behind > oldest else floor
        return min(floor, self._node.returning.floor(finished))

    def served_step(self) -> int | None:
        """The step of the snapshot that learners get here now; None if there is none."""
        current = self._snapshot
        return current.step if current is not None and any(user != CHECKPOINT for user in current.users) else None

    def _learners(self) -> list[str]:
        """Other peers that use the snapshot."""
        return [user for user in self._snapshot.users if user not in AT_HOME] if self._snapshot is not None else []

    # --- requests ------------------------------------------------------------------------------------------

    def on_prepare(self, src: str, message: SnapshotPrepare) -> None:
        if obstacle := self._obstacle():
            self._ctx.send(src, SnapshotMissing(0, 0, obstacle))
        elif self._prepared:
            self._answer_ready(src, message)
        elif src not in self._waiting:
            self._waiting[src] = message
            if len(self._waiting) == 1:
                self._node.worker.prepare_snapshot()

    def _can_serve(self) -> bool:
        worker = self._node.worker.worker
        return self._ctx.role == Role.MEMBER and worker is not None and not worker.script_ended

    def _obstacle(self) -> str:
        """Why learners get nothing here; '' if they do. A minority's state may be stale."""
        if self._node.pause.reason:
            return PAUSED
        return "" if self._can_serve() else "no worker with the run's state here"

    def _answer_ready(self, src: str, asked: SnapshotPrepare) -> None:
        worker, steps = self._node.worker.worker, self._node.steps
        replayable = worker is not None and not worker.by_hand
        served = self.served_step() or 0
        there = self._snapshot is not None and self._snapshot.hashed
        mine = self._snapshot is not None and src in self._snapshot.users  # it comes back, and has shards of it
        kept = self._ctx.kept_for_learners if mine else self._ctx.kept_results // 2
        fresh = served > steps.finished - kept
        since = self._node.returning.views_since(src, asked.step, asked.head) if replayable else ()
        if since:
            self._floors[src] = asked.step
        serves = served if there and fresh else 0
        self._ctx.send(src, DonorReady(steps.finished, steps.running, replayable, serves, self.state_bytes, since))

    def on_prepared(self, nbytes: int) -> None:
        self._prepared, self.state_bytes = True, nbytes
        waiting, self._waiting = self._waiting, {}
        for src, message in waiting.items():
            self._answer_ready(src, message)

    def on_declined(self, reason: str) -> None:
        """This host has no memory for a snapshot: learners get the state from others, and checkpoints are left out."""
        self._prepared = False
        waiting, self._waiting = self._waiting, {}
        if self._ctx.role == Role.MEMBER:
            self._ctx.trace("donor_declines", reason=reason)
        for src in waiting:
            self._ctx.send(src, SnapshotMissing(0, self._node.steps.finished, reason))
        if self._snapshot is not None and self._snapshot.manifest is None:
            self._drop(0, reason)

    def on_snapshot_at(self, src: str, message: SnapshotAt) -> None:
        worker = self._node.worker.worker
        applied = worker.applied if worker is not None and worker.applied is not None else 0
        self._node.returning.forget(src)
        if message.step > self._node.steps.finished + AHEAD:
            raise RemoteProtocolError(
                f"a snapshot of step {message.step} while {self._node.steps.finished} is finished"
            )
        if self._snapshot is not None and self._snapshot.step != message.step:
            self.release(src, self._snapshot.step)
        if self._snapshot is not None and self._snapshot.step != message.step:
            self._make_room()
        current = self._snapshot
        if self._node.pause.reason:
            self._ctx.send(src, SnapshotMissing(message.step, applied, PAUSED))
        elif current is not None and current.step == message.step:
            if src not in current.users:
                current.users.append(src)
            current.offered.discard(src)
            self._keep_results_since(src, message)
            self._offer()
        elif not self._can_serve():
            self._ctx.send(src, SnapshotMissing(message.step, applied, "no worker with the run's state here"))
        elif current is not None:
            self._ctx.send(src, SnapshotMissing(message.step, applied, BUSY))
        elif message.step < applied or message.step < self._node.steps.finished:
            self._ctx.send(src, SnapshotMissing(message.step, self._node.steps.finished, "past"))
        elif message.compares and message.step == applied and not self._node.worker.copies_in_time(self.state_bytes):
            self._ctx.send(src, SnapshotMissing(message.step, applied, "a step would wait for its copy"))
        else:
            self._keep_results_since(src, message)
            self._order(message.step, src)

    def _keep_results_since(self, src: str, message: SnapshotAt) -> None:
        if src not in self._floors or not message.compares:
            self._floors[src] = message.step

    def _order(self, step: int, user: str) -> None:
        self._snapshot = Snapshot(step, users=[user])
        if step == self._node.steps.finished:
            self._mark()
        self._node.worker.take_snapshot(step)

    def _mark(self) -> None:
        """The snapshot's step is the last finished one: note what else belongs to it."""
        current, steps = self._snapshot, self._node.steps
        assert current is not None and current.step == steps.finished
        current.head, current.data, current.view = steps.head, steps.data, self._ctx.view
        current.views = list(self._ctx.views)

    def on_committed(self, step: int) -> None:
        every = self._ctx.config.checkpoint_every
        if self._snapshot is not None and self._snapshot.step == step and not self._snapshot.head:
            self._mark()
        elif every and step % every == 0 and self._can_serve():
            self._make_room()
            if self._snapshot is None:
                self._order(step, CHECKPOINT)
            else:
                reason = f"the snapshot of step {self._snapshot.step} is in use"
                self._ctx.trace("checkpoint_skipped", step=step, reason=reason)

    # --- the snapshot gets ready ---------------------------------------------------------------------------

    def on_taken(self, message: SnapshotTaken) -> None:
        current = self._snapshot
        if current is None or current.step != message.manifest.step:
            return
        current.manifest = message.manifest
        self._ctx.trace(
            "snapshot",
            step=current.step,
            bytes=message.manifest.nbytes,
            stall_ms=round(message.stall_s * 1000, 3),
        )
        current.shard_bytes = self._ctx.config.shard_bytes or shard_size(message.manifest.nbytes)
        self._ctx.emit(HashSnapshot(current.step, current.shard_bytes))

    def on_hashed(self, event: SnapshotHashed) -> None:
        current = self._snapshot
        if current is not None and current.step == event.step:
            current.hashes, current.hashed = event.hashes, True
            self._offer()

    def on_stable(self) -> None:
        self._offer()

    def _offer(self) -> None:
        """Only a stable step leaves this peer."""
        current = self._snapshot
        if current is None or not current.hashed or current.manifest is None or current.view is None:
            return
        if current.step > self._node.steps.stable:
            return
        offer = self._described(current, current.manifest)
        for user in current.users:
            if user == OWN_WORKER or user in current.offered or (user != CHECKPOINT and self._node.pause.reason):
                continue
            current.offered.add(user)
            if user == CHECKPOINT:
                self._ctx.emit(
                    WriteCheckpoint(current.step, current.view, current.head, current.data, current.manifest)
                )
            else:
                self._ctx.send(user, offer)

    @staticmethod
    def _described(current: Snapshot, manifest: StateManifest) -> SnapshotOffer:
        return SnapshotOffer(
            current.step, current.head, current.data, manifest, current.shard_bytes, current.hashes,
            newest_views(current.views),
        )  # fmt: skip

    def own_offer(self) -> SnapshotOffer | None:
        """The snapshot that was kept for the own worker, if it can go on from there with what is kept here."""
        current = self._snapshot
        if current is None or OWN_WORKER not in current.users or not self._leads_here(current):
            return None
        assert current.manifest is not None
        return self._described(current, current.manifest)

    def _leads_here(self, current: Snapshot) -> bool:
        """Whether a worker with this snapshot's state would come to where this peer stands by results kept here."""
        steps = self._node.steps
        whole = current.manifest is not None and current.hashed and current.head != b""
        known = self._node.worker.known
        if not whole or not steps.head or current.step > min(steps.stable, steps.finished):
            return False
        if known is not None and known.by_hand:
            return False
        if current.step == steps.finished:
            return current.head == steps.head
        since = [steps.history.get(step) for step in range(current.step + 1, steps.finished + 1)]
        return all(done is not None for done in since) and since[0] is not None and since[0].before == current.head

    # --- serving and letting go ----------------------------------------------------------------------------

    def on_shard_request(self, src: str, message: ShardRequest) -> None:
        current = self._snapshot
        if current is None or current.step != message.step or not current.hashed or self._node.pause.reason:
            reason = self._node.pause.reason and PAUSED
            self._ctx.send(src, SnapshotMissing(message.step, self._node.steps.finished, reason or "released"))
            return
        shards = tuple(s for s in message.shards if s < len(current.hashes))
        self._ctx.emit(ServeShards(src, message.step, shards, message.afresh))

    def release(self, user: str, step: int | None) -> None:
        """`user` needs the snapshot of this step no more; None: whichever it is."""
        current = self._snapshot
        if current is not None and step in (None, current.step) and user in current.users:
            current.users.remove(user)
            if not current.users:
                self._snapshot = None
                self._node.worker.need_no_snapshot(current.step)
                self._ctx.emit(ReleaseSnapshot(received=False))

    def on_missed(self, step: int, applied: int) -> None:
        """The own worker had gone past the step."""
        current = self._snapshot
        if current is not None and current.step == step:
            self._drop(applied, "past")

    def on_worker_died(self) -> None:
        """An unfinished snapshot is lost; a finished one stays in memory, is served on, and serves the next worker."""
        self._prepared = False
        self._waiting.clear()
        current = self._snapshot
        if current is not None and current.manifest is None:
            self._drop(0, "the worker died")
        elif current is not None and self._ctx.role == Role.MEMBER and self._leads_here(current):
            current.users.append(OWN_WORKER)

    def _drop(self, applied: int, reason: str) -> None:
        current, self._snapshot = self._snapshot, None
        assert current is not None
        for user in current.users:
            if user not in AT_HOME:
                self._ctx.send(user, SnapshotMissing(current.step, applied, reason))

    def tick(self) -> None:
        """Let go of a snapshot whose learner does not come back, or could not go on from it any more."""
        current, learners = self._snapshot, {p.id for p in self._ctx.view.learners} if self._ctx.views else set()
        self._lost = {user: until for user, until in self._lost.items() if user not in learners}
        if current is None:
            return
        stale = current.step <= self._node.steps.finished - self._ctx.kept_for_learners
        if stale:
            self.release(OWN_WORKER, current.step)
        for user in [u for u in self._learners() if u not in learners]:
            if stale or not current.hashed or self._lost.get(user, 0.0) <= self._ctx.now:
                self._lost.pop(user, None)
                self.release(user, current.step)

    def _make_room(self) -> None:
        """Somebody else needs the memory now."""
        current = self._snapshot
        for user in [u for u in current.users if u in self._lost] if current is not None else ():
            assert current is not None
            del self._lost[user]
            self.release(user, current.step)

    def give_up(self) -> None:
        """This peer serves nobody any more: it was left behind, or needs the memory for its own snapshot."""
        self._waiting.clear()
        if self._snapshot is not None:
            self._drop(0, "not a donor any more")
            self._ctx.emit(ReleaseSnapshot(received=False))

    def paused(self) -> None:
        """This peer's side may be the one that is left behind: it stops serving learners, and says so."""
        current = self._snapshot
        for user in self._learners():
            assert current is not None
            self._ctx.emit(ServeShards(user, current.step, ()))
            self._ctx.send(user, SnapshotMissing(current.step, self._node.steps.finished, PAUSED))
            self.release(user, current.step)

    def installed(self, view: View) -> None:
        """Learners that are none any more need nothing."""
        if self._snapshot is not None and self._snapshot.views:
            self._snapshot.views.append(view)
        learners = {p.id for p in view.learners}
        self._floors = {peer: step for peer, step in self._floors.items() if peer in learners}
        if self._snapshot is not None:
            for user in [u for u in self._learners() if u not in learners]:
                if view.member(user) is None and user not in self._lost:
                    self._lost[user] = self._ctx.now + self._ctx.config.keep_for_lost_s
                    self._ctx.emit(ServeShards(user, self._snapshot.step, ()))
            self.tick()
        if self._ctx.config.checkpoint_every and not self._prepared and self._can_serve():
            self._node.worker.prepare_snapshot()
