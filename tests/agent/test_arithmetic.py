"""Sums of raw bytes against numpy in double precision."""

import numpy as np
import pytest

from chaos.agent.arithmetic import ITEM_BYTES, ChunkSum, is_finite, narrow, widen


def raw(values: np.ndarray, dtype: str) -> memoryview:
    return narrow(values.astype(np.float64 if dtype == "float64" else np.float32), dtype)


def test_bfloat16_keeps_nans():
    values = np.array([np.nan, 1.0, -np.nan], np.float32)
    back = widen(narrow(values, "bfloat16"), "bfloat16")
    assert np.isnan(back[[0, 2]]).all() and back[1] == 1.0


@pytest.mark.parametrize(
    ("dtype", "wire", "tolerance"),
    [
        ("float64", "float64", 1e-15),
        ("float32", "float32", 1e-6),
        ("float32", "bfloat16", 2**-8),
        ("bfloat16", "bfloat16", 2**-8),
        ("float16", "float16", 2**-10),
    ],
)
def test_weighted_mean(dtype: str, wire: str, tolerance: float):
    random = np.random.default_rng(1)
    parts = [random.normal(size=1000) + 3 for _ in range(3)]
    weights = [4.0, 1.0, 3.0]
    target = memoryview(bytearray(1000 * ITEM_BYTES[dtype]))
    total = ChunkSum(target, dtype, "mean")
    for part, weight in zip(parts, weights, strict=True):
        assert total.add(widen(raw(part, wire), wire), weight)
    assert total.finish(wire)
    mean = sum(p * w for p, w in zip(parts, weights, strict=True)) / 8
    np.testing.assert_allclose(widen(target, dtype), mean, rtol=3 * tolerance)
    assert bytes(narrow(widen(target, dtype), wire)) == bytes(narrow(widen(target, dtype), wire))


def test_maximum_of_integers():
    target = memoryview(bytearray(32))
    total = ChunkSum(target, "int64", "max")
    total.add(np.array([1, 9, -5, 2**60]), 1.0)
    total.add(np.array([3, 2, -7, 1]), 7.0)
    assert total.finish("int64")
    assert widen(target, "int64").tolist() == [3, 9, -5, 2**60]


def test_float16_overflow_of_the_mean_is_noticed():
    target = memoryview(bytearray(2))
    total = ChunkSum(target, "float16", "mean")
    assert total.add(np.array([1e6], np.float32), 1.0)
    assert not total.finish("float16")


def test_a_sum_that_overflows_is_not_taken_for_a_bad_gradient():
    assert is_finite(np.full(1000, 3e38, np.float32))
    assert not is_finite(np.array([1.0, np.inf], np.float32))
    assert not is_finite(np.array([np.nan], np.float64))
