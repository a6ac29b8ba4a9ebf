"""Between two steps the agent commands and the worker obeys: commits, snapshots, a new state."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import torch

from chaos.core.data import Span, held
from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.types import StateManifest
from chaos.core.worker_messages import (
    Applied,
    Boundary,
    Commit,
    Contribution,
    Declined,
    FromAgent,
    FromWorker,
    LoadState,
    PrepareSnapshot,
    Proceed,
    StateLoaded,
    StateRefused,
    TakeSnapshot,
    Told,
    Welcome,
)
from chaos.train.buckets import Buckets, ResultRing
from chaos.train.buffers import AgreedBuffers
from chaos.train.data import step_seed
from chaos.train.errors import AgentLost, NotAdmitted, StateMismatch
from chaos.train.gradients import Gradients, from_bitmap
from chaos.train.options import OnEvent
from chaos.train.outcome import Outcome
from chaos.train.snapshots import Snapshots
from chaos.train.update import Update


class Link(Protocol):
    """What is needed of `AgentLink`."""

    def send(self, message: FromWorker) -> None: ...

    def receive(self) -> tuple[FromAgent, list[int]]: ...


@dataclass(frozen=True)
class Means:
    """What the commands act on."""

    buckets: Buckets
    buffers: AgreedBuffers
    gradients: Gradients
    ring: ResultRing
    update: Update
    snapshots: Snapshots


class BoundaryLoop:
    """Sends `Boundary` and obeys until `Proceed`. Where the run stands is in its attributes."""

    def __init__(self, link: Link, means: Means, welcome: Welcome, seed: int, on_event: OnEvent | None = None) -> None:
        self._link = link
        self._means = means
        self._on_event = on_event
        self.peer = welcome.peer
        self.seed = seed
        self.applied = welcome.step if welcome.founder else 0
        self.now: Proceed | None = None
        self.stock: tuple[Span, ...] = ()
        """Sample positions leased to this peer and not handed out yet."""
        self.epoch_since = 0
        """The step whose commit began the present epoch, as far as this worker saw it."""
        self.last = Outcome()
        self._held: Commit | None = None
        self._began = self._proceeded = time.monotonic()
        self._updated_s = 0.0
        """What updates took since the last boundary."""

    @property
    def standing(self) -> Proceed:
        """The last `Proceed`."""
        assert self.now is not None
        return self.now

    @property
    def holds_commit(self) -> bool:
        """Whether a commit's gradients were handed to the script and its update is still to be made."""
        return self._held is not None

    def start(self) -> None:
        """Obey until the first `Proceed`, which comes without a boundary."""
        self._obey(hold=None)

    def cross(self, contribution: Contribution | None, hold: bool = False) -> None:
        """Send the contribution (None: as a learner) and obey until the next step may begin.

        With `hold`, stop at the commit of this very step, its reduced gradients in `p.grad`; `release` goes on.
        """
        self._began = time.monotonic()
        if contribution is None:
            self._means.buffers.revert()
        try:
            compute_s, update_s, self._updated_s = self._began - self._proceeded, self._updated_s, 0.0
            self._link.send(Boundary(self.applied, contribution, compute_s, by_hand=hold, update_s=update_s))
        except AgentLost:
            self._raise_if_declined()
            raise
        self._obey(hold=self.applied + 1 if hold else None)

    def release(self) -> None:
        """Make the update of the held commit, and obey until the next step may begin."""
        commit, self._held = self._held, None
        assert commit is not None
        self._finish(commit)
        self._obey(hold=None)

    def digest(self) -> bytes:
        """Of the training state after the last applied step; empty for a learner, which may not have it yet."""
        if self.standing.role == "learner":
            return b""
        return self._means.snapshots.digest(self.applied, self.seed)

    def _obey(self, hold: int | None) -> None:
        while True:
            message, fds = self._link.receive()
            match message:
                case Commit():
                    began = time.monotonic()
                    self._load(message)
                    if message.step == hold:
                        self._held = message
                        return
                    self._finish(message)
                    self._updated_s += time.monotonic() - began
                case LoadState():
                    self._load_state(message.manifest, fds[0])
                case PrepareSnapshot():
                    self._means.snapshots.prepare(self.seed)
                case Told(lines):
                    self._tell(lines)
                case TakeSnapshot():
                    self._means.snapshots.want(message.step)
                    self._means.snapshots.take_due(self.applied, self.seed)
                case Proceed():
                    self._proceed(message)
                    return
                case Declined():
                    raise NotAdmitted(message.reason)
                case Welcome():
                    raise RemoteProtocolError("the agent welcomed this worker twice")

    def _tell(self, lines: tuple[bytes, ...]) -> None:
        """What the script's function raises ends the script, as what it raises elsewhere does."""
        if self._on_event is not None:
            for line in lines:
                self._on_event(msgspec.json.decode(line, type=dict[str, Any]))

    def _load(self, commit: Commit) -> None:
        """Put the reduced, unscaled gradients into `p.grad`."""
        if commit.step != self.applied + 1:
            raise RemoteProtocolError(
                f"the agent sent commit {commit.step} to a worker that has applied {self.applied}"
            )
        if commit.stop:
            raise ChaosError(f"the run stops at step {commit.step}: {commit.skip} (on_nonfinite='stop')")
        means = self._means
        if commit.skip:
            means.buckets.zero_gradients()
            return
        means.buckets.pull(means.ring, commit.slot)
        means.gradients.bind(self._touched(commit)[: len(means.buckets.params)])
        means.update.adopt_scalars(commit.scalars)
        means.update.unscale()

    def _finish(self, commit: Commit) -> None:
        """Update parameters and buffers; the step is applied, even if it was skipped."""
        means = self._means
        means.snapshots.settle()
        if not commit.skip:
            means.update.apply(commit.loss)
            means.buckets.pull_buffers(means.buffers, self._touched(commit)[len(means.buckets.params) :])
            means.update.finish()
        else:
            means.buffers.revert()
            if commit.weight > 0:
                means.update.back_off()
        means.snapshots.agree()
        self.applied = commit.step
        if commit.weight > 0:  # a step of nobody, at an epoch's end, tells the script nothing
            self.last = Outcome(commit.step, commit.loss, commit.weight, commit.skip, self.last.wait_s)
        if self.now is None or self.now.role == "learner" or self.now.step != commit.step:
            self._link.send(Applied(self.applied))  # of the step that it computed, its next boundary tells
        means.snapshots.take_due(self.applied, self.seed)

    def _touched(self, commit: Commit) -> list[bool]:
        return from_bitmap(commit.touched, self._means.buckets.bits)

    def _load_state(self, manifest: StateManifest, fd: int) -> None:
        try:
            self.seed = self._means.snapshots.load(manifest, fd)
        except StateMismatch as error:
            self._link.send(StateRefused(str(error)))
            return
        self.applied = manifest.step
        self._link.send(StateLoaded(manifest.step))

    def _proceed(self, message: Proceed) -> None:
        if message.role != "learner" and not message.leaving and message.step != self.applied + 1:
            raise RemoteProtocolError(
                f"the agent asks a worker that has applied {self.applied} for a contribution to step {message.step}"
            )
        if self.now is None or self.now.data.epoch != message.data.epoch:
            self.epoch_since = message.step - 1
        self.now = message
        self.stock = held(message.data, self.peer)
        self._means.gradients.reset()
        torch.manual_seed(step_seed(self.seed, self.peer, message.step))
        self._proceeded = time.monotonic()
        self.last = self.last.with_wait(self._proceeded - self._began)

    def _raise_if_declined(self) -> None:
        """The agent is gone; if its last message says why, that is the better error."""
        while True:
            message, _ = self._link.receive()
            if isinstance(message, Declined):
                raise NotAdmitted(message.reason)
