"""Training traffic first: while it fills this host's uplink, links that carry none of it are paced down. Pure.

Links of one host share its uplink, and TCP would give each flow the same part of it, or more to one that has just
begun: a donor's gradients would take longer by the shards that flow beside them. How fast the others still are follows
from what each was measured to reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

HELD_PART = 0.5
"""Of a link's measured rate that it keeps while it is held. With less, joins took minutes where results alone need most
of what training leaves; with all, steps took twice as long (docs/adr/0046-training-first.md)."""
FILLS_S = 0.1
"""An uplink is taken as filled while a link has training traffic for so long under way; bytes are confirmed within
50 ms and a round trip, so small gradients never fill it."""
STUCK_S = 1.0
"""Training traffic of which nothing was sent or confirmed for so long fills nothing: its receiver is dead."""


class Yielding(Protocol):
    """A link, as the uplink sees it."""

    def give_way(self) -> None:
        """Whether training fills the uplink has changed."""


class Uplink:
    """One per transport. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._filling: dict[Yielding, float] = {}
        """And when something of it was last sent or confirmed."""
        self._links: dict[Yielding, None] = {}

    def add(self, link: Yielding) -> None:
        self._links[link] = None

    def remove(self, link: Yielding) -> None:
        self._links.pop(link, None)
        self.fills(link, 0.0)

    def fills(self, link: Yielding, seconds: float) -> None:
        """This link needs so long for the training traffic that it has under way."""
        before = self.is_full
        if seconds > FILLS_S:
            self._filling[link] = self._clock()
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
        return HELD_PART if self.is_full and link not in self._filling else 1.0
