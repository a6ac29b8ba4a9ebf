"""Which of the kernel's algorithms keeps a lane from flooding the network. See docs/adr/0051.

Lanes are paced by what their link is measured to carry, so the algorithm only has to react where that was too much.
CUBIC does, and shares a queue fairly; but it takes each loss for congestion. BBR does not, so it is the one for links
that lose packets by themselves; several of its flows in one queue starve each other.
"""

from __future__ import annotations

import socket
import struct

CALM, LOSSY = "cubic", "bbr"
PATIENCE = 4
"""Looks with losses, beyond those without, after which a link counts as one that loses packets by itself. A guess: the
overshoot of a slow start shows in one or two."""
_RETRANSMITTED = 100
"""Offset of `tcpi_total_retrans` in the kernel's struct tcp_info, part of its fixed interface."""


def use(sock: socket.socket, algorithm: str) -> bool:
    """Whether the kernel has it and lets this user choose it; if not, nothing changes."""
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, algorithm.encode())
    except OSError:
        return False
    return True


def retransmitted(sock: socket.socket) -> int:
    """Segments that were sent again since the connection stands."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RETRANSMITTED + 4)
    return int(struct.unpack_from("=I", info, _RETRANSMITTED)[0])


class LossWatch:
    """Tells a link that loses packets from one that was overrun now and then. Pure."""

    def __init__(self) -> None:
        self._sent = self._again = self._score = 0

    def look(self, sent: int, again: int) -> bool:
        """Totals of bytes sent and of segments sent again. True once losses keep coming. Idle times say nothing."""
        if again > self._again:
            self._score += 1
        elif sent > self._sent:
            self._score = max(0, self._score - 1)
        self._sent, self._again = sent, again
        return self._score >= PATIENCE
