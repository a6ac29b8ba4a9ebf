"""Strangers, and peers that break the protocol: it costs them their connection or link, and nobody else anything."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.agent.transport import BulkHeader, TransportConfig, listener
from chaos.agent.transport.frames import BULK_HEADER_SIZE, HOP, ControlFrame, encode_bulk, encode_control
from chaos.agent.transport.hello import (
    Answer,
    Goodbye,
    Hello,
    Request,
    decode_greeting,
    encode_greeting,
    greeting_length,
)
from chaos.agent.transport.hop import LaneClosed, Receipt, encode_hop
from chaos.core.errors import RemoteProtocolError
from chaos.core.types import PROTOCOL_VERSION, PeerInfo

from .ends import End, Stranger, eventually, hello_of, plain_info, run, world

Z = plain_info("z")


async def unharmed(a: End, b: End) -> None:
    """The link between two honest ends still carries messages."""
    assert a.downs == b.downs == []
    a.transport.send_control(b.id, b"still here")
    await eventually(lambda: (a.id, b"still here") in b.control)


def refusal_of(greeting: object) -> str:
    assert isinstance(greeting, Goodbye), greeting
    return greeting.reason


FIRST_WORDS = {
    "nothing": b"",
    "web": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(100),
    "too long": struct.pack("<4sHI", b"CHAO", PROTOCOL_VERSION, 2**31),
    "not msgpack": struct.pack("<4sHI", b"CHAO", PROTOCOL_VERSION, 4) + b"\xc1\xc1\xc1\xc1",
    "no hello": encode_greeting(Goodbye("hello")),
    "half a hello": encode_greeting(hello_of(Z, "control"))[:-3],
}


@pytest.mark.parametrize("words", FIRST_WORDS.values(), ids=FIRST_WORDS.keys())
def test_bad_first_words_cost_one_connection(words: bytes) -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair(TransportConfig(handshake_timeout_s=0.3))
            stranger = await Stranger.connect(a)
            stranger.write(words)
            answer = await stranger.read_all()
            assert len(answer) < 400
            await unharmed(a, b)
            stranger.close()

    run(test())


def test_other_version_gets_a_reason() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            stranger = await Stranger.connect(a)
            stranger.write(struct.pack("<4sHI", b"CHAO", PROTOCOL_VERSION + 1, 3) + b"new")
            reason = refusal_of(await stranger.hear())
            versions = f"version {PROTOCOL_VERSION + 1}, this one {PROTOCOL_VERSION}"
            assert f"speaks protocol {versions}: install the same version" in reason
            assert "\n" not in reason
            stranger.close()

    run(test())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300), st.integers(0, 10))
def test_arbitrary_bytes_in_place_of_a_hello(data: bytes, kept: int) -> None:
    """The first `kept` bytes are those of a real hello."""

    async def test() -> None:
        async with world() as w:
            a = await w.end("a", config=TransportConfig(handshake_timeout_s=0.05))
            stranger = await Stranger.connect(a)
            stranger.write(encode_greeting(hello_of(Z, "control"))[:kept] + data)
            await stranger.read_all()
            stranger.close()
            assert a.ups == []
            await eventually(lambda: len(asyncio.all_tasks()) == 1, "no task is left")

    run(test())


HOP_FRAMES = {
    "unknown message": encode_control(ControlFrame(1, HOP, HOP, b"\x91\xa4Nope")),
    "garbage": encode_control(ControlFrame(1, HOP, HOP, b"\xff\xff")),
    "wrong receipt": encode_hop(Receipt(((1, 99),), 0, 0)),
}
CONTROL_BYTES = {
    **HOP_FRAMES,
    "oversized": struct.pack("<IB16x", 2**32 - 1, 1),
    "ttl 0": struct.pack("<IB16x", 0, 0),
    "ttl 200": struct.pack("<IB16x", 0, 200),
}
BULK_BYTES = {
    "zeros": bytes(BULK_HEADER_SIZE),
    "random": bytes(range(64)),
    "oversized": encode_bulk(BulkHeader(kind=1))[:4] + b"\xff" * 4 + bytes(56),
}
BREACHES = [("control", data) for data in CONTROL_BYTES.values()] + [("bulk", data) for data in BULK_BYTES.values()]


@pytest.mark.parametrize(
    ("where", "data"), BREACHES, ids=[f"control {k}" for k in CONTROL_BYTES] + [f"bulk {k}" for k in BULK_BYTES]
)
def test_a_breach_costs_the_link_of_its_sender(where: str, data: bytes) -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair()
            control, lane = await Stranger.link(a, Z)
            (control if where == "control" else lane).write(data)
            await eventually(lambda: a.downs)
            assert a.downs[0][0] == Z.id
            await asyncio.gather(control.read_all(), lane.read_all())
            assert a.transport.counters["misbehaved"] == 1
            a.downs.clear()
            await unharmed(a, b)
            _, answer = await Stranger.greet(a, hello_of(Z, "control", 2))
            assert "broke the protocol a moment ago" in refusal_of(answer)

    run(test())


def test_a_peer_dropped_for_misbehaviour_comes_back_after_the_quarantine() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a", config=TransportConfig(quarantine_s=0.1))
            control, _ = await Stranger.link(a, Z)
            control.write(bytes(64))
            await eventually(lambda: a.downs)

            async def accepted() -> bool:
                _, answer = await Stranger.greet(a, hello_of(Z, "control", 2))
                return isinstance(answer, Hello)

            while not await accepted():
                assert a.transport.counters["refused"] < 1000

    run(test())


def test_a_wanted_peer_that_misbehaves_is_not_dialed_for_a_while() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a", config=TransportConfig(quarantine_s=1000, backoff_first_s=0.001, backoff_max_s=0.001))
            kinds: list[str] = []

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                preamble = await reader.readexactly(10)
                hello = decode_greeting(await reader.readexactly(greeting_length(preamble, 2**16)))
                assert isinstance(hello, Hello)
                kinds.append(hello.kind)
                writer.write(encode_greeting(hello_of(Z, hello.kind)))
                if hello.kind == "control":
                    writer.write(bytes(100))
                await reader.read()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            a.transport.connect(msgspec.structs.replace(Z, addresses=(address,)))
            await eventually(lambda: a.downs)
            for _ in range(3):  # time in which it could be dialed ten times over
                b = await w.end("b")
                await b.transport.dial(a.address)
                a.transport.disconnect(b.id, "next")
                await eventually(lambda b=b: b.downs)  # type: ignore[misc]
            assert kinds.count("control") == 1
            server.close()

    run(test())


@pytest.mark.parametrize("callback", ["hear", "sink"])
def test_what_the_caller_does_not_allow_costs_the_link(callback: str) -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair()

            def refuse(*_: object) -> None:
                raise RemoteProtocolError("that was not allowed")

            setattr(b, callback, refuse)
            a.transport.send_control(b.id, b"x")
            a.transport.send_bulk(b.id, BulkHeader(kind=1), b"x")
            await eventually(lambda: b.downs and a.downs)
            assert b.downs == [(a.id, "that was not allowed")]

    run(test())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["control", "bulk"]), st.binary(min_size=1, max_size=500))
def test_arbitrary_bytes_on_a_link_never_harm_another(where: str, data: bytes) -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair()
            control, lane = await Stranger.link(a, Z)
            (control if where == "control" else lane).write(data)
            control.close()
            lane.close()
            await eventually(lambda: a.downs)
            assert {peer for peer, _ in a.downs} == {Z.id}
            a.downs.clear()
            await unharmed(a, b)

    run(test())


def test_a_replayed_hello_makes_no_second_link() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            control, lane = await Stranger.link(a, Z)
            replay, answer = await Stranger.greet(a, hello_of(Z, "bulk", number=7, serial=1))
            assert "no such link" in refusal_of(answer)
            assert Z.id in a.transport.links()
            await replay.read_all()
            second, answer = await Stranger.greet(a, hello_of(Z, "bulk", number=1, serial=1))
            assert isinstance(answer, Hello), "a lane may be dialed anew"
            lane.write(encode_bulk(BulkHeader(kind=1, dst=a.id)))
            assert await lane.read_all() == b"", "the old connection of that lane is closed"
            second.write(encode_bulk(BulkHeader(kind=1, dst=a.id)))
            await eventually(lambda: len(a.bulk) == 1)
            control.close()
            second.close()

    run(test())


def test_replayed_frames_are_delivered_again_and_harm_nothing() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            control, lane = await Stranger.link(a, Z)
            for _ in range(3):
                control.write(encode_control(ControlFrame(8, Z.id, a.id, b"again")))
                lane.write(encode_bulk(BulkHeader(kind=1, dst=a.id, length=4)) + b"data")
            await eventually(lambda: len(a.control) == len(a.bulk) == 3)
            control.close()
            lane.close()

    run(test())


def test_unknown_broken_lane_is_answered() -> None:
    """The other end may have attached a lane that was given up here: it must learn that nothing came."""

    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            control, lane = await Stranger.link(a, Z)
            control.write(encode_hop(LaneClosed(5, 0)))
            control.write(encode_hop(LaneClosed(1, 0)))
            lane.close()
            control._writer.write_eof()
            assert encode_hop(LaneClosed(5, 0)) in await control.read_all()
            control.close()

    run(test())


def test_late_hello_of_a_peer_that_has_taken_up_our_link_is_a_duplicate() -> None:
    """And a hello that knows of our link replaces it: its sender has lost it."""

    async def test() -> None:
        async with world() as w:
            a, b = await w.pair()
            stranger, answer = await Stranger.greet(a, hello_of(b.info, "control", number=1, accepted=0))
            assert isinstance(answer, Goodbye)
            assert answer.duplicate
            stranger.close()
            await unharmed(a, b)
            stranger, answer = await Stranger.greet(a, hello_of(b.info, "control", number=1, accepted=1))
            assert isinstance(answer, Hello)
            await eventually(lambda: a.downs)
            assert "dialed anew" in a.downs[0][1]
            stranger.close()

    run(test())


def test_connections_that_say_nothing_do_not_lock_others_out() -> None:
    async def test() -> None:
        async with world() as w:
            config = TransportConfig(max_pending=8, handshake_timeout_s=10.0)
            a = await w.end("a", config=config)
            mute = [await Stranger.connect(a) for _ in range(30)]
            b = await w.end("b")
            await b.transport.dial(a.address)
            assert a.linked(b)
            assert a.transport.counters["pending_evicted"] >= 22
            for stranger in mute:
                stranger.close()

    run(test())


def test_no_file_descriptors_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepting pauses instead of spinning, and goes on when there are some."""

    async def test() -> None:
        async with world() as w:
            a, b = await w.end("a"), await w.end("b")
            waiting = socket.socket()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(waiting.fileno())
            os.close(lowest)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                host, port = a.address.split(":")
                waiting.connect((host, int(port)))
                await eventually(lambda: a.transport.counters["accept_failed"] > 0)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                waiting.close()
            await b.transport.dial(a.address)

    monkeypatch.setattr(listener, "_NO_FILES_PAUSE_S", 0.01)
    run(test())


