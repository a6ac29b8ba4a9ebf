"""What carries the bytes of a lab from host to host: `wire.py` by packets, `relay.py` by connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_HOSTS = 64
PORT = 7700
"""Where every agent of a lab listens, each at its own address."""


@dataclass(frozen=True)
class Quality:
    """What one direction of a link is like."""

    rate: float = 0.0
    """Bits per second; 0: as fast as the machine carries it."""
    latency_ms: float = 0.0
    """One way."""
    jitter_ms: float = 0.0
    """Up to so much more, drawn for each packet; packets stay in order."""
    loss: float = 0.0
    """Share of the packets, 0 to 1."""
    queue_ms: float = 100.0
    """A packet that would wait longer for its turn is dropped."""


@dataclass(frozen=True)
class Traffic:
    """What went in one direction of a link so far."""

    packets: int = 0
    nbytes: int = 0
    """With the headers of IP and TCP."""
    dropped: int = 0


class Carrier(Protocol):
    """Hosts 0 to N - 1 and all links among them, which are down at first."""

    def enter(self, host: int) -> list[str]:
        """What a command begins with that is to run on this host."""

    def listen_at(self, host: int) -> str:
        """HOST:PORT that its agent listens at."""

    def reached_at(self, host: int) -> str:
        """HOST:PORT under which other hosts reach it."""

    def set_direction(self, sender: int, receiver: int, quality: Quality | None) -> None:
        """From now on. None: nothing arrives, and nobody is told."""

    def set_access(self, host: int, up: float, down: float, queue_ms: float = 100.0) -> None:
        """What all links of a host share, in bits per second; 0: no limit."""

    def traffic(self) -> tuple[dict[tuple[int, int], Traffic], float]:
        """By sender and receiver; and how late, in seconds, the latest packet since the last call was delivered."""

    def close(self) -> None:
        """End it; nothing is left."""


def mesh(hosts: int) -> Sequence[tuple[int, int]]:
    """All pairs, the lower number first."""
    return [(a, b) for a in range(hosts) for b in range(a + 1, hosts)]
