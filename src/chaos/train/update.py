"""One optimizer update, the same on every peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from chaos.core.errors import RemoteProtocolError
from chaos.train.errors import Unsupported

MAX_SCALARS = 65536
"""Bytes; the bound of `Contribution.scalars`."""


class Update:
    """Clipping, optimizer, scaler and scheduler, as a plain training loop would call them."""

    def __init__(
        self,
        params: list[nn.Parameter],
        optimizer: Optimizer,
        scheduler: object,
        scaler: torch.amp.GradScaler | None,
        max_grad_norm: float | None,
    ) -> None:
        self._params = params
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._scaler = scaler
        self._max_grad_norm = max_grad_norm
        self.after: Callable[[], None] | None = None
        """The script's own part in every update, such as averaging weights."""

    @property
    def needs_loss(self) -> bool:
        """Whether the scheduler decides by the loss."""
        return isinstance(self._scheduler, ReduceLROnPlateau)

    def unscale(self) -> None:
        """Divide the gradients by the scaler's scale, if there is a scaler."""
        if self._scaler is not None:
            self._start_scaler(self._scaler)
            self._scaler.unscale_(self._optimizer)

    def apply(self, loss: float | None) -> None:
        """Update the parameters from unscaled gradients, then scale and learning rate."""
        if self._max_grad_norm is not None:
            with _one_thread():
                torch.nn.utils.clip_grad_norm_(self._params, self._max_grad_norm)
        if self._scaler is None or all(param.grad is None for param in self._params):
            self._optimizer.step()
        else:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        if isinstance(self._scheduler, ReduceLROnPlateau):
            if loss is not None:
                self._scheduler.step(loss)
        elif self._scheduler is not None:
            self._scheduler.step()  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Parameters and buffers are those of the new step: the script does its own part."""
        if self.after is not None:
            self.after()

    def back_off(self) -> None:
        """No update, as a gradient was not finite; the scaler lowers its scale.

        A gradient made infinite by hand is the public way to tell a scaler so. Gradients are spent afterwards.
        """
        if self._scaler is None or not self._scaler.is_enabled():
            return
        self._start_scaler(self._scaler)
        param = next(p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad)
        param.grad = torch.full_like(param, torch.inf)
        self._scaler.unscale_(self._optimizer)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def scalars(self) -> bytes:
        """Numbers of the param groups (learning rate, betas ...), by key, once where all groups agree."""
        columns: dict[str, list[_Number | list[_Number]]] = {}
        for group in self._optimizer.param_groups:
            for key, value in group.items():
                if (plain := _plain_number(value)) is not None:
                    columns.setdefault(key, []).append(plain)
        merged = {key: values[:1] if all(v == values[0] for v in values) else values for key, values in columns.items()}
        data = msgspec.msgpack.encode(merged)
        if len(data) > MAX_SCALARS:
            raise Unsupported(
                f"the optimizer's {len(self._optimizer.param_groups)} param groups are too many; merge some"
            )
        return data

    def adopt_scalars(self, data: bytes) -> None:
        """Set the param groups' numbers from `scalars` of the member whose rank decides. Empty: keep one's own."""
        if not data:
            return
        try:
            columns = msgspec.msgpack.decode(data, type=dict[str, list[_Number | list[_Number]]])
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(f"a commit carries param-group scalars that can't be read ({error})") from error
        for key, values in columns.items():
            groups = [group for group in self._optimizer.param_groups if _plain_number(group.get(key)) is not None]
            if len(values) not in (1, len(groups)):
                raise RemoteProtocolError(
                    f"a commit carries {len(values)} values of '{key}' for {len(groups)} param groups"
                )
            for number, group in enumerate(groups):
                _set(group, key, values[number if len(values) > 1 else 0])

    def _start_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """A scaler makes its scale with the first loss it sees; a peer that only replays has seen none."""
        scaler.scale(torch.zeros((), device=self._params[0].device))


@contextmanager
def _one_thread() -> Iterator[None]:
    """A sum over a tensor depends, in its last bits, on the number of threads, which differs between peers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_Number = bool | int | float


def _plain_number(value: object) -> _Number | list[_Number] | None:
    """What of a param group follows the run: numbers, tuples of numbers, scalar tensors."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple | list) and value and all(isinstance(v, bool | int | float) for v in value):
        return list(value)
    return None


def _set(group: dict[str, Any], key: str, value: _Number | list[_Number]) -> None:
    """Assign, keeping the container: a tuple stays a tuple, a tensor the same tensor."""
    old = group[key]
    if isinstance(old, Tensor) and not isinstance(value, list):
        old.fill_(value)
    elif isinstance(old, tuple | list):
        group[key] = type(old)(value if isinstance(value, list) else [value])
    else:
        group[key] = value
