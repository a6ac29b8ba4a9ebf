"""Where gradients and buffers lie in the flat buffers: a function of the model alone, so equal on all peers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chaos.core.types import Layout, Segment
from chaos.train.parts import BufferPlace, Parts, dtype_name

BUCKET_BYTES = 25 * 2**20
"""Target size of a gradient bucket; the size DistributedDataParallel settled on. A guess for slow links."""
ALIGNMENT = 64
"""Bytes; a segment starts at a cache line."""


@dataclass(frozen=True)
class Place:
    """A tensor's elements [start, start + count) within a segment."""

    name: str
    segment: int
    start: int
    count: int


@dataclass
class BufferLayout:
    """The wire layout, and which tensor lies where in it."""

    layout: Layout
    gradients: list[Place]
    """Trainable parameters in buffer order, which is also the order of the bits in `Contribution.touched`."""
    buffers: list[Place]
    """Buffers take the bits after those of the parameters."""


@dataclass
class _Open:
    """A segment being filled."""

    dtype: torch.dtype
    op: str
    names: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    nbytes: int = 0

    def add(self, name: str, count: int) -> None:
        self.names.append(name)
        self.counts.append(count)
        self.nbytes += count * self.dtype.itemsize


def plan_layout(parts: Parts, wire_bf16: bool) -> BufferLayout:
    """Gradient buckets per dtype in reverse parameter order (backward's order), then the buffers.

    A float buffer that is not finite to begin with (a mask of -inf) is taken as a constant and left out.
    """
    buckets = _gradient_buckets(parts)
    shared = _buffer_segments([place for place in parts.buffers if _reducible(place.tensor())])
    segments: list[Segment] = []
    gradients: list[Place] = []
    buffers: list[Place] = []
    offset = 0
    for number, bucket in enumerate([*buckets, *shared]):
        segments.append(Segment(offset, bucket.nbytes, dtype_name(bucket.dtype), bucket.op))
        start = 0
        for name, count in zip(bucket.names, bucket.counts, strict=True):
            (gradients if number < len(buckets) else buffers).append(Place(name, number, start, count))
            start += count
        offset += -(-bucket.nbytes // ALIGNMENT) * ALIGNMENT
    return BufferLayout(Layout(offset, tuple(segments), wire_bf16), gradients, buffers)


def _gradient_buckets(parts: Parts) -> list[_Open]:
    buckets: list[_Open] = []
    current: dict[torch.dtype, _Open] = {}
    for name, param in reversed(parts.trainable.items()):
        if param.numel() == 0:
            continue
        bucket = current.get(param.dtype)
        if bucket is None or bucket.nbytes + param.numel() * param.dtype.itemsize > BUCKET_BYTES:
            bucket = current[param.dtype] = _Open(param.dtype, "mean")
            buckets.append(bucket)
        bucket.add(name, param.numel())
    return buckets


def _buffer_segments(places: Iterable[BufferPlace]) -> list[_Open]:
    floats: dict[torch.dtype, _Open] = {}
    integers = _Open(torch.int64, "max")
    for place in places:
        tensor = place.tensor()
        if tensor.dtype.is_floating_point:
            floats.setdefault(tensor.dtype, _Open(tensor.dtype, "mean")).add(place.name, tensor.numel())
        else:
            integers.add(place.name, tensor.numel())
    return [*floats.values(), *([integers] if integers.counts else [])]


def _reducible(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and (not tensor.dtype.is_floating_point or bool(torch.isfinite(tensor).all()))


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory without overlap, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True
