"""A simulated worker: computes for a while, contributes, applies. Its state is the hash chain of what it applied."""

from __future__ import annotations

from typing import Protocol

from msgspec.structs import replace

from chaos.core import worker_messages as wm
from chaos.core.data import held
from chaos.core.types import SampleRange, StateManifest
from chaos.sim.symbols import FINGERPRINT, LAYOUT, Result, digest

BATCH = 4
LIGHT_S = 0.0005
"""Seconds that a message between worker and agent takes."""


class Desk(Protocol):
    """What a worker knows of the peer it belongs to."""

    index: int

    @property
    def id(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def by_hand(self) -> bool: ...
    @property
    def result_bytes(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def lacks_memory(self) -> bool: ...
    def from_worker(self, worker: Worker, message: wm.FromWorker, delay: float) -> None: ...
    def result_of(self, step: int) -> Result: ...
    def is_corrupt(self, step: int) -> bool: ...
    def compute_s(self) -> float: ...
    def ends_after(self, applied: int) -> bool: ...
    def applied(self, worker: Worker, head: bytes) -> None: ...
    def out_of_order(self, worker: Worker, step: int) -> None: ...


class Worker:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.alive = True
        self.applied = 0
        self.chain = digest("initial", desk.index)
        self.ended = False
        self._computed = 0
        """The step whose contribution it computed last as a member."""
        self._snapshots: set[int] = set()

    def _say(self, message: wm.FromWorker, delay: float = LIGHT_S) -> None:
        self._desk.from_worker(self, message, delay)

    def start(self) -> None:
        self._say(wm.Register(1, FINGERPRINT, replace(LAYOUT, nbytes=self._desk.result_bytes)))

    def hear(self, message: wm.FromAgent, head: bytes) -> None:
        """`head` is the lineage after a commit's step, for the promises."""
        if not self.alive or self.ended:
            return
        match message:
            case wm.Welcome(founder=founder, step=step):
                self.applied = step
                if founder:
                    self.chain = digest("initial", 0)
                self._say(wm.DeclareData("shard", self._desk.samples, 2 * BATCH))
            case wm.LoadState(manifest):
                self.applied, self.chain = manifest.step, manifest.scalars
                self._say(wm.StateLoaded(manifest.step))
            case wm.Commit():
                self._apply(message, head)
            case wm.PrepareSnapshot() if self._desk.lacks_memory:
                self._say(wm.SnapshotDeclined("no memory for a snapshot"), 0.01)
            case wm.PrepareSnapshot():
                self._say(wm.SnapshotPrepared(self._desk.state_bytes), 0.01)
            case wm.TakeSnapshot(step):
                if step < self.applied:
                    self._say(wm.SnapshotMissed(step, self.applied))
                else:
                    self._snapshots.add(step)
                    self._snapshot()
            case wm.Proceed():
                self._proceed(message)
            case wm.Declined():
                self.ended = True

    def _apply(self, message: wm.Commit, head: bytes) -> None:
        if message.step != self.applied + 1:
            self._desk.out_of_order(self, message.step)
        self.applied = message.step
        if not message.skip:
            corrupt = self._desk.is_corrupt(message.step) and self._desk.index
            self.chain = digest(self.chain, message.step, self._desk.result_of(message.step), corrupt)
            if self._desk.by_hand and self._computed == message.step:
                self.chain = digest(self.chain, "changed by hand")
        self._desk.applied(self, head)
        if self._computed != message.step:
            self._say(wm.Applied(self.applied))
        self._snapshot()

    def _snapshot(self) -> None:
        if self.applied in self._snapshots:
            self._snapshots.discard(self.applied)
            manifest = StateManifest(self.applied, self._desk.state_bytes, (), self.chain)
            self._say(wm.SnapshotTaken(manifest, 0.0), 0.004)

    def _proceed(self, message: wm.Proceed) -> None:
        if message.leaving or self._desk.ends_after(self.applied):
            self.ended = True
            self._say(wm.Finished(self.applied))
            return
        compute = self._desk.compute_s()
        part = None if message.role == "learner" else self._contribution(message)
        self._computed = 0 if part is None else message.step
        self._say(wm.Boundary(self.applied, part, compute, self._desk.by_hand), compute)

    def _contribution(self, message: wm.Proceed) -> wm.Contribution:
        data = message.data
        taken: list[tuple[int, int]] = []
        need = BATCH
        for start, stop in held(data, self._desk.id):
            cut = min(stop, start + need)
            if cut > start:
                taken.append((start, cut))
                need -= cut - start
        count = sum(stop - start for start, stop in taken)
        ranges = tuple(SampleRange(data.epoch, start, stop) for start, stop in taken)
        return wm.Contribution(float(count), count == 0, 1.0, ranges, b"\1", b"", 2 * BATCH, False)
