"""The training state as flat bytes: what a joiner needs to be where the others are, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from blake3 import blake3
from torch import Tensor
from torch.optim import Optimizer

from chaos.core.types import StateManifest, TensorEntry
from chaos.train import scalars
from chaos.train.buffers import AgreedBuffers
from chaos.train.errors import StateMismatch, Unsupported
from chaos.train.extras import check_plain, load_extras, plain_of, tensors_of
from chaos.train.layout import ALIGNMENT
from chaos.train.parts import DTYPES, Parts, dtype_name

_NOT_STATE = ("params", "param_names")


@dataclass
class Training:
    """Everything a snapshot holds. `scheduler` and `scaler` may be None."""

    parts: Parts
    buffers: AgreedBuffers
    optimizer: Optimizer
    scheduler: Any
    scaler: Any
    extras: Mapping[str, Any] = field(default_factory=dict)
    """By name, what else has `state_dict` and `load_state_dict`."""
    groups: list[dict[str, Any]] = field(init=False)
    """The param groups' values as of the last applied step; a script may have changed its own since."""

    def __post_init__(self) -> None:
        self.agree_on_groups()

    def agree_on_groups(self) -> None:
        """The param groups are what the run agreed on. Call after each update."""
        self.groups = [
            {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items()}
            for group in (_without_params(group) for group in self.optimizer.param_groups)
        ]


def describe(training: Training, step: int, seed: int) -> tuple[StateManifest, list[Tensor]]:
    """The manifest of the state of `step`, the last applied, and the tensors it names in its order (not copied).

    Raises `Unsupported` naming the part of the optimizer's or scheduler's state that can't be transferred.
    """
    named = [*_model_tensors(training), *_optimizer_tensors(training), *tensors_of(training.extras)]
    entries = []
    offset = 0
    for name, tensor in named:
        if dtype_name(tensor.dtype) not in DTYPES or tensor.layout != torch.strided:
            raise Unsupported(f"{name} is {dtype_name(tensor.dtype)} ({tensor.layout}), which can't be transferred")
        nbytes = tensor.numel() * tensor.dtype.itemsize
        entries.append(TensorEntry(name, dtype_name(tensor.dtype), tuple(tensor.shape), offset, nbytes))
        offset += -(-nbytes // ALIGNMENT) * ALIGNMENT
    packed = scalars.pack(_scalars(training, seed), "state")
    return StateManifest(step, offset, tuple(entries), packed), [tensor for _, tensor in named]


def copy_out(tensors: list[Tensor], manifest: StateManifest, memory: Any) -> None:
    """Copy tensors to their places in `memory`, a writable buffer of at least `manifest.nbytes`.

    What lies between them becomes zero, so that equal states make equal memory.
    """
    with torch.no_grad():
        for entry, tensor in zip(manifest.tensors, tensors, strict=True):
            if entry.nbytes:
                _place(entry, memory).copy_(tensor)
    ends = [entry.offset + entry.nbytes for entry in manifest.tensors]
    starts = [*(entry.offset for entry in manifest.tensors[1:]), manifest.nbytes]
    for end, start in zip(ends, starts, strict=True):
        memory[end:start] = bytes(start - end)


def digest(training: Training, step: int, seed: int) -> bytes:
    """32 bytes that are equal on two peers exactly if every byte of their state is."""
    manifest, tensors = describe(training, step, seed)
    hasher = blake3(msgspec.msgpack.encode(manifest))
    for tensor in tensors:
        if tensor.numel():
            hasher.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def restore(training: Training, manifest: StateManifest, memory: Any) -> int:
    """Make the state that of the snapshot in `memory`, in place; returns the run's seed.

    Raises `StateMismatch` before anything is changed if the snapshot doesn't fit.
    """
    values = _unpack(training, manifest)
    entries = _checked_entries(manifest, len(memory))
    check_plain(training.extras, values["extras"], entries)
    targets = _model_targets(training, entries)
    slots = _optimizer_slots(training, entries, values["optimizer"])
    with torch.no_grad():
        for name, target in targets.items():
            if entries[name].nbytes:
                target.copy_(_place(entries[name], memory))
        training.buffers.adopt()
        _write_optimizer(training, slots, values["optimizer"], memory)
    _write_groups(training.optimizer, values["groups"])
    training.agree_on_groups()
    if training.scheduler is not None:
        training.scheduler.load_state_dict(values["scheduler"])
    if training.scaler is not None:
        training.scaler.load_state_dict(values["scaler"])
    load_extras(training.extras, values["extras"], lambda name: _place(entries[name], memory).clone())
    return int(values["seed"])


# --- what there is ----------------------------------------------------------------------------------


def _model_tensors(training: Training, live: bool = False) -> list[tuple[str, Tensor]]:
    """Parameters, and the buffers as agreed on; or the `live` ones in the model."""
    buffer = training.buffers.live if live else training.buffers.agreed
    params = [(f"parameters/{name}", param.detach()) for name, param in training.parts.params.items()]
    return [*params, *((f"buffers/{place.name}", buffer(place.name)) for place in training.parts.buffers)]


def _optimizer_tensors(training: Training) -> list[tuple[str, Tensor]]:
    return [
        (f"optimizer/{name}/{key}", value.detach())
        for name, state in _optimizer_state(training).items()
        for key, value in sorted(state.items())
        if isinstance(value, Tensor)
    ]


def _optimizer_state(training: Training) -> dict[str, dict[str, Any]]:
    """Optimizer state by parameter name, in the model's order."""
    by_name: dict[str, dict[str, Any]] = {}
    for param, state in training.optimizer.state.items():
        name = training.parts.name_of.get(id(param))
        if name is None:
            raise Unsupported("the optimizer keeps state for something that is no parameter, which joiners would lack")
        for key in state:
            if not isinstance(key, str) or "/" in key:
                raise Unsupported(
                    f"the optimizer's state of '{name}' has the key {key!r}; only plain names are supported"
                )
        by_name[name] = state
    return {name: by_name[name] for name in training.parts.params if name in by_name}


def _without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in _NOT_STATE}


