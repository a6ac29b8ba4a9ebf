"""Training traffic first: while it fills this host's uplink, links that carry none of it are paced down. Pure.

Links of one host share its uplink, and TCP would give each flow the same part of it: a donor's gradients would take
longer by the shards that flow beside them. How far the others are paced down follows from what was measured: for which
part of the time training has filled the uplink lately. Where enough of it is free, the rest is all training's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

LEAST_PART = 0.2
"""Of the uplink's time that others get at least, free time included: a join has to end where training never rests.
Gradients then take up to a quarter longer, as little as results alone cost each of three members."""
HELD_PART = 0.02
"""Of a link's rate that it keeps while it is held, where there is free time enough: its connections stay open."""
MEMORY_S = 4.0
"""Time constant of the average: some steps of a second. A guess."""
FILLS_S = 0.1
"""An uplink is taken as filled while a link has training traffic for so long under way; bytes are confirmed within
50 ms and a round trip, so small gradients never fill it."""
STUCK_S = 1.0
"""Training traffic of which nothing was sent or confirmed for so long fills nothing: its receiver is dead."""


class Yielding(Protocol):
    """A link, as the uplink sees it."""

    def give_way(self) -> None:
        """Whether training fills the uplink, or for how much of the time, has changed."""


class Uplink:
    """One per transport. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._filling: dict[Yielding, float] = {}
        """And when something of it was last sent or confirmed."""
        self._links: dict[Yielding, None] = {}
        self._part = 0.0
        """Of the time lately, in which training filled it."""
        self._counted = clock()

    def add(self, link: Yielding) -> None:
        self._links[link] = None

    def remove(self, link: Yielding) -> None:
        self._links.pop(link, None)
        self.fills(link, 0.0)

    def fills(self, link: Yielding, seconds: float) -> None:
        """This link needs so long for the training traffic that it has under way."""
        before = self.is_full
        self._count()
        if seconds > FILLS_S:
            self._filling[link] = self._counted
        else:
            self._filling.pop(link, None)
        if self.is_full != before:
            for other in list(self._links):
                other.give_way()

    @property
    def is_full(self) -> bool:
        return max(self._filling.values(), default=-math.inf) > self._clock() - STUCK_S

    def part_for(self, link: Yielding) -> float:
        """The part of its rate at which this link may send now."""
        if not self.is_full or link in self._filling:
            return 1.0
        self._count()
        return max(HELD_PART, (LEAST_PART - (1 - self._part)) / max(self._part, LEAST_PART))

    def _count(self) -> None:
        now = self._clock()
        kept = math.exp((self._counted - now) / MEMORY_S)
        self._part = kept * self._part + (1 - kept) * self.is_full
        self._counted = now
