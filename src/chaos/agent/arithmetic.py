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
    """Whether all values are finite. The sum of squares decides nearly always, as fast as memory can be read."""
    if values.dtype == np.int64:
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.dot(values, values))) or bool(np.isfinite(values).all())


_scratch = memoryview(bytearray(2**20))
"""One for all sums of the event loop's thread. A chunk is shorter; fresh memory for each would cost more than the
product itself, in page faults."""


def _product(values: Array, factor: float) -> Array:
    """Valid until the next call."""
    out = np.frombuffer(_scratch, values.dtype, len(values)) if values.nbytes <= len(_scratch) else None
    product: Array = np.multiply(values, values.dtype.type(factor), out=out)
    return product


class ChunkSum:
    """The weighted sum of one chunk over the contributors, in the order in which they arrive.

    It is kept in units of the first contributor's weight, so that equal weights, the usual case, cost no product.

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
        self._unit = 1.0
        self._weight = 0.0
        """In units."""
        self.count = 0

    def add(self, values: Array, weight: float) -> bool:
        """Add one contributor's values, to which no reference is kept. Returns whether they were all finite."""
        self.count += 1
        with np.errstate(over="ignore", invalid="ignore"):
            if self._sum is None:
                self._unit = weight or 1.0
                self._sum = self._first(values, weight / self._unit)
            elif self._op == "max":
                np.maximum(self._sum, values, out=self._sum)
            elif weight == self._unit:
                self._sum += values
            else:
                self._sum += _product(values, weight / self._unit)
        self._weight += weight / self._unit
        return is_finite(values)

    def _first(self, values: Array, scale: float) -> Array:
        if self._dtype in WIDE:
            total = np.frombuffer(self._target, WIDE[self._dtype])
        else:
            total = np.empty(values.shape, np.float32)
        if self._op == "max" or scale == 1.0:
            np.copyto(total, values)
        else:
            np.multiply(values, total.dtype.type(scale), out=total)
        return total

    def finish(self, wire_dtype: str) -> bool:
        """Write the mean (or maximum) to the result buffer, rounded as it travels. Returns whether it is finite."""
        assert self._sum is not None
        total = self._sum
        with np.errstate(over="ignore", invalid="ignore"):
            if self._op == "mean" and self._weight != 1.0:
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
