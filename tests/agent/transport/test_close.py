"""Closing leaves nothing behind, and the last words arrive."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from pathlib import Path

import pytest

from chaos.agent.transport import PAUSE, BulkHeader, DialFailed, PlainSecurity, TransportConfig, request

from .ends import Stranger, eventually, plain_info, run, world

MIB = 2**20


def open_files() -> set[str]:
    """Descriptor and target of every open file but the listing itself."""
    gc.collect()
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{entry.name} {entry.readlink()}")
    return {name for name in found if "/proc/" not in name}


@pytest.mark.parametrize("secure", [False, True])
def test_close_in_the_middle_of_everything(tmp_path: Path, secure: bool) -> None:
    async def test() -> None:
        before, threads = open_files(), threading.active_count()
        async with world(tmp_path if secure else None) as w:
            a, b, c = [await w.end(name, config=TransportConfig(backoff_first_s=0.01)) for name in "abc"]
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and b.linked(a))
            b.sink = lambda _peer, h: PAUSE if h.index else memoryview(bytearray(h.length))
            for i in range(20):
                a.transport.send_bulk(b.id, BulkHeader(kind=1, index=i), bytes(4 * MIB))
                b.transport.send_bulk(a.id, BulkHeader(kind=1, index=i), bytes(4 * MIB))
            await c.transport.close()
            a.transport.connect(c.info)
            await eventually(lambda: a.refusals)
            dialing = asyncio.create_task(a.transport.dial(b.address))
            mute = await Stranger.connect(a)
            await eventually(lambda: (a.bulk and dialing.done()) or not secure)
            await a.transport.close()
            await asyncio.gather(dialing, return_exceptions=True)
            mute.close()
            await eventually(lambda: b.downs)
        await eventually(lambda: len(asyncio.all_tasks()) == 1, "no task is left")
        await eventually(lambda: open_files() == before, f"left: {open_files() - before}")
        assert threading.active_count() == threads

    run(test())


def test_the_last_message_arrives_and_the_reason_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            a, b = await w.pair()
            for i in range(100):
                a.transport.send_control(b.id, bytes([i]) * 10_000)
            await a.transport.close("the last step is stable")
            await eventually(lambda: b.downs)
            assert [body[0] for _, body in b.control] == list(range(100))
            assert b.downs == [(a.id, "the peer closed the link: the last step is stable")]

    run(test())


def test_closing_does_not_wait_for_a_peer_that_reads_nothing() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            control, lane = await Stranger.link(a, plain_info("z"))
            a.transport.send_control(plain_info("z").id, bytes(4 * MIB))
            a.transport.send_control(plain_info("z").id, bytes(4 * MIB))
            async with asyncio.timeout(5):
                await a.transport.close()
            assert a.transport.counters["not_flushed"] == 1
            control.close()
            lane.close()

    run(test())


def test_a_closed_transport_dials_nobody() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.end("a"), await w.end("b")
            mute: list[asyncio.StreamWriter] = []
            server = await asyncio.start_server(lambda _r, writer: mute.append(writer), "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            dialing = asyncio.create_task(a.transport.dial(f"127.0.0.1:{port}"))
            await eventually(lambda: len(mute) == 2)
            await a.transport.close()
            with pytest.raises(DialFailed, match="this agent ended"):
                await dialing
            with pytest.raises(DialFailed, match="this agent ended"):
                await a.transport.dial(b.address)
            a.transport.connect(b.info)
            server.close()
            for writer in mute:
                writer.close()
            await eventually(lambda: len(asyncio.all_tasks()) == 1, "no task is left")
            assert b.ups == []

    run(test())


def test_closing_ends_clients_and_twice_is_harmless() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            started = asyncio.Event()

            async def never(_payload: bytes, _party: str) -> bytes:
                started.set()
                await asyncio.Event().wait()
                return b""

            a.answer = never
            asking = asyncio.create_task(request(a.address, PlainSecurity(), b""))
            await started.wait()
            await a.transport.close()
            with pytest.raises(Exception, match="closed"):
                await asking
            await a.transport.close()

    run(test())
