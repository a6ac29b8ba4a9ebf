"""What a script keeps beside model and optimizer that belongs to the state: averaged weights, counters.

Each has `state_dict` and `load_state_dict`. Tensors in what `state_dict` returns travel as tensors of the snapshot,
named extras/NAME/PATH; the rest travels with its scalars, with a mark where each tensor was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from chaos.core.types import TensorSpec
from chaos.train.errors import StateMismatch, Unsupported
from chaos.train.parts import dtype_name

MARK = "chaos:tensor"
"""The only key of the dict that stands for a tensor; its value is the tensor's name."""
CHANGES = "extras may change in `after_update` only, in the same way on every peer"


def check_extras(extras: Mapping[str, Any]) -> None:
    """Raise `Unsupported` naming the extra that can't be part of the state."""
    for name, extra in extras.items():
        if not name or "/" in name:
            raise Unsupported(f"an extra is named {name!r}; give it a plain name without '/'")
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(extra, method, None)):
                raise Unsupported(f"extra '{name}' has no {method}, so joiners would lack it; give it both or leave it")


def tensors_of(extras: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """All tensors of all extras with their names in the snapshot, in the extras' own order. Not copied."""
    found: list[tuple[str, Tensor]] = []
    for name, extra in extras.items():
        _walk(extra.state_dict(), f"extras/{name}", lambda path, tensor: found.append((path, tensor.detach())))
    return found


def plain_of(extras: Mapping[str, Any]) -> dict[str, Any]:
    """What is left of each extra's state once its tensors are replaced by marks."""
    return {name: _walk(extra.state_dict(), f"extras/{name}", _ignore) for name, extra in extras.items()}


def specs_of(extras: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """For the fingerprint: each extra, and its tensors with dtype and shape as they are when the session begins."""
    specs = [TensorSpec(f"extras/{name}", "", ()) for name in extras]
    return (*specs, *(TensorSpec(n, dtype_name(t.dtype), tuple(t.shape)) for n, t in tensors_of(extras)))


def load_extras(extras: Mapping[str, Any], plain: Mapping[str, Any], tensor: Callable[[str], Tensor]) -> None:
    """Give each extra the state in `plain`, with `tensor(name)` where a mark stands."""
    for name, extra in extras.items():
        extra.load_state_dict(_filled(plain[name], tensor))


def check_plain(extras: Mapping[str, Any], plain: object, known: Mapping[str, object]) -> None:
    """Raise `StateMismatch` if the snapshot's extras are not this worker's, or a mark names no tensor of it."""
    theirs = set(plain) if isinstance(plain, dict) else set()
    if different := sorted(map(str, theirs ^ set(extras))):
        raise StateMismatch(f"extra '{different[0]}' is on one side only; give every peer's session the same extras")

    def look_up(name: str) -> Tensor:
        if name not in known:
            raise StateMismatch(f"'{name}' is missing in the snapshot")
        return _NOTHING

    _filled(plain, look_up)


_NOTHING = Tensor()


def _ignore(_path: str, _tensor: Tensor) -> None:
    """A tensor is of no interest here."""


def _walk(value: Any, path: str, saw: Callable[[str, Tensor], None]) -> Any:
    """`value` with marks in the place of its tensors, each of which is shown to `saw` under its path."""
    if isinstance(value, Tensor):
        saw(path, value)
        return {MARK: path}
    if isinstance(value, Mapping):
        return {key: _walk(item, f"{path}/{key}", saw) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_walk(item, f"{path}/{number}", saw) for number, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def _filled(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {MARK}:
            return tensor(value[MARK])
        return {key: _filled(item, tensor) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_filled(item, tensor) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
