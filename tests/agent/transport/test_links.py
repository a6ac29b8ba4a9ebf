"""Two transports on loopback, plain and with TLS: messages, payloads, links that break and come back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.agent.transport import (
    DISCARD,
    PAUSE,
    BulkHeader,
    DialFailed,
    PlainSecurity,
    Transport,
    TransportConfig,
    Verdict,
)
from chaos.agent.transport.bulk import FrameReceiver, Halt
from chaos.agent.transport.hello import Goodbye, encode_greeting
from chaos.core.errors import ChaosError, Refused

from .ends import LIMIT_S, End, Stranger, eventually, hello_of, plain_info, run, world

MIB = 2**20


@pytest.fixture(params=["plain", "tls"])
def parties(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "tls" else None


def pattern(index: int, size: int) -> bytes:
    """Bytes that differ from frame to frame and from place to place."""
    block = hashlib.sha256(str(index).encode()).digest()
    return (block * (size // 32 + 1))[:size]


def send(source: End, target: End, index: int, size: int, done: Callable[[], None] | None = None) -> None:
    assert source.transport.send_bulk(target.id, BulkHeader(kind=1, index=index), pattern(index, size), on_sent=done)


def got(end: End, indices: range | list[int], size: int) -> bool:
    """The end has exactly these frames, each once, with the right bytes."""
    return sorted((h.index, p) for _, h, p in end.bulk) == [(i, pattern(i, size)) for i in indices]


def test_control_and_bulk_in_both_directions(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.pair()
            for i in range(50):
                assert a.transport.send_control(b.id, b"to b %d" % i)
                assert b.transport.send_control(a.id, b"to a %d" % i)
                send(a, b, i, 100_000)
                send(b, a, i, 100_000)
            await eventually(lambda: len(a.control) == len(b.control) == 50)
            await eventually(lambda: got(a, range(50), 100_000) and got(b, range(50), 100_000))
            assert b.control == [(a.id, b"to b %d" % i) for i in range(50)]
            assert a.ups == [b.info]
            assert [i.id for i in b.ups] == [a.id]
            header = b.bulk[0][1]
            assert (header.src, header.dst, header.ttl, header.length) == (a.id, b.id, 8, 100_000)

    run(test())


@pytest.mark.parametrize("size", [0, 1, 64, 16_320, 16_321, 16 * MIB])
def test_payload_sizes(parties: Path | None, size: int) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.pair()
            sent = asyncio.Event()
            send(a, b, 7, size, sent.set)
            await eventually(lambda: got(b, [7], size))
            async with asyncio.timeout(LIMIT_S):
                await sent.wait()

    run(test())


def test_large_control_message(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.pair()
            a.transport.send_control(b.id, pattern(1, 4 * MIB))
            a.transport.send_control(b.id, b"next")
            await eventually(lambda: len(b.control) == 2)
            assert b.control == [(a.id, pattern(1, 4 * MIB)), (a.id, b"next")]
            with pytest.raises(ValueError, match="is over"):
                a.transport.send_control(b.id, bytes(4 * MIB + 1))
            with pytest.raises(ValueError, match="is over"):
                a.transport.send_bulk(b.id, BulkHeader(kind=1), bytes(16 * MIB + 1))

    run(test())


def test_payload_lands_in_the_callers_memory() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair()
            memory = bytearray(3 * MIB)
            b.sink = lambda _peer, h: memoryview(memory)[h.index * MIB : (h.index + 1) * MIB]
            for i in (2, 0, 1):
                send(a, b, i, MIB)
            await eventually(lambda: len(b.bulk) == 3)
            assert memory == pattern(0, MIB) + pattern(1, MIB) + pattern(2, MIB)

    run(test())


def test_pause_stops_the_sender_and_resume_lets_it_go_on(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.pair()
            asked: list[int] = []
            room = False

            def sink(_peer: str, header: BulkHeader) -> memoryview | Verdict:
                asked.append(header.index)
                return memoryview(bytearray(header.length)) if room else PAUSE

            b.sink = sink
            for i in range(40):
                send(a, b, i, MIB)
            await eventually(lambda: len(asked) == 2, "one question per lane")
            a.transport.send_control(b.id, b"control goes on")
            await eventually(lambda: b.control)
            assert a.transport.queued_bytes(b.id) > 0
            b.transport.resume_bulk()
            await eventually(lambda: len(asked) == 4, "asked again, and paused again")
            assert b.bulk == []
            room = True
            b.transport.resume_bulk()
            await eventually(lambda: got(b, range(40), MIB))
            assert a.transport.queued_bytes(b.id) == 0

    run(test())


def test_discarded_frames_are_confirmed_too() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair()
            b.sink = lambda _peer, h: DISCARD if h.index % 2 else memoryview(bytearray(h.length))
            sent: list[int] = []
            for i in range(10):
                send(a, b, i, MIB, lambda i=i: sent.append(i))  # type: ignore[misc]
            await eventually(lambda: sorted(sent) == list(range(10)))
            assert got(b, [0, 2, 4, 6, 8], MIB)

    run(test())


def test_drop_bulk_and_urgent_frames() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair(TransportConfig(lanes=1))
            b.sink = lambda _peer, _header: PAUSE
            for i in range(30):
                send(a, b, i, MIB)
            await eventually(lambda: 0 < a.transport.queued_bytes(b.id) < 29 * MIB, "the kernel's buffers are full")
            dropped = a.transport.drop_bulk(lambda h: h.index >= 20)
            assert dropped == 10
            a.transport.send_bulk(b.id, BulkHeader(kind=1, index=99), pattern(99, MIB), urgent=True)
            b.sink = lambda _peer, h: memoryview(bytearray(h.length))
            b.transport.resume_bulk()
            await eventually(lambda: len(b.bulk) == 21)
            order = [h.index for _, h, _ in b.bulk]
            assert sorted(order) == [*range(20), 99]
            assert order.index(99) < 19, "it overtook those that were still queued"
            assert [i for i in order if i != 99] == list(range(20)), "one lane keeps the order"
            assert a.transport.links()[b.id].kinds_out == {1: 21 * MIB}, "what was dropped was never sent"

    run(test())


@pytest.mark.parametrize("time", range(5))
def test_both_dial_at_once_and_one_link_results(parties: Path | None, time: int) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.end("a"), await w.end("b")
            first, second = (a, b) if time % 2 else (b, a)
            first.transport.connect(second.info)
            second.transport.connect(first.info)
            await eventually(lambda: a.linked(b) and b.linked(a))
            send(a, b, 1, MIB)
            send(b, a, 1, MIB)
            await eventually(lambda: got(a, [1], MIB) and got(b, [1], MIB))
            assert len(a.ups) == len(b.ups) == 1, (a.history, b.history)
            assert a.downs == b.downs == []
            assert a.refusals == b.refusals == []

    run(test())


@pytest.mark.parametrize("dialer", ["a", "b"])
def test_first_contact_while_the_other_end_dials_too(parties: Path | None, dialer: str) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.end("a"), await w.end("b")
            x, y = (a, b) if dialer == "a" else (b, a)
            y.transport.connect(x.info)
            info = await x.transport.dial(y.address)
            assert info.id == y.id
            await eventually(lambda: x.linked(y) and y.linked(x))

    run(test())


def test_comes_back_after_the_control_connection_broke(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.end("a"), await w.end("b")
            cable = await w.cable(b)
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and b.linked(a))
            cable.cut(0)
            await eventually(lambda: a.downs and b.downs)
            assert a.downs[0][0] == b.id
            assert "connection" in a.downs[0][1]
            await eventually(lambda: len(a.ups) == 2 and len(b.ups) == 2)
            assert a.history == ["up b run", f"down {b.id}", "up b run"]
            assert b.history == ["up a run", f"down {a.id}", "up a run"]
            send(a, b, 5, MIB)
            await eventually(lambda: got(b, [5], MIB))

    run(test())


def test_what_trickles_in_arrives_whole_and_wakes_the_reader_seldom(
    parties: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a slow link, which brings packets one by one."""
    sizes = [MIB, 70_001, 3, 0, 17_000, MIB + 5]
    reads: list[int] = []
    read = FrameReceiver.run

    def counted(receiver: FrameReceiver) -> Halt:
        before = receiver.nbytes
        halt = read(receiver)
        reads.append(receiver.nbytes - before)
        return halt

    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.end("a"), await w.end("b")
            cable = await w.cable(b)
            cable.piece = 1448
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and b.linked(a))
            monkeypatch.setattr(FrameReceiver, "run", counted)
            for number, size in enumerate(sizes):
                send(a, b, number, size)
            await eventually(lambda: len(b.bulk) == len(sizes))
            assert sorted((h.index, p) for _, h, p in b.bulk) == [(i, pattern(i, size)) for i, size in enumerate(sizes)]

    run(test())
    packets = sum(sizes) / 1448
    assert len(reads) < packets / 8, f"{len(reads)} times, for {packets:.0f} packets"


