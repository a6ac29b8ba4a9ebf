"""Watches backward: which parameters got a gradient, and which buckets may travel while it goes on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from chaos.train.buckets import Buckets
from chaos.train.errors import LateGradient, Unsupported

Announce = Callable[[int], bool]
"""Told that a segment is complete; answers whether it handed the segment to the agent."""


def _keep(segment: int) -> bool:  # noqa: ARG001
    return False


class Gradients:
    """Keeps `p.grad` of every trainable parameter a view of its bucket, and knows which were touched.

    A bucket is announced once all its parameters got their gradient in this backward. Parameters that
    were ever seen to get it twice between two micro-batches (layers shared across checkpoints, several
    backward calls) keep their bucket waiting for the step; the first step only watches for those.
    """

    def __init__(self, buckets: Buckets, frozen: dict[str, nn.Parameter]) -> None:
        self._buckets = buckets
        self._frozen = frozen
        self.announce: Announce = _keep
        """Called in backward with each complete bucket; set by who can send it."""
        count = len(buckets.params)
        self._touched = [False] * count
        self._fired = [0] * count
        self._members: dict[int, list[int]] = {}
        for index, segment in enumerate(buckets.segment_of):
            self._members.setdefault(segment, []).append(index)
        self._missing: dict[int, int] = {}
        self._waiting: set[int] = set()
        self._announced: dict[int, int] = {}
        """Segments handed over in this step, with the version of their memory at that time."""
        self._kept: tuple[dict[int, Tensor], list[bool]] | None = None
        self._watched = False
        self.reset()
        self._hooks = [
            param.register_post_accumulate_grad_hook(self._make_hook(index))  # type: ignore[no-untyped-call]
            for index, param in enumerate(buckets.params)
        ]

    def begin_micro_batch(self) -> None:
        """What follows is the backward of another micro-batch."""
        self._fired = [0] * len(self._fired)
        self._missing = {segment: len(indices) for segment, indices in self._members.items()}

    def reset(self) -> None:
        """Start a step: zero gradients, all of them views again."""
        self._watched = self._watched or any(self._touched)
        self._touched = [False] * len(self._touched)
        self._announced.clear()
        self._kept = None
        self._buckets.zero_gradients()
        self.bind([True] * len(self._touched))
        self.begin_micro_batch()

    def bind(self, touched: list[bool]) -> None:
        """Make `p.grad` the view of its bucket where `touched`, and None elsewhere."""
        for param, view, has_gradient in zip(self._buckets.params, self._buckets.views, touched, strict=True):
            param.grad = view if has_gradient else None

    def anything(self) -> bool:
        """Whether any parameter got a gradient since the step began."""
        return any(self._touched)

    def keep(self) -> None:
        """What follows is a batch that weighs nothing: `collect` will find the gradients as they are now."""
        if self._kept is None:
            self._kept = self._buckets.copy_gradients(), list(self._touched)

    def collect(self) -> list[bool]:
        """Bring every gradient into its bucket and say which parameters have one.

        Covers what hooks don't see: gradients the script set by hand, or dropped. Raises `LateGradient`
        if that happened to one the agent already has.
        """
        for name, param in self._frozen.items():
            if param.grad is not None:
                raise Unsupported(
                    f"'{name}' did not require a gradient when the session was made and has one now; "
                    "let it require one from the start, and give it a learning rate of 0 until it is to be trained"
                )
        if self._kept is not None:
            kept, self._touched = self._kept
            self._kept = None
            self._buckets.restore_gradients(kept)
            return list(self._touched)
        announced = [segment in self._announced for segment in self._buckets.segment_of]
        for index, (param, view) in enumerate(zip(self._buckets.params, self._buckets.views, strict=True)):
            if announced[index]:
                self._check_unchanged(index, param)
            elif param.grad is None:
                view.zero_()
                self._touched[index] = False
            elif param.grad is not view:
                self._adopt(index, param)
                self._touched[index] = True
            elif not self._touched[index]:
                self._touched[index] = bool(view.any())
        return list(self._touched)

    def close(self) -> None:
        """Leave the model as it came: no hooks, no gradients in shared memory."""
        for hook in self._hooks:
            hook.remove()
        for param in self._buckets.params:
            param.grad = None

    def _make_hook(self, index: int) -> Callable[[Tensor], None]:
        def hook(param: Tensor) -> None:
            self._on_gradient(index, param)

        return hook

    def _on_gradient(self, index: int, param: Tensor) -> None:
        segment = self._buckets.segment_of[index]
        if segment in self._announced:
            raise LateGradient(
                f"'{self._buckets.names[index]}' got another gradient after its bucket was sent; mark earlier "
                "micro-batches with accumulate= or run.no_sync(), or make the session with overlap=False"
            )
        self._adopt(index, param)
        self._touched[index] = True
        self._fired[index] += 1
        if self._fired[index] > 1:
            self._waiting.add(segment)
            return
        self._missing[segment] -= 1
        ready = self._missing[segment] == 0 and self._watched and segment not in self._waiting
        if ready and self.announce(segment):
            self._announced[segment] = self._buckets.views[index]._version

    def _check_unchanged(self, index: int, param: Tensor) -> None:
        view = self._buckets.views[index]
        if param.grad is not view or view._version != self._announced[self._buckets.segment_of[index]]:
            raise LateGradient(
                f"the gradient of '{self._buckets.names[index]}' was changed after its bucket was sent; call "
                "run.sync() before touching gradients, or make the session with overlap=False"
            )

    def _adopt(self, index: int, param: Tensor) -> None:
        """Where the script dropped the view (`zero_grad()` does), copy the new gradient in and rebind."""
        view = self._buckets.views[index]
        if param.grad is view or param.grad is None:
            return
        if param.grad.layout != torch.strided:
            raise Unsupported(f"'{self._buckets.names[index]}' got a sparse gradient, which can't be reduced")
        view.copy_(param.grad.detach())
        param.grad = view


def to_bitmap(bits: list[bool]) -> bytes:
    """Bit i of byte i // 8 says item i."""
    return np.packbits(np.array(bits, dtype=bool), bitorder="little").tobytes()


def from_bitmap(data: bytes, count: int) -> list[bool]:
    """The first `count` bits; missing ones are zero."""
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")[:count].tolist()
    return [bool(bit) for bit in bits] + [False] * (count - len(bits))
