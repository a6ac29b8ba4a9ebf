"""One attempt at a step's all-reduce, as one peer sees it: its chunks, who contributed, what is final."""

from __future__ import annotations

from dataclasses import dataclass, field

import xxhash

from chaos.agent.arithmetic import ITEM_BYTES, Array, ChunkSum
from chaos.core.types import Layout, Segment, View
from chaos.planning import sync

CHUNK_BYTES = 512 * 1024
"""Fits a core's second-level cache, where it is summed. 256 KiB and 1 MiB were slower by 5 and 8 %."""


SPARE_BUFFERS = 32
"""Kept for the next frames: 16 MiB. Frames arrive on two connections per member at a time."""


class Buffers:
    """Memory for chunks on their way, used over and over: a fresh buffer costs more in page faults than its sum."""

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def take(self, nbytes: int) -> memoryview:
        """`nbytes` (a chunk at most) bytes of whatever content. The caller may keep them."""
        whole = self._spare.pop() if self._spare else memoryview(bytearray(CHUNK_BYTES))
        return whole[:nbytes]

    def give_back(self, buffer: memoryview) -> None:
        """What `take` gave is needed no more."""
        if len(self._spare) < SPARE_BUFFERS and isinstance(buffer.obj, bytearray):
            self._spare.append(memoryview(buffer.obj))


@dataclass(frozen=True)
class Piece:
    """A chunk with what is needed to send and to sum it."""

    index: int
    segment: int
    offset: int
    nbytes: int
    dtype: str
    wire_dtype: str
    op: str
    root: int
    """Rank of the member that sums it."""

    @property
    def wire_nbytes(self) -> int:
        return self.nbytes // ITEM_BYTES[self.dtype] * ITEM_BYTES[self.wire_dtype]


def cut(layout: Layout, shares: tuple[int, ...]) -> tuple[Piece, ...]:
    """The layout's chunks, and who sums them: each member in proportion to its share."""

    def wire(segment: Segment) -> str:
        return "bfloat16" if layout.wire_bf16 and segment.dtype == "float32" else segment.dtype

    return tuple(
        Piece(
            chunk.index,
            chunk.segment,
            chunk.offset,
            chunk.nbytes,
            (segment := layout.segments[chunk.segment]).dtype,
            wire(segment),
            segment.op,
            sync.root(chunk.index, shares),
        )
        for chunk in sync.chunks(layout, shares, CHUNK_BYTES)
    )


@dataclass
class Round:
    """Bookkeeping of an attempt. `slot` is its place in the result ring, `result` that slot's bytes."""

    view: View
    step: int
    pieces: tuple[Piece, ...]
    turn: int
    """Sum of the shares by which it was cut: all that the sizes of the chunks depend on, besides the layout."""
    slot: int
    result: memoryview
    fetched: bool = False
    """The result is fetched from a member that finished the step, not reduced here."""
    empty: dict[str, bool] = field(default_factory=dict)
    """Members whose part is known, and whether it is without bytes."""
    sums: dict[int, ChunkSum] = field(default_factory=dict)
    arrived: dict[int, set[str]] = field(default_factory=dict)
    """Chunk to the members whose contribution to it is in the sum."""
    final: dict[int, bytes] = field(default_factory=dict)
    """Chunk to the digest of its final bytes."""
    culprits: int = 0
    """Bit r: the member of rank r had a gradient that was not finite."""
    reported: bool = False

    def contributors(self) -> list[str] | None:
        """Members that send bytes; None while somebody's part is unknown."""
        if len(self.empty) < len(self.view.members):
            return None
        return [m.id for m in self.view.members if not self.empty[m.id]]

    def add(self, piece: Piece, peer: str, values: Array, weight: float) -> None:
        """Add a contribution to a chunk of which this peer is root. A repeated one changes nothing."""
        arrived = self.arrived.setdefault(piece.index, set())
        if peer in arrived or piece.index in self.final:
            return
        arrived.add(peer)
        total = self.sums.get(piece.index)
        if total is None:
            target = self.result[piece.offset : piece.offset + piece.nbytes]
            total = self.sums[piece.index] = ChunkSum(target, piece.dtype, piece.op)
        if not total.add(values, weight):
            self.culprits |= 1 << self._rank(peer)

    def _rank(self, peer: str) -> int:
        return min(63, next(i for i, m in enumerate(self.view.members) if m.id == peer))

    def summed(self, piece: Piece) -> bool:
        """All contributors' parts of this chunk are in, and it is not final yet."""
        contributors = self.contributors()
        if contributors is None or piece.index in self.final or not contributors:
            return False
        return self.arrived.get(piece.index, set()).issuperset(contributors)

    def finish(self, piece: Piece) -> None:
        """Make a summed chunk final."""
        finite = self.sums.pop(piece.index).finish(piece.wire_dtype)
        if not finite and not self.culprits:
            for peer in self.arrived[piece.index]:
                self.culprits |= 1 << self._rank(peer)
        self.arrived.pop(piece.index)
        self.mark_final(piece)

    def mark_final(self, piece: Piece) -> None:
        self.final[piece.index] = xxhash.xxh3_128_digest(self.result[piece.offset : piece.offset + piece.nbytes])

    @property
    def complete(self) -> bool:
        return len(self.final) == len(self.pieces)

    def digest(self) -> bytes:
        """Of the whole result: equal on two peers exactly if their bytes are (but for hash collisions)."""
        return xxhash.xxh3_128_digest(b"".join(self.final[p.index] for p in self.pieces))

    def nonfinite(self) -> tuple[str, ...]:
        return tuple(m.id for rank, m in enumerate(self.view.members) if self.culprits >> min(63, rank) & 1)
