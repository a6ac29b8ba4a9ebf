"""Who watches whom: in a small view everybody everybody, in a large one a few neighbours on a ring with chords.

Heartbeats of everybody to everybody would cost each peer as many messages as the view has peers, five times a second.
In a large view a peer exchanges them with those at distances 1, 2, 4, ... both ways round in the order of ranks: twice
the logarithm of the view's size. To watch is mutual, follows from the view alone, and is the same for all who have it.
"""

from __future__ import annotations

from chaos.core.types import View

SMALL = 16
"""Up to so many peers everybody watches everybody. Above, twice the logarithm is less: 8 of 17, 18 of 1,000."""


def is_small(view: View) -> bool:
    return len(view.everybody()) <= SMALL


def watchers(view: View, peer: str) -> tuple[str, ...]:
    """Those that `peer` exchanges heartbeats with, the nearest first; nobody for one that is not in a large view."""
    everybody = view.everybody()
    if is_small(view):
        return tuple(info.id for info in everybody if info.id != peer)
    rank = view.position(peer)
    if rank is None:
        return ()
    found: dict[str, None] = {}
    distance = 1
    while distance <= len(everybody) // 2:
        for other in (rank + distance, rank - distance):
            found[everybody[other % len(everybody)].id] = None
        distance *= 2
    return tuple(found)
