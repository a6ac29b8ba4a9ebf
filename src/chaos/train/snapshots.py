"""Snapshots of the training state in shared memory, made beside the user's forward and backward."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from chaos.core.errors import ChaosError
from chaos.core.types import StateManifest
from chaos.core.worker_messages import FromWorker, SnapshotDeclined, SnapshotMissed, SnapshotPrepared, SnapshotTaken
from chaos.train.state import Training, copy_out, describe, digest, restore

Send = Callable[[FromWorker, Sequence[int]], None]


@dataclass(frozen=True)
class _Memory:
    fd: int
    view: mmap.mmap


class Snapshots:
    """Obeys the agent's snapshot commands. One background thread allocates and copies.

    Parameters, optimizer state and agreed buffers don't change before the next update, so they are
    copied while the script computes; `settle` must be called before they are written.
    """

    def __init__(self, training: Training, send: Send) -> None:
        self._training = training
        self._send = send
        self._memory: _Memory | None = None
        self._wanted: set[int] = set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chaos-snapshot")
        self._running: list[Future[None]] = []
        self._waiting_since: float | None = None

    def prepare(self, seed: int) -> None:
        """Have memory for the present state allocated and touched in the background: `SnapshotPrepared`."""
        manifest, _ = describe(self._training, 0, seed)
        self._running.append(self._thread.submit(self._prepare, manifest.nbytes))

    def want(self, step: int) -> None:
        """Take the state of `step` as soon as it is there."""
        self._wanted.add(step)

    def take_due(self, applied: int, seed: int) -> None:
        """Start the snapshots wanted at `applied`; report those that were missed."""
        for step in sorted(step for step in self._wanted if step <= applied):
            self._wanted.discard(step)
            if step < applied:
                self._send(SnapshotMissed(step, applied), ())
                continue
            self.settle()
            manifest, tensors = describe(self._training, step, seed)
            self._running.append(self._thread.submit(self._take, manifest, tensors))

    def settle(self) -> None:
        """Wait until nothing is being copied, so that the state may change. Raises what failed meanwhile."""
        self._waiting_since = time.monotonic()
        running, self._running = self._running, []
        for task in running:
            task.result()
        self._waiting_since = None

    def load(self, manifest: StateManifest, fd: int) -> int:
        """Make the state that of the snapshot behind `fd`, which is closed; returns the run's seed.

        Raises `StateMismatch`, with nothing changed, if it doesn't fit.
        """
        self.settle()
        try:
            size = os.fstat(fd).st_size
            memory = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE) if size else b""
        finally:
            os.close(fd)
        return restore(self._training, manifest, memory)

    def digest(self, applied: int, seed: int) -> bytes:
        """See `chaos.train.state.digest`."""
        return digest(self._training, applied, seed)

    def agree(self) -> None:
        """An update was made: the state is that of another step."""
        self._training.agree_on_groups()

    def close(self) -> None:
        """Finish what is being copied and give the memory back; the agent keeps its own mapping of it."""
        self._thread.shutdown(wait=True)
        if self._memory is not None:
            os.close(self._memory.fd)

    def _prepare(self, nbytes: int) -> None:
        self._make(nbytes)

    def _make(self, nbytes: int) -> bool:
        """Whether there is memory now; if not, the agent was told why."""
        if self._memory is None or len(self._memory.view) < nbytes:
            if self._memory is not None:
                os.close(self._memory.fd)
                self._memory = None
            try:
                self._memory = _allocate(nbytes)
            except ChaosError as error:
                self._send(SnapshotDeclined(str(error)), ())
                return False
        self._send(SnapshotPrepared(len(self._memory.view)), (self._memory.fd,))
        return True

    def _take(self, manifest: StateManifest, tensors: list[Tensor]) -> None:
        fits = self._memory is not None and len(self._memory.view) >= manifest.nbytes
        if not fits and not self._make(manifest.nbytes):  # the optimizer's state has grown since it was prepared
            return
        assert self._memory is not None
        copy_out(tensors, manifest, self._memory.view)
        since = self._waiting_since
        self._send(SnapshotTaken(manifest, 0.0 if since is None else time.monotonic() - since), ())


def _allocate(nbytes: int) -> _Memory:
    """Shared memory that is really there, and that can't shrink under the agent's feet.

    ChaosError if the host has not so much to spare: the kernel would end a process instead of refusing.
    """
    nbytes = max(nbytes, mmap.PAGESIZE)
    available = int(psutil.virtual_memory().available)
    if nbytes > available:
        raise ChaosError(
            f"no memory for a snapshot of {nbytes / 2**20:.0f} MiB (available: {available / 2**20:.0f} MiB); "
            "free some on this host"
        )
    fd = os.memfd_create("chaos-snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        os.close(fd)
        raise ChaosError(
            f"no memory for a snapshot of {nbytes / 2**20:.0f} MiB ({error.strerror}); free some on this host"
        ) from error
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    view = mmap.mmap(fd, nbytes)
    torch.frombuffer(view, dtype=torch.uint8).zero_()
    return _Memory(fd, view)
