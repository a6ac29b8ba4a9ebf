"""The memory that worker and agent share: this worker's contribution, and the results."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from chaos.core.errors import RemoteProtocolError
from chaos.core.types import Layout
from chaos.train.buffers import AgreedBuffers
from chaos.train.layout import BufferLayout, is_dense
from chaos.train.parts import DTYPES, Parts


class ResultRing:
    """The agent's results, mapped read-only: in memory, and from slot number `slots` on in a file. Takes over `fds`."""

    def __init__(self, fds: Sequence[int], slots: int, disk_slots: int, slot_stride: int, nbytes: int) -> None:
        if slots < 1 or slot_stride < nbytes:
            raise RemoteProtocolError(f"a ring of {slots} slots of {slot_stride} bytes can't hold {nbytes} bytes")
        if len(fds) != (2 if disk_slots else 1):
            raise RemoteProtocolError(
                f"{len(fds)} descriptors came for {slots} results in memory, {disk_slots} on disk"
            )
        self._parts = []
        for fd, count in zip(fds, (slots, disk_slots), strict=False):
            memory = _map(fd, count * slot_stride, mmap.PROT_READ)
            self._parts.append(np.frombuffer(memory, dtype=np.uint8).reshape(count, slot_stride)[:, :nbytes])

    def copy(self, slot: int, target: np.ndarray) -> None:
        """Copy the result in `slot` to `target`, a flat array of bytes."""
        number = slot
        for part in self._parts:
            if number < len(part):
                np.copyto(target, part[number])
                return
            number -= len(part)
        raise RemoteProtocolError(f"the agent named result slot {slot} of {sum(map(len, self._parts))}")


class Buckets:
    """The contribution buffer, and views of it that have the shapes of gradients and model buffers.

    On CPU the views lie in the shared memory itself, so that backward writes where the agent reads. On
    another device they lie in flat tensors there, and `push` and `pull` copy whole segments.
    Takes over the descriptor.
    """

    def __init__(self, fd: int, plan: BufferLayout, parts: Parts) -> None:
        memory = _map(fd, plan.layout.nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
        self._bytes = np.frombuffer(memory, dtype=np.uint8)
        self._host = _segment_tensors(memory, plan.layout)
        self.params = [parts.trainable[place.name] for place in plan.gradients]
        self.names = [place.name for place in plan.gradients]
        self.segment_of = [place.segment for place in plan.gradients]
        self._device = self.params[0].device
        if self._device.type == "cuda":
            _pin(self._host)
        self._work = {i: self._host[i].to(self._device) for i in set(self.segment_of)}
        self.views = [
            _shaped(self._work[place.segment][place.start : place.start + place.count], param)
            for place, param in zip(plan.gradients, self.params, strict=True)
        ]
        self._buffers = [
            (place.name, self._host[place.segment][place.start : place.start + place.count]) for place in plan.buffers
        ]
        self.zero_gradients()

    @property
    def bits(self) -> int:
        """Length of the bitmap of touched tensors: gradients, then buffers."""
        return len(self.params) + len(self._buffers)

    @property
    def can_overlap(self) -> bool:
        """Whether a bucket is complete for the agent as soon as backward has filled it."""
        return self._device.type == "cpu"

    def zero_gradients(self) -> None:
        """Set all gradients to zero, where backward adds to them."""
        for segment in self._work.values():
            segment.zero_()

    def copy_gradients(self) -> dict[int, Tensor]:
        """All gradients as they are, by segment."""
        return {number: segment.clone() for number, segment in self._work.items()}

    def restore_gradients(self, kept: dict[int, Tensor]) -> None:
        """Set all gradients to what `copy_gradients` returned."""
        for number, segment in self._work.items():
            segment.copy_(kept[number])

    def push(self) -> None:
        """Bring gradients from the device into shared memory."""
        self._copy_segments(to_host=True)

    def pull(self, ring: ResultRing, slot: int) -> None:
        """Replace the contribution by the result in `slot`; the views then show reduced gradients."""
        ring.copy(slot, self._bytes)
        self._copy_segments(to_host=False)

    def push_buffers(self, buffers: AgreedBuffers) -> list[bool]:
        """Copy the model's buffers into the contribution. Returns which changed since the last step."""
        for name, region in self._buffers:
            region.copy_(buffers.live(name).reshape(-1))
        return [buffers.differs(name) for name, _ in self._buffers]

    def pull_buffers(self, buffers: AgreedBuffers, changed: list[bool]) -> None:
        """Agree on the reduced buffers that some contributor changed; the others keep their exact value."""
        buffers.revert()
        for (name, region), new in zip(self._buffers, changed, strict=True):
            if new:
                buffers.set(name, region)

    def _copy_segments(self, to_host: bool) -> None:
        if self._device.type == "cpu":
            return
        for number, segment in self._work.items():
            source, target = (segment, self._host[number]) if to_host else (self._host[number], segment)
            target.copy_(source, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _map(fd: int, nbytes: int, protection: int) -> mmap.mmap:
    """Map shared memory and close the descriptor. Raises `RemoteProtocolError` if it is too small."""
    try:
        if os.fstat(fd).st_size < nbytes:
            raise RemoteProtocolError(f"the agent's shared memory is smaller than the {nbytes} bytes it should have")
        return mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED, prot=protection)
    finally:
        os.close(fd)


def _segment_tensors(memory: mmap.mmap, layout: Layout) -> list[Tensor]:
    tensors = []
    for segment in layout.segments:
        dtype = DTYPES[segment.dtype]
        count = segment.nbytes // dtype.itemsize
        tensors.append(torch.frombuffer(memory, dtype=dtype, count=count, offset=segment.offset))
    return tensors


def _shaped(flat: Tensor, param: Tensor) -> Tensor:
    """`flat` with the parameter's shape, and its strides if those fill memory without holes."""
    if is_dense(param):
        return flat.as_strided(param.shape, param.stride())
    return flat.view(param.shape)


def _pin(tensors: list[Tensor]) -> None:
    """Page-lock the mapping, so that copies from and to the device run at full speed."""
    for tensor in tensors:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))  # type: ignore[no-untyped-call]
