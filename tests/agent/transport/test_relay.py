"""Three peers of which two can't reach each other: frames go through the third."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.agent.transport import PAUSE, BulkHeader, TransportConfig
from chaos.agent.transport.frames import ControlFrame, encode_bulk, encode_control

from .ends import End, Stranger, World, eventually, plain_info, run, world

MIB = 2**20


async def chain(w: World, config: TransportConfig | None = None) -> tuple[End, End, End]:
    """a - c - b, with routes between a and b."""
    ends = [await w.end(name, config=config or TransportConfig()) for name in "acb"]
    a, c, b = ends
    a.transport.connect(c.info)
    b.transport.connect(c.info)
    await eventually(lambda: c.linked(a, b) and a.linked(c) and b.linked(c))
    a.transport.set_routes({b.id: c.id})
    b.transport.set_routes({a.id: c.id})
    return a, c, b


def test_control_and_bulk_are_relayed(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            a, c, b = await chain(w)
            sent: list[int] = []
            for i in range(30):
                assert a.transport.send_control(b.id, b"%d" % i)
                a.transport.send_bulk(
                    b.id, BulkHeader(kind=2, index=i), bytes([i]) * MIB, on_sent=lambda i=i: sent.append(i)
                )
            assert b.transport.send_control(a.id, b"back")
            await eventually(lambda: len(b.control) == 30 and len(b.bulk) == 30 and a.control)
            assert b.control == [(a.id, b"%d" % i) for i in range(30)]
            assert sorted((h.index, p) for _, h, p in b.bulk) == [(i, bytes([i]) * MIB) for i in range(30)]
            assert {(peer, h.src, h.dst, h.ttl) for peer, h, _ in b.bulk} == {(c.id, a.id, b.id, 7)}
            assert a.control == [(b.id, b"back")]
            assert c.control == c.bulk == []
            assert (c.transport.counters["control_relayed"], c.transport.counters["bulk_relayed"]) == (31, 30)
            await eventually(lambda: sorted(sent) == list(range(30)))

    run(test())


def test_a_full_relay_stops_reading_and_loses_nothing() -> None:
    async def test() -> None:
        async with world() as w:
            config = TransportConfig(relay_bytes=4 * MIB, receipt_interval_s=0.01)
            a, c, b = await chain(w, config)
            b.sink = lambda _peer, _header: PAUSE
            for i in range(60):
                a.transport.send_bulk(b.id, BulkHeader(kind=2, index=i), bytes([i]) * MIB)
            link = c.transport._shared.roster.links[b.id]
            await eventually(lambda: link.relay_bytes == 4 * MIB)
            for i in range(20):  # control passes, and time enough for all of it to pass
                b.transport.send_control(a.id, b"%d" % i)
                await eventually(lambda i=i: len(a.control) == i + 1)  # type: ignore[misc]
            assert link.relay_bytes == 4 * MIB
            assert a.transport.queued_bytes(b.id) > 20 * MIB, "the sender is held up"
            b.sink = lambda _peer, h: memoryview(bytearray(h.length))
            b.transport.resume_bulk()
            await eventually(lambda: len(b.bulk) == 60)
            assert sorted((h.index, p[0]) for _, h, p in b.bulk) == [(i, i) for i in range(60)]
            await eventually(lambda: link.relay_bytes == 0)

    run(test())


def test_no_route_drops_and_counts() -> None:
    async def test() -> None:
        async with world() as w:
            a, c, b = await chain(w)
            c.transport.disconnect(b.id, "test")
            await eventually(lambda: not c.linked(b))
            assert a.transport.send_control(b.id, b"x")
            a.transport.send_bulk(b.id, BulkHeader(kind=1), bytes(MIB))
            await eventually(lambda: c.transport.counters["control_unroutable"] == 1)
            await eventually(lambda: c.transport.counters["bulk_unroutable"] == 1)
            assert c.downs[0][0] == b.id
            a.transport.set_routes({})
            assert not a.transport.send_control(b.id, b"x")

    run(test())


def test_the_next_link_going_down_lets_the_relay_go_on() -> None:
    """Frames that wait at the relay for a dead link are given up, and their sender is not held up for ever."""

    async def test() -> None:
        async with world() as w:
            a, c, b = await chain(w, TransportConfig(relay_bytes=2 * MIB))
            b.sink = lambda _peer, _header: PAUSE
            for i in range(30):
                a.transport.send_bulk(b.id, BulkHeader(kind=2, index=i), bytes(MIB))
            await eventually(lambda: a.transport.queued_bytes(b.id) > MIB)
            await b.transport.close()
            await eventually(lambda: a.transport.queued_bytes(b.id) == 0)
            a.transport.send_bulk(c.id, BulkHeader(kind=3), b"for c itself")
            await eventually(lambda: any(h.kind == 3 for _, h, _ in c.bulk))

    run(test())


@pytest.mark.parametrize("ttl", [1, 2])
def test_time_to_live(ttl: int) -> None:
    async def test() -> None:
        async with world() as w:
            _, c, b = await chain(w)
            z = plain_info("z")
            control, lane = await Stranger.link(c, z)
            control.write(encode_control(ControlFrame(ttl, z.id, b.id, b"x")))
            lane.write(encode_bulk(BulkHeader(kind=1, src=z.id, dst=b.id, ttl=ttl, length=3)) + b"abc")
            counters = c.transport.counters
            if ttl == 1:
                await eventually(lambda: counters["control_expired"] == counters["bulk_expired"] == 1)
                assert b.control == b.bulk == []
            else:
                await eventually(lambda: b.control and b.bulk)
                assert b.bulk[0][1].ttl == 1
            control.close()
            lane.close()

    run(test())


def test_a_route_that_leads_back_drops() -> None:
    async def test() -> None:
        async with world() as w:
            a, c, _ = await chain(w)
            far = plain_info("f").id
            a.transport.set_routes({far: c.id})
            c.transport.set_routes({far: a.id})
            a.transport.send_control(far, b"x")
            a.transport.send_bulk(far, BulkHeader(kind=1), b"x")
            counters = c.transport.counters
            await eventually(lambda: counters["control_unroutable"] == counters["bulk_unroutable"] == 1)

    run(test())


def test_a_routing_loop_ends() -> None:
    async def test() -> None:
        async with world() as w:
            a, c, b = await chain(w)
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and b.linked(a))
            far = plain_info("f").id
            for end, following in ((a, c), (c, b), (b, a)):
                end.transport.set_routes({far: following.id})
            a.transport.send_control(far, b"x")
            a.transport.send_bulk(far, BulkHeader(kind=1), b"x")

            def counted(what: str) -> int:
                return sum(end.transport.counters[what] for end in (a, b, c))

            await eventually(lambda: counted("control_expired") == counted("bulk_expired") == 1)
            assert counted("control_relayed") == counted("bulk_relayed") == 7

    run(test())
