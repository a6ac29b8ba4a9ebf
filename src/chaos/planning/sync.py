"""Which member sums which chunk of the gradients in a round.

Every chunk has one root: the others send it their part of the chunk, it adds them up and sends the final
chunk back to all. With N members and a buffer of B bytes of which a member is root for R, that member sends

    (B - R)  its parts, to the other roots
  + (N - 1) R  the final chunks it is root for

bytes. With R = B / N this is 2 (N - 1) / N times B, the least that any all-reduce can do on equal links. Where the
overlay is not complete, other shares load its links less: see `chaos.planning.roots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from chaos.core.errors import ChaosError
from chaos.core.types import Layout

ALIGNMENT = 64
"""Bytes. Segments start at multiples of it, so that whole elements and cache lines stay in one chunk."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of the flat buffers that travels and is summed as one."""

    index: int
    """Position among all chunks of the layout; `root` depends on it."""
    segment: int
    """Position of its segment in the layout. A chunk lies in one segment only."""
    offset: int
    """In bytes from the start of the buffer; a multiple of 64."""
    nbytes: int
    """Above 0; a multiple of 64 except for the last chunk of a segment."""


def chunks(layout: Layout, shares: Sequence[int], chunk_bytes: int) -> tuple[Chunk, ...]:
    """Cuts the layout's segments, in order, into chunks of at most `chunk_bytes` (a multiple of 64).

    A segment is cut into a multiple of sum(shares) pieces of (nearly) one size, so that each member is root
    of its share of every segment; a segment too short for that, into pieces of 64 bytes.
    """
    turn = sum(shares)
    if turn < 1:
        raise ChaosError(f"shares {tuple(shares)}: a round needs at least one root")
    if chunk_bytes < ALIGNMENT or chunk_bytes % ALIGNMENT:
        raise ChaosError(f"chunks of {chunk_bytes} bytes: give a multiple of {ALIGNMENT}")
    cut: list[Chunk] = []
    for number, segment in enumerate(layout.segments):
        units = -(-segment.nbytes // ALIGNMENT)
        end = segment.offset + segment.nbytes
        offset = segment.offset
        for size in _sizes(units, turn, chunk_bytes // ALIGNMENT):
            nbytes = min(size * ALIGNMENT, end - offset)
            cut.append(Chunk(len(cut), number, offset, nbytes))
            offset += nbytes
    return tuple(cut)


def root(chunk_index: int, shares: tuple[int, ...]) -> int:
    """The rank that sums the chunk: one turn of sum(shares) chunks after the other, each rank evenly spread in it."""
    turn = _turn(shares)
    return turn[chunk_index % len(turn)]


def sent_bytes(cut: Sequence[Chunk], shares: tuple[int, ...], rank: int) -> int:
    """Bytes of payload that the member of this rank sends in a round, in the buffers' own dtypes."""
    total = sum(chunk.nbytes for chunk in cut)
    own = sum(chunk.nbytes for chunk in cut if root(chunk.index, shares) == rank)
    return (total - own) + (len(shares) - 1) * own


@lru_cache(maxsize=64)
def _turn(shares: tuple[int, ...]) -> tuple[int, ...]:
    """Each rank as often as its share says, the k-th time at the place k / share of the turn."""
    places = [((k + 0.5) / share, rank) for rank, share in enumerate(shares) for k in range(share)]
    return tuple(rank for _, rank in sorted(places))


def _sizes(units: int, turn: int, most: int) -> list[int]:
    """Splits `units` into pieces of at most `most`, whose sizes differ by 1 at most."""
    if units == 0:
        return []
    rounds = -(-units // (turn * most))
    pieces = min(rounds * turn, units)
    small, larger = divmod(units, pieces)
    return [small + 1] * larger + [small] * (pieces - larger)