def _scalars(training: Training, seed: int) -> dict[str, Any]:
    return {
        "groups": training.groups,
        "optimizer": {
            name: {key: value for key, value in sorted(state.items()) if not isinstance(value, Tensor)}
            for name, state in _optimizer_state(training).items()
        },
        "scheduler": None if training.scheduler is None else dict(training.scheduler.state_dict()),
        "scaler": None if training.scaler is None else dict(training.scaler.state_dict()),
        "extras": plain_of(training.extras),
        "seed": seed,
    }


# --- does a snapshot fit ----------------------------------------------------------------------------


def _unpack(training: Training, manifest: StateManifest) -> dict[str, Any]:
    """The snapshot's scalars, if they have the form of this worker's own."""
    values, own = scalars.unpack(manifest.scalars), _scalars(training, 0)
    _same_keys(values, own, "the state")
    assert isinstance(values, dict)
    for part in ("scheduler", "scaler"):
        if (values[part] is None) != (own[part] is None):
            raise StateMismatch(f"one of the snapshot and this worker has a {part}, the other has none")
        if own[part] is not None:
            _same_keys(values[part], own[part], f"the {part}")
    if not isinstance(values["groups"], list) or len(values["groups"]) != len(own["groups"]):
        raise StateMismatch(
            f"the snapshot's optimizer does not have {len(own['groups'])} param groups as this one does"
        )
    for number, (theirs, ours) in enumerate(zip(values["groups"], own["groups"], strict=True)):
        _same_keys(theirs, ours, f"param group {number}")
    optimizer = values["optimizer"]
    if not isinstance(optimizer, dict) or not all(isinstance(state, dict) for state in optimizer.values()):
        raise StateMismatch("the snapshot's optimizer state is not given per parameter")
    if not isinstance(values["seed"], int):
        raise StateMismatch("the snapshot's seed is not a number")
    return values


def _same_keys(theirs: object, ours: dict[str, Any], what: str) -> None:
    if not isinstance(theirs, dict):
        raise StateMismatch(f"{what} in the snapshot is not a dict")
    if different := sorted(map(str, set(theirs) ^ set(ours))):
        raise StateMismatch(f"{what} has '{different[0]}' on one side only; do all peers run the same versions?")


