"""Virtual time: what is due next happens next, at once. Ties are broken by the order of arrival."""

from __future__ import annotations

import heapq
from collections.abc import Callable

MAX_CALLS = 20_000_000
"""A run that needs more goes round in circles; one of 9 peers and 300 steps needs a few hundred thousand."""


class Runaway(Exception):
    """The simulation does not come to an end."""


class EventHeap:
    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the start of the simulation."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._calls = 0

    def at(self, delay: float, do: Callable[[], None]) -> None:
        """Call `do` in `delay` seconds of virtual time."""
        self._order += 1
        heapq.heappush(self._heap, (self.now + delay, self._order, do))

    def run(self, until: float) -> None:
        """Let time pass up to `until`."""
        heap, step = self._heap, self._next
        while heap and heap[0][0] <= until:
            step()
        self.now = until

    def reaches(self, condition: Callable[[], bool], limit: float) -> bool:
        """Run until the condition holds, or for `limit` seconds; whether it holds."""
        end = self.now + limit
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                return False
            self._next()
        return True

    def _next(self) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise Runaway(f"no end after {MAX_CALLS} calls, at {self.now:.3f} s")
        self.now, _, do = heapq.heappop(self._heap)
        do()
