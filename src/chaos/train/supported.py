"""Refuse, in one line and before anything starts, what can't be trained together (yet)."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.optim import Optimizer

from chaos.train.errors import Unsupported
from chaos.train.parts import DTYPES, Parts, bare, dtype_name

GRADIENT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What the agents can add up."""
_WRAPPERS = ("FullyShardedDataParallel", "DistributedDataParallel", "DataParallel")


def check(model: object, optimizer: object, scheduler: object, scaler: object) -> None:
    """Raise `Unsupported` if these can't be part of a run."""
    if not isinstance(model, nn.Module):
        raise Unsupported(f"model must be a torch.nn.Module, not {_kind(model)}")
    _check_modules(model)
    parts = Parts(model)
    _check_tensors(parts)
    if isinstance(optimizer, list | tuple | dict):
        raise Unsupported("several optimizers in one session are not supported; use one with parameter groups")
    if not isinstance(optimizer, Optimizer):
        raise Unsupported(f"optimizer must be a torch.optim.Optimizer, not {_kind(optimizer)}")
    _check_optimizer(optimizer, parts)
    if scheduler is not None and not (hasattr(scheduler, "step") and hasattr(scheduler, "state_dict")):
        raise Unsupported(f"scheduler must be a torch learning rate scheduler, not {_kind(scheduler)}")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise Unsupported("the scheduler belongs to another optimizer; make it with the session's optimizer")
    if scaler is not None and not (hasattr(scaler, "unscale_") and hasattr(scaler, "state_dict")):
        raise Unsupported(f"scaler must be a torch.amp.GradScaler, not {_kind(scaler)}")


def _check_modules(model: nn.Module) -> None:
    for name, module in bare(model).named_modules():
        if type(module).__name__ in _WRAPPERS:
            raise Unsupported(f"the model is wrapped in {type(module).__name__}; give the session the bare module")
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise Unsupported(f"'{name}' makes sparse gradients, which can't be reduced; use sparse=False")


def _check_tensors(parts: Parts) -> None:
    for name, param in parts.params.items():
        if type(param) is not nn.Parameter:
            raise Unsupported(
                f"parameter '{name}' is a {type(param).__name__}; only plain parameters are supported "
                "(no DTensor, no FSDP, no lazy module before its first forward)"
            )
        if param.requires_grad and param.dtype not in GRADIENT_DTYPES:
            raise Unsupported(
                f"parameter '{name}' is {dtype_name(param.dtype)}; gradients can be "
                f"{', '.join(dtype_name(d) for d in GRADIENT_DTYPES)}"
            )
    for name, tensor in parts.named_tensors():
        if dtype_name(tensor.dtype) not in DTYPES or tensor.layout != torch.strided:
            raise Unsupported(f"'{name}' is {dtype_name(tensor.dtype)} ({tensor.layout}), which can't be transferred")
    if not any(param.numel() for param in parts.trainable.values()):
        raise Unsupported("no parameter of the model requires a gradient; there is nothing to train")
    devices = sorted({str(param.device) for param in parts.params.values()})
    if len(devices) > 1:
        raise Unsupported(f"parameters lie on several devices ({', '.join(devices)}); put the model on one")


def _check_optimizer(optimizer: Optimizer, parts: Parts) -> None:
    kind = type(optimizer).__name__
    step = inspect.signature(type(optimizer).step).parameters
    if (closure := step.get("closure")) is not None and closure.default is inspect.Parameter.empty:
        raise Unsupported(f"{kind} needs a closure, which can't be replayed; use an optimizer without one")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise Unsupported("SparseAdam takes sparse gradients, which can't be reduced; use Adam")
    extra = sorted(set(optimizer.state_dict()) - {"state", "param_groups"})
    if extra:
        raise Unsupported(
            f"{kind} keeps state outside of state and param_groups ({extra[0]}), which joiners would lack"
        )
    seen: set[int] = set()
    for number, group in enumerate(optimizer.param_groups):
        if group.get("capturable"):
            raise Unsupported(f"param group {number} has capturable=True; CUDA graphs are not supported")
        for param in group["params"]:
            if id(param) not in parts.name_of:
                shape = tuple(param.shape)
                raise Unsupported(f"param group {number} has a parameter of shape {shape} that is not in the model")
            if id(param) in seen:
                raise Unsupported(f"parameter '{parts.name_of[id(param)]}' is in the optimizer twice")
            seen.add(id(param))


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
