"""How fast shards come from one donor, as the learner sees it: bytes over the time in which some were awaited."""

from __future__ import annotations

from collections import deque

WINDOW_S = 2.0
"""Older arrivals count no more: a link that got slower is found out within so long."""
FEWEST = 4
"""So many of the last arrivals count however old they are: shards may take longer than the window."""
SHORTEST_S = 0.01
"""No rate is measured over less: the first shards of a fast donor come in one read."""
SIDE_BY_SIDE = 2
"""Shards that share a link at a time (its lanes): so many may come together after a silence."""


class Arrivals:
    """Arrivals of one donor. Before anything has come, `prior` (B/s) is believed, but no longer than it can be true."""

    def __init__(self, prior: float) -> None:
        self._rate = prior
        self._mark: float | None = None
        """The time from which on `_came` counts; None while nothing is awaited."""
        self._came: deque[tuple[float, int]] = deque()
        self._heard = 0.0

    @property
    def measured(self) -> bool:
        """Whether anything has come since it was last idle."""
        return bool(self._came)

    def awaited(self, now: float, first_s: float) -> None:
        """Something is asked for from `now` on; its first byte may take `first_s` seconds."""
        if self._mark is None:
            self._mark = self._heard = now + first_s

    def idle(self) -> None:
        """Nothing is awaited: the time that passes now says nothing about the donor."""
        if self._came and self._mark is not None:
            self._rate = self._over(self._mark)
        self._mark = None
        self._came.clear()

    def came(self, now: float, nbytes: int) -> None:
        """A shard is here whole."""
        if self._mark is None:
            return
        self._came.append((now, nbytes))
        self._heard = max(self._heard, now)
        while len(self._came) > FEWEST and self._came[0][0] < now - WINDOW_S:
            self._mark, _ = self._came.popleft()

    def silent_s(self, now: float) -> float:
        """For how long nothing has come although something should have."""
        return 0.0 if self._mark is None else max(0.0, now - self._heard)

    def rate(self, now: float, shard_bytes: int) -> float:
        """B/s. Falls while the next shard is overdue, so that a donor that sends no more counts for ever less."""
        if self._mark is None:
            return self._rate
        rate = self._over(self._mark) if self._came else self._rate
        silent = self.silent_s(now)
        return min(rate, SIDE_BY_SIDE * shard_bytes / silent) if silent > 0 else rate

    def _over(self, mark: float) -> float:
        total = sum(nbytes for _, nbytes in self._came)
        return total / max(self._came[-1][0] - mark, SHORTEST_S)
