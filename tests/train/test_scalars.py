"""Plain values survive the way over, exactly; anything else is refused by name."""

from __future__ import annotations

import math
import struct
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from chaos.train.errors import StateMismatch, Unsupported
from chaos.train.scalars import pack, unpack

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(-5, 5) | st.tuples(st.integers(0, 3)), inner, max_size=4)
        | st.dictionaries(st.integers(0, 9), st.integers(1, 5), max_size=4).map(Counter)
    ),
    max_leaves=20,
)


def same(one: object, other: object) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other) or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, other)) and all(map(same, one.values(), other.values()))
    return one == other


@given(plain)
def test_round_trip(value: object) -> None:
    assert same(unpack(pack(value, "x")), value)


@given(st.binary(max_size=200))
@example(b"\xd4\x00\x00")  # an extension type of msgpack
@example(b"\xd6\xff\x00\x00\x00\x01")  # its timestamp
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        value = unpack(data)
    except StateMismatch:
        return
    assert same(unpack(pack(value, "x")), value)


def test_scalar_tensors_and_numpy_numbers() -> None:
    back = unpack(pack({"lr": torch.tensor(0.1), "n": np.float64(0.25), "k": np.int64(3)}, "x"))
    assert back["lr"].dtype == torch.float32 and torch.equal(back["lr"], torch.tensor(0.1))
    assert back["n"] == 0.25 and back["k"] == 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"x\['a'\]\[1\] is a set"),
        ({"f": len}, r"x\['f'\] is a builtin_function_or_method"),
        ({"t": torch.zeros(2)}, r"x\['t'\] is a torch.Tensor"),
        ({object(): 1}, "x key is a object"),
        ([2**70], "beyond 64 bits"),
    ],
)
def test_other_values_are_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        pack(value, "x")


def test_nesting_is_bounded_both_ways() -> None:
    deep: object = 1
    for _ in range(20):
        deep = [deep]
    with pytest.raises(Unsupported, match="nested deeper"):
        pack(deep, "x")
    with pytest.raises(StateMismatch):
        unpack(b"\x92\xa4list\x91" * 30 + b"\x01")
    with pytest.raises(StateMismatch):
        unpack(b"\x91" * 100_000 + b"\x01")


def test_ordered_dicts_become_dicts() -> None:
    assert unpack(pack(OrderedDict(b=1, a=2), "x")) == {"b": 1, "a": 2}
