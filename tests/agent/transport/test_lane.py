"""A lane in the event loop, on a stream that always has more."""

from __future__ import annotations

import asyncio
import socket

from chaos.agent.transport import BulkHeader, TransportConfig, Verdict
from chaos.agent.transport.bulk import OutFrame
from chaos.agent.transport.frames import encode_bulk
from chaos.agent.transport.lane import Lane
from chaos.agent.transport.rate import BusyMeter

from .ends import run

BUDGET = 64 * 100


class Endless:
    """Its socket is always readable, and it always holds more: empty frames without end."""

    slice = 100

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frame = encode_bulk(BulkHeader(kind=1))

    def recv_into(self, view: memoryview) -> int:
        view[:] = self.frame[-len(view) :]
        return len(view)

    def send(self, view: memoryview) -> int:
        return len(view)

    def flush(self) -> bool:
        return True

    def buffered(self) -> bool:
        return True

    def expect(self, count: int) -> None: ...


class Owner:
    """A link that takes everything."""

    def __init__(self) -> None:
        self.meter = BusyMeter()
        self.read: list[int] = []

    def bulk_begins(self, _header: BulkHeader) -> memoryview | Verdict:
        return memoryview(b"")

    def bulk_done(self, header: BulkHeader, payload: memoryview) -> None: ...

    def next_frame(self) -> OutFrame | None:
        return None

    def lane_read(self, nbytes: int) -> None:
        self.read.append(nbytes)

    def lane_broken(self, lane: Lane, reason: str, misbehaved: bool) -> None: ...


def test_one_budget_per_turn_of_the_event_loop() -> None:
    async def test() -> None:
        near, far = socket.socketpair()
        far.send(b"readable")
        owner, config = Owner(), TransportConfig(tls_budget=BUDGET)
        lane = Lane(Endless(near), 0, 1, True, owner, config)  # type: ignore[arg-type]
        lane.start()
        for _ in range(50):
            await asyncio.sleep(0)
        lane.close()
        far.close()
        assert set(owner.read) == {BUDGET}
        assert len(owner.read) <= 50

    run(test())