@pytest.mark.parametrize("number", [1, 2])
def test_frames_survive_a_broken_lane(parties: Path | None, number: int) -> None:
    """The cut hits frames in kernel buffers, a frame half sent, and frames read by nobody yet, in both directions."""

    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.end("a"), await w.end("b")
            cable = await w.cable(b)
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and a.transport.links()[b.id].lanes == 2)
            sent: list[int] = []
            for i in range(60):
                send(a, b, i, MIB, lambda i=i: sent.append(i))  # type: ignore[misc]
                send(b, a, i, MIB)
            await eventually(lambda: cable.carried[number] > 3 * MIB)
            cable.cut(number)
            await eventually(lambda: len(a.bulk) >= 60 and len(b.bulk) >= 60)
            assert got(a, range(60), MIB)
            assert got(b, range(60), MIB)
            await eventually(lambda: sorted(sent) == list(range(60)))
            await eventually(lambda: a.transport.links()[b.id].lanes == 2, "the lane was dialed again")
            assert a.downs == b.downs == []

    run(test())


def test_all_lanes_break_again_and_again() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.end("a"), await w.end("b")
            cable = await w.cable(b)
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and b.linked(a))
            for i in range(200):
                send(a, b, i, MIB // 4)
            for _ in range(5):
                await eventually(lambda: a.transport.links()[b.id].lanes == 2)
                for number in range(1, cable.count):
                    cable.cut(number)
            await eventually(lambda: len(b.bulk) >= 200)
            assert got(b, range(200), MIB // 4)
            assert a.downs == b.downs == []

    run(test())


def test_a_sink_is_told_of_the_frame_that_broke_off() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.end("a"), await w.end("b")
            cable = await w.cable(b)
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and b.linked(a))
            begun: list[int] = []

            def sink(_peer: str, header: BulkHeader) -> memoryview:
                begun.append(header.index)
                if len(begun) == 1:
                    cable.cut_all()
                return memoryview(bytearray(header.length))

            b.sink = sink
            send(a, b, 3, 16 * MIB)
            await eventually(lambda: b.aborted)
            assert [h.index for h in b.aborted] == [3]
            assert begun == [3]

    run(test())


def test_no_lane_for_long_takes_the_link_down() -> None:
    async def test() -> None:
        config = TransportConfig(lane_gap_s=0.2, backoff_first_s=0.02)
        async with world() as w:
            a, b = await w.end("a", config=config), await w.end("b", config=config)
            cable = await w.cable(b)
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and a.transport.links()[b.id].lanes == 2)
            cable.closed_to_new = True
            cable.cut(1)
            cable.cut(2)
            await eventually(lambda: a.downs and b.downs)
            assert "no bulk connection" in a.downs[0][1]

    run(test())


