"""Which samples this worker is to use, and how they become a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import default_collate

from chaos.core.data import Span
from chaos.core.types import SampleRange
from chaos.train.errors import Unsupported

Collate = Callable[[list[Any]], Any]


def permutation(samples: int, seed: int, epoch: int, peer: str = "") -> np.ndarray:
    """Order of the dataset in one pass: int64, shape (samples,). Equal everywhere for equal arguments.

    Made with numpy's legacy generator, whose stream is frozen across versions and machines.
    """
    key = hashlib.sha256(f"order/{seed}/{epoch}/{peer}".encode()).digest()
    return np.random.RandomState(np.frombuffer(key, dtype="<u4")).permutation(samples)


def step_seed(seed: int, peer: str, step: int) -> int:
    """The seed of torch's generators for one peer's forward of one step; below 2**63."""
    digest = hashlib.sha256(f"step/{seed}/{peer}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Source:
    """A map-style dataset with its batch size and collate function."""

    dataset: Any
    batch_size: int
    collate: Collate

    @classmethod
    def make(cls, dataset: object, batch_size: int, collate: Collate | None, call: str) -> Source:
        """Raises `Unsupported` for a dataset without length or items, or a batch size below 1."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise Unsupported(f"{call} needs a batch_size from 1, not {batch_size!r}")
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise Unsupported(f"{call} needs a dataset with a length and items; {type(dataset).__name__} is a stream")
        source = cls(dataset, batch_size, collate or default_collate)
        if len(source) == 0:
            raise Unsupported(f"{call} was given an empty dataset")
        return source

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int]) -> Any:
        """The collated samples at these dataset indices."""
        if hasattr(self.dataset, "__getitems__"):
            return self.collate(self.dataset.__getitems__(list(indices)))
        return self.collate([self.dataset[i] for i in indices])


class Meter:
    """Counts what goes into the contribution being computed: samples, explicit weights, losses."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start the next contribution."""
        self.ranges: list[SampleRange] = []
        self.micro_batches = 0
        self._weight = 0.0
        self._handed_out = 0
        self._blank = False
        self._losses: list[tuple[Any, float]] = []

    def hand_out(self, count: int, ranges: Sequence[SampleRange] = ()) -> None:
        """`count` samples go to the script."""
        self._handed_out += count
        self.ranges.extend(ranges)

    def hand_out_blank(self) -> None:
        """The script gets a batch that weighs nothing, whatever weight the script gives it."""
        self._blank = True

    def close_micro_batch(self, loss: Any, weight: float | None) -> None:
        """The script stepped: its micro-batch weighs `weight`, or as many as were handed out, or 1."""
        share = float(self._handed_out) if self._blank else self._open_weight(weight)
        self._weight += share
        self._handed_out, self._blank = 0, False
        self.micro_batches += 1
        if loss is not None and share > 0:
            self._losses.append((loss.detach() if hasattr(loss, "detach") else loss, share))

    def known_weight(self) -> float | None:
        """Weight of the contribution if it ended with the samples handed out now; None if no iterator is used."""
        return self._weight + self._handed_out if self._handed_out else None

    @property
    def weight(self) -> float:
        """Weight of the closed micro-batches."""
        return self._weight

    @property
    def is_blank(self) -> bool:
        """Whether the open micro-batch weighs nothing."""
        return self._blank

    @property
    def has_open_samples(self) -> bool:
        """Whether samples were handed out since the last micro-batch was closed."""
        return self._handed_out > 0

    def loss(self) -> float | None:
        """Mean of the losses given, weighted with their micro-batches."""
        total = sum(share for _, share in self._losses)
        return sum(float(loss) * share for loss, share in self._losses) / total if total else None

    def _open_weight(self, weight: float | None) -> float:
        if weight is not None:
            return float(weight)
        return float(self._handed_out or 1)


def positions(spans: Sequence[Span]) -> np.ndarray:
    """All positions in the spans, in order."""
    return np.concatenate([np.arange(start, stop) for start, stop in spans]) if spans else np.arange(0)


def merged(ranges: Sequence[SampleRange]) -> tuple[SampleRange, ...]:
    """The same samples in as few ranges as possible."""
    result: list[SampleRange] = []
    for item in sorted(ranges, key=lambda r: (r.epoch, r.start)):
        if result and (result[-1].epoch, result[-1].stop) == (item.epoch, item.start):
            result[-1] = SampleRange(item.epoch, result[-1].start, item.stop)
        else:
            result.append(item)
    return tuple(result)


class PrivatePasses:
    """Endless passes over a private dataset, reshuffled each time."""

    def __init__(self, source: Source, seed: int, epoch: int, peer: str) -> None:
        self._source, self._seed, self._epoch, self._peer = source, seed, epoch, peer
        self.passes = 0

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of one batch after the other. `passes` counts the complete passes behind."""
        while True:
            order = permutation(len(self._source), self._seed, self._epoch, f"{self._peer}/{self.passes}")
            for start in range(0, len(order), self._source.batch_size):
                if start + self._source.batch_size >= len(order):
                    self.passes += 1
                yield order[start : start + self._source.batch_size].tolist()