def _checked_entries(manifest: StateManifest, limit: int) -> dict[str, TensorEntry]:
    """Entries by name, once it is sure that reading them stays within `limit` bytes."""
    entries: dict[str, TensorEntry] = {}
    for entry in manifest.tensors:
        dtype = DTYPES.get(entry.dtype)
        if dtype is None or entry.nbytes != math.prod(entry.shape) * dtype.itemsize:
            raise StateMismatch(f"'{entry.name}' has a dtype or size in the snapshot that can't be")
        if entry.offset % ALIGNMENT or entry.offset + entry.nbytes > limit:
            raise StateMismatch(f"'{entry.name}' lies outside of the snapshot")
        if entry.name in entries:
            raise StateMismatch(f"'{entry.name}' is in the snapshot twice")
        entries[entry.name] = entry
    return entries


def _model_targets(training: Training, entries: dict[str, TensorEntry]) -> dict[str, Tensor]:
    """This worker's parameters and buffers by entry name, all of which must match."""
    targets = dict(_model_tensors(training, live=True))
    theirs = {name for name in entries if not name.startswith(("optimizer/", "extras/"))}
    if different := sorted(theirs ^ set(targets)):
        raise StateMismatch(f"'{different[0]}' is only in one of the snapshot and this worker's model")
    for name, target in targets.items():
        entry = entries[name]
        if (entry.dtype, entry.shape) != (dtype_name(target.dtype), tuple(target.shape)):
            raise StateMismatch(
                f"'{name}' is {entry.dtype} {list(entry.shape)} in the snapshot and "
                f"{dtype_name(target.dtype)} {list(target.shape)} here"
            )
    return targets


def _optimizer_slots(
    training: Training, entries: dict[str, TensorEntry], plain: dict[str, dict[str, Any]]
) -> dict[str, dict[str, TensorEntry]]:
    """The snapshot's optimizer tensors by parameter and key."""
    known = {training.parts.name_of[id(p)] for group in training.optimizer.param_groups for p in group["params"]}
    slots: dict[str, dict[str, TensorEntry]] = {name: {} for name in plain}
    for entry in entries.values():
        if entry.name.startswith("optimizer/"):
            name, _, key = entry.name.removeprefix("optimizer/").rpartition("/")
            slots.setdefault(name, {})[key] = entry
    if unknown := sorted(set(slots) - known):
        raise StateMismatch(f"the snapshot has optimizer state of '{unknown[0]}', which this optimizer doesn't train")
    return slots


# --- make it so -------------------------------------------------------------------------------------


def _write_optimizer(
    training: Training, slots: dict[str, dict[str, TensorEntry]], plain: dict[str, dict[str, Any]], memory: Any
) -> None:
    """Optimizer state becomes exactly the snapshot's; tensors that fit keep their storage."""
    fused = {id(p) for group in training.optimizer.param_groups if group.get("fused") for p in group["params"]}
    for param in list(training.optimizer.state):
        if training.parts.name_of[id(param)] not in slots:
            del training.optimizer.state[param]
    for name, entries in slots.items():
        param = training.parts.params[name]
        old = training.optimizer.state[param]
        new: dict[str, Any] = dict(plain.get(name, {}))
        for key, entry in entries.items():
            host_step = key == "step" and id(param) not in fused
            new[key] = _fitting(old.get(key), entry, param, torch.device("cpu") if host_step else param.device)
            if entry.nbytes:
                new[key].copy_(_place(entry, memory))
        old.clear()
        old.update(new)


def _fitting(old: Any, entry: TensorEntry, param: Tensor, device: torch.device) -> Tensor:
    """The present tensor if it has the entry's dtype and shape, else a new one (laid out like its parameter)."""
    dtype = DTYPES[entry.dtype]
    if isinstance(old, Tensor) and old.dtype == dtype and tuple(old.shape) == entry.shape:
        return old
    if tuple(param.shape) == entry.shape:
        return torch.empty_like(param, dtype=dtype, device=device, requires_grad=False)
    return torch.empty(entry.shape, dtype=dtype, device=device)


def _write_groups(optimizer: Optimizer, groups: list[dict[str, Any]]) -> None:
    for own, theirs in zip(optimizer.param_groups, groups, strict=True):
        for key, value in theirs.items():
            if isinstance(own[key], Tensor):
                own[key].fill_(value)
            else:
                own[key] = value


def _place(entry: TensorEntry, memory: Any) -> Tensor:
    """The entry's bytes in `memory` as a tensor of its shape."""
    dtype = DTYPES[entry.dtype]
    count = entry.nbytes // dtype.itemsize
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=entry.offset).view(entry.shape)
