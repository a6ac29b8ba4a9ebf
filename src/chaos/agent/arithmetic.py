"""Weighted sums of raw tensor bytes with numpy: what a root does with its chunks. Little-endian throughout.

Sums of float32 and float64 are kept in their own type, right in the result buffer; those of bfloat16 and
float16 in float32, rounded once at the end (to nearest, ties to even). Integers take the maximum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDE = {"float64": np.float64, "float32": np.float32, "int64": np.int64}
"""Types that are summed in place."""
ITEM_BYTES = {"float64": 8, "float32": 4, "int64": 8, "bfloat16": 2, "float16": 2}

Array = NDArray[Any]


def widen(payload: memoryview, dtype: str) -> Array:
    """Raw bytes as an array that can be computed with: a view if possible, float32 otherwise."""
    if dtype == "bfloat16":
        halves = np.frombuffer(payload, np.uint16)
        return (halves.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float16":
        return np.frombuffer(payload, np.float16).astype(np.float32)
    return np.frombuffer(payload, WIDE[dtype])


def to_bfloat16(values: Array) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 bits, to nearest with ties to even; infinities and NaNs stay what they are."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    nans = np.isnan(values)
    if nans.any():
        rounded[nans] = 0x7FC0
    return rounded


def narrow(values: Array, dtype: str) -> memoryview:
    """The inverse of `widen`: bytes of `values` rounded to `dtype`."""
    if dtype == "bfloat16":
        return to_bfloat16(values).data.cast("B")
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).data.cast("B")
    return np.ascontiguousarray(values).data.cast("B")


def is_finite(values: Array) -> bool:
    """Whether all values are finite. The sum decides nearly always; only an overflowing one needs a second look."""
    if values.dtype == np.int64:
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


class ChunkSum:
    """The weighted sum of one chunk over the contributors, in the order in which they arrive.

    Args:
        target: the chunk's bytes in the result buffer.
        dtype: of the chunk in the result buffer.
        op: 'mean' or 'max'.
    """

    def __init__(self, target: memoryview, dtype: str, op: str) -> None:
        self._target = target
        self._dtype = dtype
        self._op = op
        self._sum: Array | None = None
        self._weight = 0.0
        self.count = 0

    def add(self, values: Array, weight: float) -> bool:
        """Add one contributor's values. Returns whether they were all finite."""
        self.count += 1
        self._weight += weight
        with np.errstate(over="ignore", invalid="ignore"):
            if self._sum is None:
                self._sum = self._first(values, weight)
            elif self._op == "max":
                np.maximum(self._sum, values, out=self._sum)
            else:
                self._sum += values * self._sum.dtype.type(weight)
        return is_finite(values)

    def _first(self, values: Array, weight: float) -> Array:
        if self._dtype in WIDE:
            total = np.frombuffer(self._target, WIDE[self._dtype])
        else:
            total = np.empty(values.shape, np.float32)
        if self._op == "max":
            np.copyto(total, values)
        else:
            np.multiply(values, total.dtype.type(weight), out=total)
        return total

    def finish(self, wire_dtype: str) -> bool:
        """Write the mean (or maximum) to the result buffer, rounded as it travels. Returns whether it is finite."""
        assert self._sum is not None
        total = self._sum
        with np.errstate(over="ignore", invalid="ignore"):
            if self._op == "mean":
                total /= total.dtype.type(self._weight)
        if self._dtype in WIDE and wire_dtype == self._dtype:
            return is_finite(total)
        payload = narrow(total, wire_dtype)
        rounded = widen(payload, wire_dtype)
        if self._dtype in WIDE:
            np.copyto(np.frombuffer(self._target, WIDE[self._dtype]), rounded)
        else:
            self._target[:] = payload
        return is_finite(rounded)