def test_new_incarnation_replaces_the_old_link(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.pair()
            reborn = await w.end("b", incarnation=2)
            reborn.transport.connect(a.info)
            await eventually(lambda: len(a.ups) == 2)
            assert a.history == ["up b run", f"down {b.id}", "up b run"]
            assert a.ups[1].incarnation == 2
            assert "incarnation 2" in a.downs[0][1]
            await eventually(lambda: b.refusals or b.downs)

    run(test())


def test_older_incarnation_is_refused(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, new = await w.end("a"), await w.end("b", incarnation=2)
            await new.transport.dial(a.address)
            old = await w.end("b", incarnation=1)
            with pytest.raises(Refused, match="incarnation 1 of peer b is older than 2"):
                await old.transport.dial(a.address)
            assert a.linked(new)
            assert a.downs == []

    run(test())


@pytest.mark.parametrize("last_words", [b"", encode_greeting(Goodbye("I think not")), bytes(100)])
def test_a_dialer_that_gives_up_leaves_no_half_link(last_words: bytes) -> None:
    """Else its peer could not be dialed until the half link times out; and giving up is no misbehaviour."""

    async def test() -> None:
        async with world() as w:
            a, b = await w.end("a", config=TransportConfig(handshake_timeout_s=1000)), await w.end("b")
            stranger, _ = await Stranger.greet(a, hello_of(b.info, "control"))
            stranger.write(last_words)
            if not last_words:
                stranger.close()
            await eventually(lambda: not a.transport._shared.roster.links)
            assert a.transport.counters["misbehaved"] == 0
            stranger.close()
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b) and b.linked(a))

    run(test())