def test_a_peer_that_stops_reading_control_loses_its_link() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a", config=TransportConfig(control_queue_bytes=2**20))
            control, lane = await Stranger.link(a, Z)

            def flooded() -> bool:
                a.transport.send_control(Z.id, bytes(2**18))
                return bool(a.downs)

            await eventually(flooded)
            assert "stopped reading" in a.downs[0][1]
            control.close()
            lane.close()

    run(test())


def test_too_many_bulk_frames_end_the_link() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair(TransportConfig(bulk_queue_frames=10))
            for _ in range(11):
                a.transport.send_bulk(b.id, BulkHeader(kind=1), bytes(10))
            await eventually(lambda: a.downs)
            assert "10 bulk frames wait" in a.downs[0][1]

    run(test())


def test_a_client_that_asks_out_of_order() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            stranger, answer = await Stranger.greet(a, Hello("", "client", 0, 0, 0, 0, None, ""))
            assert isinstance(answer, Hello)
            stranger.write(encode_greeting(Request(b"one")))
            assert await stranger.hear() == Answer(b":one")
            stranger.write(encode_greeting(Answer(b"what")))
            assert "sends requests only" in refusal_of(await stranger.hear())
            stranger.close()

    run(test())


@pytest.mark.parametrize("change", ["id", "info"])
def test_claims_that_a_hello_may_not_make(change: str) -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            info: PeerInfo | None = a.info if change == "id" else None
            _, answer = await Stranger.greet(a, Hello("run", "control", 1, 0, 0, 0, info, ""))
            reason = refusal_of(answer)
            assert ("itself" if change == "id" else "must say who it is") in reason

    run(test())
