"""Plain values as bytes and back, exactly: what of the training state is not a tensor.

No pickle: a value is a number, text, bytes, None, or a list, tuple, dict or Counter of such. Containers
travel as arrays whose first item is a tag, so that tuples, integer keys and Counters survive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec
import numpy as np
import torch

from chaos.train.errors import StateMismatch, Unsupported
from chaos.train.parts import DTYPES, dtype_name

MAX_DEPTH = 16
"""Nesting of containers, far above what any optimizer or scheduler uses."""
_PLAIN = (bool, int, float, str, bytes)


def pack(value: object, what: str) -> bytes:
    """Encode `value`. Raises `Unsupported` naming the key, starting with `what`, that is not a plain value."""
    try:
        return msgspec.msgpack.encode(_lower(value, what))
    except OverflowError as error:
        raise Unsupported(f"{what} holds an integer beyond 64 bits, which can't be transferred ({error})") from error


def unpack(data: bytes) -> object:
    """Decode what `pack` made. Raises `StateMismatch` for anything else."""
    try:
        return _raise(msgspec.msgpack.decode(data), 0)
    except (
        msgspec.DecodeError,
        RecursionError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise StateMismatch(f"the snapshot's scalars can't be read ({error})") from error


def _lower(value: object, path: str, depth: int = 0) -> object:
    if depth > MAX_DEPTH:
        raise Unsupported(f"{path} is nested deeper than {MAX_DEPTH} levels, which can't be transferred")
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic) and type(value.item()) in (bool, int, float):
        return value.item()
    if isinstance(value, torch.Tensor) and value.ndim == 0 and dtype_name(value.dtype) in DTYPES:
        return ["scalar", dtype_name(value.dtype), value.item()]
    if isinstance(value, list | tuple):
        items = [_lower(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        return ["tuple" if isinstance(value, tuple) else "list", items]
    if isinstance(value, dict):
        pairs = [
            [_lower(key, f"{path} key", depth + 1), _lower(item, f"{path}[{key!r}]", depth + 1)]
            for key, item in value.items()
        ]
        return ["counter" if isinstance(value, Counter) else "dict", pairs]
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise Unsupported(f"{path} is a {kind}, which can't be transferred; use numbers, text, lists, tuples or dicts")


def _raise(value: object, depth: int) -> object:
    if not isinstance(value, list):
        return value if value is None or type(value) in _PLAIN else _unknown(type(value).__name__)
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    tag, body = value[0], value[1:]
    if tag == "scalar":
        dtype, number = body
        return torch.tensor(number, dtype=DTYPES[dtype]) if dtype in DTYPES else _unknown(dtype)
    if tag in ("list", "tuple"):
        items = [_raise(item, depth + 1) for item in body[0]]
        return items if tag == "list" else tuple(items)
    make: Callable[[dict[object, object]], object] | None = {"dict": dict, "counter": Counter}.get(tag)
    if make is None:
        return _unknown(tag)
    return make({_raise(key, depth + 1): _raise(item, depth + 1) for key, item in body[0]})


def _unknown(tag: object) -> object:
    raise ValueError(f"unknown kind of value {tag!r}")
