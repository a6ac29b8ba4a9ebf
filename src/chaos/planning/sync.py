"""Which member sums which chunk of the gradients in a round.

Every chunk has one root: the others send it their part of the chunk, it adds them up and sends the final
chunk back to all. With N members and a buffer of B bytes of which a member is root for R, that member sends

    (B - R)  its parts, to the other roots
  + (N - 1) R  the final chunks it is root for

bytes. With R = B / N this is 2 (N - 1) / N times B, the least that any all-reduce can do on equal links;
so all this module has to see to is that the members' shares are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def chunks(layout: Layout, members: int, chunk_bytes: int) -> tuple[Chunk, ...]:
    """Cuts the layout's segments, in order, into chunks of at most `chunk_bytes` (a multiple of 64).

    A segment is cut into a multiple of `members` pieces of (nearly) one size, so that all members are root
    of the same share of every segment; a segment too short for that, into pieces of 64 bytes.
    """
    if members < 1:
        raise ChaosError(f"{members} members: a round needs at least one")
    if chunk_bytes < ALIGNMENT or chunk_bytes % ALIGNMENT:
        raise ChaosError(f"chunks of {chunk_bytes} bytes: give a multiple of {ALIGNMENT}")
    cut: list[Chunk] = []
    for number, segment in enumerate(layout.segments):
        units = -(-segment.nbytes // ALIGNMENT)
        end = segment.offset + segment.nbytes
        offset = segment.offset
        for size in _sizes(units, members, chunk_bytes // ALIGNMENT):
            nbytes = min(size * ALIGNMENT, end - offset)
            cut.append(Chunk(len(cut), number, offset, nbytes))
            offset += nbytes
    return tuple(cut)


def root(chunk_index: int, members: int) -> int:
    """The rank that sums the chunk. Round robin: any two members' numbers of chunks differ by 1 at most."""
    return chunk_index % members


def sent_bytes(cut: Sequence[Chunk], members: int, rank: int) -> int:
    """Bytes of payload that the member of this rank sends in a round, in the buffers' own dtypes."""
    total = sum(chunk.nbytes for chunk in cut)
    own = sum(chunk.nbytes for chunk in cut if root(chunk.index, members) == rank)
    return (total - own) + (members - 1) * own


def _sizes(units: int, members: int, most: int) -> list[int]:
    """Splits `units` into pieces of at most `most`, whose sizes differ by 1 at most."""
    if units == 0:
        return []
    rounds = -(-units // (members * most))
    pieces = min(rounds * members, units)
    small, larger = divmod(units, pieces)
    return [small + 1] * larger + [small] * (pieces - larger)
