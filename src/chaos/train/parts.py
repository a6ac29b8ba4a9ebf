"""The tensors of a model, in one order that all peers share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
"""The dtypes that may be part of a training state, by their short names."""


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's short name of a dtype, e.g. 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class BufferPlace:
    """Where a module keeps a buffer. Modules may replace the tensor, so it is looked up each time."""

    name: str
    module: nn.Module
    key: str

    def tensor(self) -> Tensor:
        """The buffer as it is now."""
        buffer = self.module._buffers[self.key]
        assert buffer is not None
        return buffer


def bare(model: nn.Module) -> nn.Module:
    """The module itself when `model` is the result of `torch.compile`."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


class Parts:
    """Parameters and persistent buffers of a model, each tensor once, under names free of compile wrappers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = bare(model)
        self.params: dict[str, nn.Parameter] = {}
        self.tied: list[tuple[str, str]] = []
        first_name: dict[int, str] = {}
        for raw, param in self.model.named_parameters(remove_duplicate=False):
            name = _plain(raw)
            if (known := first_name.get(id(param))) is not None:
                self.tied.append((known, name))
            else:
                first_name[id(param)] = name
                self.params[name] = param
        self.trainable = {name: param for name, param in self.params.items() if param.requires_grad}
        self.frozen = {name: param for name, param in self.params.items() if not param.requires_grad}
        self.buffers = list(_persistent_buffers(self.model))
        self.name_of = {id(param): name for name, param in self.params.items()}

    def named_tensors(self) -> list[tuple[str, Tensor]]:
        """Parameters, then buffers, with their names."""
        return [*self.params.items(), *((place.name, place.tensor()) for place in self.buffers)]


def _plain(name: str) -> str:
    """A parameter's name as if no part of the model had been compiled."""
    return name.replace("_orig_mod.", "")


def _persistent_buffers(model: nn.Module) -> Iterator[BufferPlace]:
    """Buffers that belong to the model's state_dict; the others are derived values by their author's word."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is None or key in module._non_persistent_buffers_set or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            yield BufferPlace(_plain(f"{prefix}.{key}" if prefix else key), module, key)
