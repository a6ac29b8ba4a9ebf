"""A run with an agent: contributions, leases and epochs of one peer among others."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from chaos.core.data import size, take
from chaos.core.types import SampleRange
from chaos.core.worker_messages import BucketReady, Contribution, DeclareData, Failed, Finished
from chaos.train.agent_link import AgentLink
from chaos.train.boundary import BoundaryLoop, Means
from chaos.train.data import PrivatePasses, Source, merged, permutation, positions
from chaos.train.errors import AgentLost, Unsupported, WeightMismatch
from chaos.train.gradients import to_bitmap
from chaos.train.options import Options
from chaos.train.outcome import Outcome
from chaos.train.run import Run

MAX_TRACEBACK = 65536
"""Characters; the bound of `Failed.traceback`. The end of a longer one is kept."""


class PeerRun(Run):
    """One peer's part in the run. `loop` has not started yet."""

    def __init__(self, options: Options, link: AgentLink, means: Means, loop: BoundaryLoop, name: str) -> None:
        super().__init__(options, means.update)
        self.name = name
        self.peer = loop.peer
        self._link = link
        self._means = means
        self._loop = loop
        self._declared: tuple[str, int] | None = None
        self._want = 0
        self._pass_done_in: int | None = None
        """The epoch in which this peer went once through its private data."""
        self._sent_weight: float | None = None
        """The weight with which buckets of this step were handed to the agent."""
        self._by_hand = False
        """The script calls `run.sync()` and may change the reduced gradients; so each peer's must at every step."""
        means.gradients.announce = self._announce
        loop.start()

    @property
    def steps(self) -> int:
        return self._loop.applied

    @property
    def members(self) -> int:
        return self._loop.standing.members

    @property
    def role(self) -> str:
        return self._loop.standing.role

    @property
    def leaving(self) -> bool:
        return self._loop.standing.leaving

    @property
    def last(self) -> Outcome:
        return self._loop.last

    def epoch(self) -> int | None:
        data = self._loop.standing.data
        return data.epoch if self._declared is not None or data.kind != "none" else None

    # --- data --------------------------------------------------------------------------------------------

    def shard(self, source: Source) -> Iterator[Any]:
        self._declare("shard", source)
        if len(source) < self.members:
            raise Unsupported(f"a dataset of {len(source)} samples can't be sharded over {self.members} members")
        return self._shard(source)

    def _shard(self, source: Source) -> Iterator[Any]:
        loop, epoch = self._loop, self.epoch()
        order = _Order(len(source))

        def blank() -> Any:
            first = (0, min(source.batch_size, len(source)))
            return source.batch(order.at(loop.seed, loop.standing.data.epoch, (first,)))

        while not self.leaving:
            present = loop.standing.data.epoch
            if self.role == "learner":
                yield blank()
                continue
            if present != epoch:
                yield from self._await_stable(blank)
                return
            spans, loop.stock = take(loop.stock, source.batch_size)
            if not spans:
                yield from self._idle(blank)
                continue
            self._meter.hand_out(size(spans), [SampleRange(present, start, stop) for start, stop in spans])
            yield source.batch(order.at(loop.seed, present, spans))

    def private(self, source: Source) -> Iterator[Any]:
        self._declare("private", source)
        return self._private(source)

    def _private(self, source: Source) -> Iterator[Any]:
        loop, epoch = self._loop, self.epoch()
        batches: Iterator[list[int]] | None = None

        def blank() -> Any:
            return source.batch(range(min(source.batch_size, len(source))))

        while not self.leaving:
            present = loop.standing.data.epoch
            if self.role == "learner":
                yield blank()
                continue
            if present != epoch:
                yield from self._await_stable(blank)
                return
            if batches is None:
                passes = PrivatePasses(source, loop.seed, present, self.peer)
                batches = iter(passes)
            indices = next(batches)
            if passes.passes:
                self._pass_done_in = present
            self._meter.hand_out(len(indices))
            yield source.batch(indices)

    def _declare(self, kind: str, source: Source) -> None:
        declared = (kind, len(source))
        self._want = 2 * source.batch_size * self._options.accumulate if kind == "shard" else 0
        if self._declared is None:
            self._declared = declared
            self._link.send(DeclareData(kind, len(source), self._want))
        elif self._declared != declared:
            before, samples = self._declared
            raise Unsupported(
                f"a run has one training dataset: run.{before} was called with {samples} samples, "
                f"and now run.{kind} with {len(source)}"
            )

    def _await_stable(self, blank: Callable[[], Any]) -> Iterator[Any]:
        """The epoch is over here; what follows may rely on it only once no peer can take it back."""
        while self.role != "learner" and not self.leaving and self._loop.standing.stable < self._loop.epoch_since:
            yield from self._idle(blank)

    def _idle(self, blank: Callable[[], Any]) -> Iterator[Any]:
        """Nothing to compute: contribute what micro-batches have gathered, or nothing.

        A script that changes gradients by hand gets a batch that weighs nothing, so that it makes this update too.
        """
        has_gradient = self._means.gradients.anything()
        if self._by_hand:
            self._means.gradients.keep()
            self._meter.hand_out_blank()
            yield blank()
            return
        if has_gradient and self._meter.has_open_samples:
            self._meter.close_micro_batch(None, None)
        self._cross(self._meter.weight if has_gradient else 0.0)

    # --- steps -------------------------------------------------------------------------------------------

    def _complete(self) -> None:
        self._cross(self._meter.weight)

    def _synchronise(self) -> None:
        self._by_hand = True
        self._cross(self._meter.weight, hold=True)

    def _finish_synced(self) -> None:
        """A learner, or a peer that was given a new state meanwhile, holds no commit: its step is behind it."""
        if self._loop.holds_commit:
            self._loop.release()

    def _next_micro_batch(self) -> None:
        self._means.gradients.begin_micro_batch()

    def _after_epochs(self) -> None:
        """A peer that came after the last epoch still leaves with the run's state, not its own initial one."""
        if self.role == "learner" and not self.leaving:
            self._cross(0.0)

    def _cross(self, weight: float, hold: bool = False) -> None:
        contribution = None if self.role == "learner" else self._contribution(weight)
        self._sent_weight = None
        self._meter.clear()
        self._loop.cross(contribution, hold)

    def _contribution(self, weight: float) -> Contribution:
        if self._sent_weight is not None and self._sent_weight != weight:
            raise WeightMismatch(
                f"run.step got weight {weight:g} after a bucket had been sent with weight {self._sent_weight:g}; "
                "make the session with overlap=False to give weights by hand"
            )
        means, empty = self._means, weight == 0
        touched = means.gradients.collect() + means.buckets.push_buffers(means.buffers)
        means.buckets.push()
        return Contribution(
            weight=weight,
            empty=empty,
            loss=None if empty else self._meter.loss(),
            ranges=merged(self._meter.ranges),
            touched=to_bitmap([bit and not empty for bit in touched]),
            scalars=means.update.scalars(),
            want=0 if self.leaving else self._want,
            pass_done=self._pass_done_in is not None and self._pass_done_in == self._loop.standing.data.epoch,
        )

    def _announce(self, segment: int) -> bool:
        """Backward has completed a bucket. Hands it to the agent if nothing can change it or its weight any more."""
        weight = self._meter.known_weight()
        last = not self._unsynced and self._meter.micro_batches == self._options.accumulate - 1
        if not (self._options.overlap and self._means.buckets.can_overlap and last and weight is not None):
            return False
        if self.role != "member" or self._sent_weight not in (None, weight):
            return False
        self._sent_weight = weight
        self._link.send(BucketReady(self._loop.standing.step, segment, weight))
        return True

    # --- the end -----------------------------------------------------------------------------------------

    def close(self, error: BaseException | None) -> None:
        """Tell the agent how the script ended. Raises `AgentLost` only after a normal end."""
        try:
            if error is None and self._synced:
                self._finish_synced()
            if error is None and self._sent_weight is not None:  # the others may have summed these gradients already
                self._meter.close_micro_batch(None, None)
                self._complete()
            self._means.snapshots.close()
            if _is_normal(error) and self._sent_weight is None:
                self._link.send(Finished(self.steps, self._loop.digest()))
            else:
                text = "".join(traceback.format_exception(error))
                with suppress(AgentLost):
                    self._link.send(Failed(text[-MAX_TRACEBACK:]))
        finally:
            self._means.gradients.close()
            self._link.close()


class _Order:
    """The permutation of the present epoch, made once per epoch."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._key: tuple[int, int] | None = None
        self._order = np.arange(0)

    def at(self, seed: int, epoch: int, spans: tuple[tuple[int, int], ...]) -> list[int]:
        """Dataset indices at these positions."""
        if self._key != (seed, epoch):
            self._key, self._order = (seed, epoch), permutation(self._samples, seed, epoch)
        return [int(i) for i in self._order[positions(spans)]]


def _is_normal(error: BaseException | None) -> bool:
    """Whether leaving by `error` is the user's wish rather than a failure."""
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return error is None or isinstance(error, KeyboardInterrupt | GeneratorExit)
