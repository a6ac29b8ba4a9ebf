"""Control does not wait behind bulk: counted in bytes of bulk that pass, not in time."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest

from chaos.agent.transport import BulkHeader, TransportConfig
from chaos.agent.transport.hop import Receipt, encode_hop
from chaos.agent.transport.rate import GAINS, SHARE
from chaos.agent.transport.streams import SO_MAX_PACING_RATE

from .ends import Stranger, eventually, hello_of, plain_info, run, world

MIB = 2**20
BUDGET = 256 * 1024
LANES = 2


@pytest.mark.parametrize("secure", [False, True])
def test_control_overtakes_queued_bulk(tmp_path: Path, secure: bool) -> None:
    """Between sending and receiving a message, each lane reads a few turns' budgets, whatever is queued."""

    async def test() -> None:
        async with world(tmp_path if secure else None) as w:
            config = TransportConfig(lanes=LANES, tls_budget=BUDGET, plain_budget=BUDGET)
            a, b = await w.pair(config)
            await eventually(lambda: a.transport.links()[b.id].lanes == LANES)
            memory = memoryview(bytearray(MIB))
            received, passed = 0, []

            def arrived() -> int:
                return b.transport.links()[a.id].bulk_in

            def heard(_src: str, body: bytes) -> None:
                passed.append(arrived() - int(body))

            b.sink = lambda _peer, _header: memory
            b.on_bulk = lambda *_: None  # type: ignore[method-assign]
            b.hear = heard
            for i in range(400):
                a.transport.send_bulk(b.id, BulkHeader(kind=1, index=i), memory)
            while a.transport.queued_bytes(b.id) > 0:
                start = arrived()
                await eventually(lambda start=start: arrived() > start + 8 * MIB or arrived() >= 400 * MIB)  # type: ignore[misc]
                a.transport.send_control(b.id, b"%d" % arrived())
                received += 1
            await eventually(lambda: len(passed) == received)
            assert received >= 10
            assert sorted(passed)[len(passed) // 2] <= 3 * LANES * BUDGET, passed

    run(test())


def test_a_turn_of_the_loop_moves_no_more_than_the_budgets(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            config = TransportConfig(lanes=LANES, tls_budget=BUDGET)
            a, b = await w.pair(config)
            memory = memoryview(bytearray(MIB))
            b.sink = lambda _peer, _header: memory
            b.on_bulk = lambda *_: None  # type: ignore[method-assign]
            for i in range(100):
                a.transport.send_bulk(b.id, BulkHeader(kind=1, index=i), memory)
            steps: list[int] = []
            last = 0

            def look() -> bool:
                nonlocal last
                now = b.transport.links()[a.id].bulk_in
                steps.append(now - last)
                last = now
                return now >= 100 * MIB

            while not look():
                await asyncio.sleep(0)
            assert max(steps) < 2 * LANES * BUDGET, "a lane that had run dry may read what came in the same turn"

    run(test())


@pytest.mark.parametrize(
    ("source", "nbytes", "paced"),
    [("127.0.0.2", 25 * 10**6, True), ("127.0.0.2", 900 * 10**6, False), ("127.0.0.1", 25 * 10**6, False)],
)
def test_the_receivers_report_sets_the_pace(source: str, nbytes: int, paced: bool) -> None:
    """The stranger says what came in one busy second. On one host (same address) there is no queue to spare."""

    async def test() -> None:
        async with world() as w:
            a, z = await w.end("a"), plain_info("z")
            control, lane = await Stranger.link(a, z, source)
            sock = a.transport._shared.roster.links[z.id]._lanes[0]._stream.sock
            before = sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE)
            control.write(encode_hop(Receipt((), nbytes, 10**6)))
            await eventually(lambda: a.transport.links()[z.id].rate_bps == nbytes)
            after = sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE)
            assert after == (int(nbytes * SHARE * GAINS[1]) if paced else before)
            control.close()
            lane.close()

    run(test())


def test_a_lane_that_idles_has_no_share_of_the_pace() -> None:
    """One frame at a time keeps one lane busy: with half the pace each sample would be half the one before."""

    async def test() -> None:
        async with world() as w:
            a, z = await w.end("a"), plain_info("z")
            control, lane = await Stranger.link(a, z, "127.0.0.2")
            second = msgspec.structs.replace(hello_of(z, "bulk", serial=2), lane=1)
            other, _ = await Stranger.greet(a, second, "127.0.0.2")
            link = a.transport._shared.roster.links[z.id]
            await eventually(lambda: len(link._lanes) == LANES)

            def paces() -> list[int]:
                socks = [lane._stream.sock for lane in link._lanes.values()]
                return [sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) for sock in socks]

            rate = 25 * 10**6
            whole = int(rate * SHARE * GAINS[1])
            control.write(encode_hop(Receipt((), rate, 10**6)))
            await eventually(lambda: paces() == [whole] * 2)
            a.transport.send_bulk(z.id, BulkHeader(kind=1, index=0), bytes(1000))
            await eventually(lambda: [lane.busy for lane in link._lanes.values()].count(True) == 1)
            assert paces() == [whole] * 2
            for index in range(1, 30):
                a.transport.send_bulk(z.id, BulkHeader(kind=1, index=index), bytes(4 * MIB))
            await eventually(lambda: paces() == [whole // 2] * 2)
            for stranger in (control, lane, other):
                stranger.close()

    run(test())