def test_disconnect_says_why_and_dials_no_more() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.pair()
            a.transport.disconnect(b.id, "the operator cut it")
            assert a.downs == [(b.id, "the operator cut it")]
            await eventually(lambda: b.downs)
            assert b.downs == [(a.id, "the peer closed the link: the operator cut it")]
            assert not a.transport.send_control(b.id, b"x")
            assert not a.transport.send_bulk(b.id, BulkHeader(kind=1), b"x")
            assert (a.transport.counters["control_unroutable"], a.transport.counters["bulk_unroutable"]) == (1, 1)
            assert a.transport.links() == {}

    run(test())


def test_addresses_are_tried_in_order_and_complaints_come_once() -> None:
    async def test() -> None:
        async with world() as w:
            a, b = await w.end("a"), await w.end("b")
            dead = await w.end("c")
            await dead.transport.close()
            right = b.info
            b.set_addresses((dead.address, dead.address.replace("127.0.0.1", "127.0.0.2")))
            a.transport.connect(b.info)
            await eventually(lambda: len(a.refusals) == 2)
            assert [address for address, _ in a.refusals] == list(b.info.addresses)
            assert "nobody listens" in a.refusals[0][1]
            b.set_addresses((dead.address, *right.addresses))
            a.transport.connect(b.info)
            await eventually(lambda: a.linked(b))
            assert len(a.refusals) == 3, "the dead address once more, as the addresses are new"

    run(test())


