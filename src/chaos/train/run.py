"""What a script does with a run, as far as it is the same with and without other peers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chaos.core.errors import ChaosError
from chaos.train.data import Meter, Source
from chaos.train.errors import WeightMismatch
from chaos.train.options import Options
from chaos.train.outcome import Outcome
from chaos.train.update import Update


class Run(ABC):
    """Micro-batches become steps, and epochs follow the run's."""

    name: str
    peer: str

    def __init__(self, options: Options, update: Update) -> None:
        self._options = options
        self._update = update
        self._meter = Meter()
        self._unsynced = False
        self._synced = False
        """Whether `sync` left reduced gradients that `step` is still to apply."""
        self._synced_weight: float | None = 0.0

    # --- where the run stands ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def steps(self) -> int:
        """Applied steps, skipped ones included."""

    @property
    @abstractmethod
    def members(self) -> int:
        """Peers that contribute to the present step."""

    @property
    @abstractmethod
    def role(self) -> str:
        """'member', 'learner' or 'solo'."""

    @property
    @abstractmethod
    def leaving(self) -> bool:
        """Whether this peer was asked to leave."""

    @property
    @abstractmethod
    def last(self) -> Outcome:
        """What came of the last step."""

    # --- data --------------------------------------------------------------------------------------------

    @abstractmethod
    def epoch(self) -> int | None:
        """The run's present epoch; None while no iterator declared any data."""

    def epochs(self, count: int) -> Iterator[int]:
        """Epochs from the run's present one up to `count`; see `Session.epochs`."""
        own = 0
        while not self.leaving:
            known = self.epoch()
            epoch = own if known is None else known
            if epoch >= count:
                break
            steps = self.steps
            yield epoch
            if self.epoch() is None:
                own += 1
            elif self.epoch() == epoch and self.steps == steps and not self.leaving:
                raise ChaosError(
                    f"no step was taken in epoch {epoch}; iterate run.shard() or run.private() in the loop"
                )
        self._after_epochs()

    @abstractmethod
    def shard(self, source: Source) -> Iterator[Any]:
        """Batches of this peer's share of the present epoch."""

    @abstractmethod
    def private(self, source: Source) -> Iterator[Any]:
        """Batches of this peer's own data until the epoch ends."""

    # --- steps -------------------------------------------------------------------------------------------

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward and step in this block only accumulate."""
        before, self._unsynced = self._unsynced, True
        try:
            yield
        finally:
            self._unsynced = before
            self._next_micro_batch()

    def step(self, loss: Any, weight: float | None) -> None:
        """See `Session.step`."""
        self._check(loss, weight)
        if self._synced:
            self._check_synced_weight(weight)
            self._synced = False
            self._finish_synced()
            return
        self._meter.close_micro_batch(loss, weight)
        if self._unsynced or (self._meter.micro_batches < self._options.accumulate and self.role != "learner"):
            self._next_micro_batch()
        else:
            self._complete()

    def sync(self, loss: Any, weight: float | None) -> None:
        """See `Session.sync`."""
        self._check(loss, weight)
        if self._synced:
            return
        if self._unsynced or self._meter.micro_batches + 1 < self._options.accumulate:
            raise ChaosError("run.sync() came before the last micro-batch; call it once per step, outside of no_sync()")
        blank = self._meter.is_blank
        self._meter.close_micro_batch(loss, weight)
        self._synced_weight = None if blank else self._meter.weight
        self._synchronise()
        self._synced = True

    @abstractmethod
    def close(self, error: BaseException | None) -> None:
        """The script left the session's block, by `error` or in the normal way."""

    @abstractmethod
    def _complete(self) -> None:
        """All micro-batches are in: synchronise and update."""

    @abstractmethod
    def _synchronise(self) -> None:
        """All micro-batches are in: leave the reduced gradients in `p.grad`."""

    @abstractmethod
    def _finish_synced(self) -> None:
        """Update with the gradients that `_synchronise` left, as the script changed them."""

    @abstractmethod
    def _next_micro_batch(self) -> None:
        """What follows is another micro-batch of the same step."""

    @abstractmethod
    def _after_epochs(self) -> None:
        """The script has seen all the epochs it wanted."""

    def _check(self, loss: Any, weight: float | None) -> None:
        if weight is not None and not 0 <= weight < math.inf:
            raise ChaosError(f"weight must be a number from 0, not {weight!r}")
        if loss is None and self._update.needs_loss and not self._synced:
            raise ChaosError("ReduceLROnPlateau decides by the loss; call run.step(loss)")

    def _check_synced_weight(self, weight: float | None) -> None:
        if None not in (weight, self._synced_weight) and weight != self._synced_weight:
            raise WeightMismatch(
                f"run.step got weight {weight:g} after run.sync() had contributed with weight {self._synced_weight:g}; "
                "give the weight to run.sync()"
            )
