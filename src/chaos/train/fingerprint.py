"""What must be equal for two peers to train one model together."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.optim import Optimizer

from chaos.core.types import Fingerprint, TensorSpec
from chaos.train.extras import specs_of
from chaos.train.options import Options
from chaos.train.parts import Parts, dtype_name
from chaos.train.state import Training


def fingerprint(training: Training, options: Options) -> Fingerprint:
    """Names, shapes and dtypes of all tensors, extras' included, tying, the optimizer's class and flags, options."""
    parts, optimizer, scheduler, scaler = training.parts, training.optimizer, training.scheduler, training.scaler
    tensors = tuple(
        TensorSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in parts.named_tensors()
    )
    return Fingerprint(
        tensors=tensors,
        tied=tuple(parts.tied),
        optimizer=_optimizer_text(parts, optimizer),
        torch=torch.__version__.split("+")[0],
        options=f"{options.text()} scheduler={_class(scheduler)} scaler={_class(scaler)} strides={_strides(parts)}",
        extras=specs_of(training.extras),
    )


def _optimizer_text(parts: Parts, optimizer: Optimizer) -> str:
    """Class, flags, and how parameters fall into groups. Numbers are left out: they follow the run."""
    flags = sorted({_flags(group) for group in optimizer.param_groups})
    grouping = hashlib.sha256()
    for group in optimizer.param_groups:
        names = [parts.name_of[id(param)] for param in group["params"]]
        grouping.update(repr((_flags(group), sorted(map(str, group)), names)).encode())
    return f"{_class(optimizer)}({'; '.join(flags)}) groups={len(optimizer.param_groups)}:{grouping.hexdigest()[:12]}"


def _flags(group: dict[str, Any]) -> str:
    pairs = ((key, value) for key, value in group.items() if isinstance(value, bool | str) or value is None)
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs))


def _strides(parts: Parts) -> str:
    """Gradients lie in the buffers as their parameter lies in memory, so peers must agree on that too."""
    unusual = [(name, p.stride()) for name, p in parts.trainable.items() if not p.is_contiguous()]
    return hashlib.sha256(repr(unusual).encode()).hexdigest()[:12] if unusual else "contiguous"


def _class(value: object) -> str:
    return "None" if value is None else f"{type(value).__module__}.{type(value).__qualname__}"
