"""A run without an agent: plain PyTorch behind the same interface."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from chaos.core.errors import ChaosError
from chaos.train.data import Source, permutation, step_seed
from chaos.train.options import OnEvent, Options
from chaos.train.outcome import Outcome
from chaos.train.run import Run
from chaos.train.update import Update

PEER = "0" * 16
"""The id of the only peer; it orders private data and seeds steps."""


class SoloRun(Run):
    """One process, no other peers. Samples come in the order in which a run with peers would lease them."""

    def __init__(
        self, options: Options, update: Update, params: list[nn.Parameter], on_event: OnEvent | None = None
    ) -> None:
        super().__init__(options, update)
        self._on_event = on_event
        self.name = socket.gethostname()
        self.peer = PEER
        self._params = params
        self._steps = 0
        self._epoch: int | None = None
        self._used = 0
        """Samples of the present epoch that were handed out."""
        self._skip = ""
        self._last = Outcome()
        self._begin_step()

    @property
    def steps(self) -> int:
        return self._steps

    @property
    def members(self) -> int:
        return 1

    @property
    def role(self) -> str:
        return "solo"

    @property
    def leaving(self) -> bool:
        return False

    @property
    def last(self) -> Outcome:
        return self._last

    def epoch(self) -> int | None:
        return self._epoch

    def shard(self, source: Source) -> Iterator[Any]:
        return self._batches(source, "")

    def private(self, source: Source) -> Iterator[Any]:
        return self._batches(source, f"{PEER}/0")

    def _batches(self, source: Source, order_of: str) -> Iterator[Any]:
        epoch = self._epoch = self._epoch or 0
        order: np.ndarray = permutation(len(source), self._options.seed, epoch, order_of)
        while self._epoch == epoch:
            indices = order[self._used : self._used + source.batch_size].tolist()
            if not indices:
                self._end_epoch()
                return
            self._used += len(indices)
            self._meter.hand_out(len(indices))
            yield source.batch(indices)

    def _end_epoch(self) -> None:
        """Micro-batches that make no full step are not lost with the epoch."""
        if self._meter.has_open_samples and any(param.grad is not None for param in self._params):
            self._meter.close_micro_batch(None, None)
        if self._meter.weight:
            self._complete()
        self._epoch, self._used = (self._epoch or 0) + 1, 0

    def _complete(self) -> None:
        self._synchronise()
        self._finish_synced()

    def _synchronise(self) -> None:
        self._skip = "" if self._meter.weight > 0 else "no member had samples"
        if not self._skip and not self._finite():
            self._skip = f"non-finite gradient from {self.name}"
            if self._options.on_nonfinite == "stop":
                raise ChaosError(f"the run stops at step {self._steps + 1}: {self._skip} (on_nonfinite='stop')")
        if not self._skip:
            self._update.unscale()

    def _finish_synced(self) -> None:
        loss, total = self._meter.loss(), self._meter.weight
        if not self._skip:
            self._update.apply(loss)
            self._update.finish()
        elif total > 0:
            self._update.back_off()
        self._steps += 1
        self._last = Outcome(self._steps, loss, total, self._skip)
        self._begin_step()
        if self._on_event is not None:
            self._on_event(self._commit_event())

    def _commit_event(self) -> dict[str, Any]:
        """As a peer's trace has it, as far as there is anything to tell."""
        last = self._last
        return {
            "kind": "commit", "t": time.monotonic(), "wall": time.time(), "peer": self.name, "at_step": last.step,
            "step": last.step, "loss": last.loss, "weight": last.weight, "skip": last.skipped,
            "contributors": [self.peer], "late": [],
        }  # fmt: skip

    def _begin_step(self) -> None:
        for param in self._params:
            param.grad = None
        self._meter.clear()
        torch.manual_seed(step_seed(self._options.seed, self.peer, self._steps + 1))

    def _next_micro_batch(self) -> None:
        """Gradients add up by themselves."""

    def _after_epochs(self) -> None:
        """There is no run that could be further than this peer."""

    def _finite(self) -> bool:
        grads = [param.grad for param in self._params if param.grad is not None]
        return not grads or bool(torch.stack([torch.isfinite(grad).all() for grad in grads]).all())

    def close(self, error: BaseException | None) -> None:
        if error is None and self._synced:
            self._finish_synced()