def test_first_contact_learns_the_run(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            member, joiner = await w.end("a", run_id="alpha"), await w.end("b", run_id="")
            info = await joiner.transport.dial(member.address)
            assert info == member.info
            assert joiner.transport.run_id == "alpha"
            await eventually(lambda: joiner.ups and member.ups)
            assert joiner.history == ["up a alpha"]

    run(test())


@pytest.mark.parametrize("way", ["dial", "connect"])
def test_wrong_run_gets_the_reason(parties: Path | None, way: str) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.end("a", run_id="alpha"), await w.end("b", run_id="beta")
            reason = f"{a.address} refuses: peer a takes part in run 'alpha', not 'beta': use the address of a member"
            if way == "dial":
                with pytest.raises(Refused) as error:
                    await b.transport.dial(a.address)
                assert str(error.value).startswith(reason)
            else:
                b.transport.connect(a.info)
                await eventually(lambda: b.refusals)
                assert b.refusals[0][0] == a.address
                assert b.refusals[0][1].startswith(reason)
            assert a.ups == b.ups == []

    run(test())


def test_address_that_leads_to_somebody_else(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b, c = await w.end("a"), await w.end("b"), await w.end("c")
            b.set_addresses((c.address,))
            a.transport.connect(b.info)
            await eventually(lambda: a.refusals)
            assert c.id in a.refusals[0][1]
            assert b.id in a.refusals[0][1]
            assert c.ups == []

    run(test())


def test_an_answer_of_somebody_else() -> None:
    """He claims to be another peer than the one that was dialed, and has not looked at whom we meant."""

    async def test() -> None:
        async with world() as w:
            a, b = await w.end("a"), await w.end("b")

            async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read(1000)
                writer.write(encode_greeting(hello_of(plain_info("z"), "control")))
                await reader.read()
                writer.close()

            server = await asyncio.start_server(impostor, "127.0.0.1", 0)
            b.set_addresses((f"127.0.0.1:{server.sockets[0].getsockname()[1]}",))
            a.transport.connect(b.info)
            await eventually(lambda: a.refusals)
            assert f"answers, not {b.id}" in a.refusals[0][1]
            assert a.ups == []
            server.close()

    run(test())


def test_own_address(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a = await w.end("a")
            with pytest.raises(ChaosError, match="itself"):
                await a.transport.dial(a.address)

    run(test())


def test_nobody_and_nothing_there() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a", config=TransportConfig(handshake_timeout_s=0.1))
            dead = await w.end("b")
            await dead.transport.close()
            with pytest.raises(DialFailed, match=f"nobody listens at {dead.address}: start the agent"):
                await a.transport.dial(dead.address)

            async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                mute.append(writer)

            mute: list[asyncio.StreamWriter] = []
            server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(DialFailed, match=r"accepts connections but does not answer within 0[.]1 s"):
                await a.transport.dial(f"127.0.0.1:{port}")
            server.close()
            for writer in mute:
                writer.transport.abort()

    run(test())


def test_something_else_listens(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a = await w.end("a")

            async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read(10)
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                writer.close()

            server = await asyncio.start_server(web, "127.0.0.1", 0)
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(Refused, match="chaos agent"):
                await a.transport.dial(address)
            server.close()

    run(test())


def test_port_in_use() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")
            port = a.address.rsplit(":", 1)[1]
            rival = Transport(a.info, "run", ["127.0.0.1:0", a.address], PlainSecurity(), a)
            with pytest.raises(ChaosError, match=f"port {port} of 127.0.0.1 is in use: choose .* --listen"):
                await rival.start()
            await rival.close()
            stray = Transport(a.info, "run", ["192.0.2.1:0"], PlainSecurity(), a)
            with pytest.raises(ChaosError, match=r"192\.0\.2\.1 is not an address of this machine.*--listen"):
                await stray.start()
            await stray.close()

    run(test())


def test_measurements(parties: Path | None) -> None:
    async def test() -> None:
        async with world(parties) as w:
            a, b = await w.pair(TransportConfig(ping_interval_s=0.01))
            for i in range(20):
                send(a, b, i, MIB)
            await eventually(lambda: len(b.bulk) == 20)
            await eventually(lambda: a.transport.links()[b.id].rtt_s > 0)
            info = a.transport.links()[b.id]
            assert info.rtt_s < LIMIT_S
            assert info.bulk_out >= 20 * (MIB + 64)
            assert b.transport.links()[a.id].bulk_in == info.bulk_out
            assert info.control_out > 0
            assert info.address == b.address
            assert 0 < info.since <= asyncio.get_running_loop().time()

    run(test())
