"""Which peers are silent for longer than they usually are. Receiver-side monotonic time only."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    heartbeat_s: float = 0.2
    """A guess: five a second cost nothing and let a silent host be noticed within `ceiling_s`."""
    floor_s: float = 1.0
    """Below this, a host that is busy for a moment would be suspected (measured: agents next to four
    trainers on two cores were late by up to 0.1 s)."""
    ceiling_s: float = 2.2
    """A silent peer is out within 3 s: this, a probe and an agreement round."""
    deviations: float = 8.0
    """Standard deviations above the mean interval, as in phi-accrual detectors at phi = 8 and beyond."""


@dataclass
class _Arrivals:
    last: float
    mean: float
    variance: float = 0.0

    def add(self, now: float) -> None:
        """Exponentially weighted mean and variance of the intervals (weight 1/8, as TCP does for its RTT)."""
        error = (now - self.last) - self.mean
        self.mean += error / 8
        self.variance += (error * error - self.variance) / 8
        self.last = now


class Detector:
    """Learns each peer's interval of arrivals; `overdue` lists those past their own timeout."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._arrivals: dict[str, _Arrivals] = {}
        self._shortest = min(config.floor_s, config.ceiling_s)
        self._calm_until = math.inf
        """Nobody is overdue before this time: most looks need no look at everybody."""

    def heard(self, peer: str, now: float) -> None:
        """A heartbeat came from `peer`."""
        known = self._arrivals.get(peer)
        if known is None:
            self.watch(peer, now)
        else:
            known.add(now)
            self._calm_until = min(self._calm_until, known.last + self._shortest)

    def watch(self, peer: str, now: float) -> None:
        """Expect heartbeats from `peer` from now on."""
        self._arrivals.setdefault(peer, _Arrivals(now, self._config.heartbeat_s))
        self._calm_until = min(self._calm_until, now + self._shortest)

    def forget(self, peer: str) -> None:
        self._arrivals.pop(peer, None)

    def timeout(self, peer: str) -> float:
        """Seconds of silence after which `peer` is overdue."""
        arrivals = self._arrivals[peer]
        learnt = arrivals.mean + self._config.deviations * math.sqrt(max(arrivals.variance, 0.0))
        return min(self._config.ceiling_s, max(self._config.floor_s, learnt))

    def silence(self, peer: str, now: float) -> float:
        """Seconds since `peer` was heard; infinite if it never was."""
        known = self._arrivals.get(peer)
        return math.inf if known is None else now - known.last

    def overdue(self, now: float) -> list[str]:
        if now <= self._calm_until:
            return []
        due = {peer: known.last + self.timeout(peer) for peer, known in self._arrivals.items()}
        self._calm_until = min(due.values(), default=math.inf)
        return [peer for peer, at in due.items() if now > at]
