"""Bandwidth shared fairly: each host has an uplink and a downlink, and the flows through them divide both.

Rates are max-min fair (progressive filling), computed anew whenever a flow starts or ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chaos.sim.heap import EventHeap

DONE_S = 1e-9
"""What would take no longer has been sent: after an hour the clock can't tell such times apart from none."""

Port = tuple[str, str]
"""('up' or 'down', peer)."""


@dataclass(eq=False)
class Flow:
    ports: tuple[Port, Port]
    left: float
    """Bytes still to be sent."""
    done: Callable[[], None]
    rate: float = 0.0
    """Bytes per second."""


class Pipes:
    """All flows at present. `capacity` is each host's in bytes per second, both ways; `special` says otherwise."""

    def __init__(self, heap: EventHeap, capacity: float, special: dict[str, float] | None = None) -> None:
        self._heap = heap
        self._capacity = capacity
        self._special = special or {}
        self._flows: list[Flow] = []
        self._moved_at = 0.0
        self._plan = 0

    def start(self, src: str, dst: str, nbytes: float, done: Callable[[], None]) -> None:
        self._move()
        self._flows.append(Flow((("up", src), ("down", dst)), nbytes, done))
        self._share()

    def _move(self) -> None:
        """What has been sent since the last change."""
        passed, self._moved_at = self._heap.now - self._moved_at, self._heap.now
        for flow in self._flows:
            flow.left -= flow.rate * passed

    def _share(self) -> None:
        """Fill all flows alike until a port is full; its flows keep that rate, the others are filled further."""
        left: dict[Port, float] = {}
        users: dict[Port, list[Flow]] = {}
        for flow in self._flows:
            for port in flow.ports:
                left.setdefault(port, self._special.get(port[1], self._capacity))
                users.setdefault(port, []).append(flow)
        open_flows = dict.fromkeys(self._flows)
        while open_flows:
            shares = [(left[p] / n, p) for p, fs in users.items() if (n := sum(f in open_flows for f in fs))]
            share, port = min(shares)
            for flow in [f for f in users[port] if f in open_flows]:
                del open_flows[flow]
                flow.rate = share
                for used in flow.ports:
                    left[used] = max(0.0, left[used] - share)
        self._plan += 1
        if self._flows:
            plan = self._plan
            first = min(max(0.0, flow.left) / max(flow.rate, 1e-9) for flow in self._flows)
            self._heap.at(first, lambda: self._finish(plan))

    def _finish(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._move()
        ended = [flow for flow in self._flows if flow.left <= flow.rate * DONE_S]
        self._flows = [flow for flow in self._flows if flow not in ended]
        self._share()
        for flow in ended:
            flow.done()
