"""A clock for the order of cause and effect among peers: a hybrid logical clock, after Kulkarni and others (2014)."""

from __future__ import annotations

import time
from collections.abc import Callable

from chaos.core.errors import RemoteProtocolError

LIMIT = 2**62
"""No honest clock gets there: in microseconds, it is 146,000 years."""


class CausalClock:
    """Stamps: microseconds since 1970 by this host's clock, but never at or below a stamp that was seen.

    A stamp goes with each message. So of two events of which one can have caused the other, the cause has the
    lower stamp, however wrong the hosts' clocks are; of two others the order is that of the clocks.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._last = 0

    def stamp(self) -> int:
        """For an event that happens now, or a message that leaves now."""
        self._last = min(max(self._last + 1, int(self._wall() * 1e6)), LIMIT)
        return self._last

    def hear(self, stamp: int) -> None:
        """A message came with this stamp. Raises RemoteProtocolError if it is out of range."""
        if not 0 <= stamp <= LIMIT:
            raise RemoteProtocolError(f"the causal stamp {stamp} is out of range")
        self._last = max(self._last, stamp)
