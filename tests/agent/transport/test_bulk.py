"""Both directions of a bulk connection on a scripted stream: buffers, pauses, confirmations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.agent.transport.bulk import DISCARD, PAUSE, FrameReceiver, FrameSender, Halt, OutFrame, Verdict
from chaos.agent.transport.frames import BulkHeader, decode_bulk, encode_bulk
from chaos.core.errors import RemoteProtocolError

Sink = Callable[[BulkHeader], memoryview | Verdict]


class Script:
    """A stream that gives and takes as many bytes per call as the script says, then nothing."""

    def __init__(self, incoming: bytes = b"", counts: list[int] | None = None, slice_bytes: int = 100) -> None:
        self.incoming = memoryview(incoming)
        self.outgoing = bytearray()
        self.counts = list(counts) if counts is not None else None
        self.slice = slice_bytes
        self.offered: list[int] = []
        self.holds = False

    def recv_into(self, view: memoryview) -> int:
        count = min(self._next(len(view)), len(view), len(self.incoming))
        view[:count] = self.incoming[:count]
        self.incoming = self.incoming[count:]
        return count

    def send(self, view: memoryview) -> int:
        self.offered.append(len(view))
        count = min(self._next(len(view)), len(view))
        self.outgoing += view[:count]
        return count

    def flush(self) -> bool:
        return not self.holds

    def buffered(self) -> bool:
        return False

    def _next(self, most: int) -> int:
        if self.counts is None:
            return most
        return self.counts.pop(0) if self.counts else 0


class Taker:
    """A sink that keeps what it gets."""

    def __init__(self, give: Sink = lambda header: memoryview(bytearray(header.length))) -> None:
        self.give = give
        self.asked: list[int] = []
        self.taken: list[tuple[int, bytes]] = []

    def begin(self, header: BulkHeader) -> memoryview | Verdict:
        self.asked.append(header.index)
        return self.give(header)

    def done(self, header: BulkHeader, payload: memoryview) -> None:
        self.taken.append((header.index, bytes(payload)))


def wire(*payloads: bytes) -> bytes:
    return b"".join(encode_bulk(BulkHeader(kind=1, index=i, length=len(p))) + p for i, p in enumerate(payloads))


payloads = st.lists(st.binary(max_size=400), max_size=6)
counts = st.lists(st.integers(1, 200), min_size=100, max_size=100)


@given(payloads, counts)
def test_receives_any_frames_in_any_pieces(sent: list[bytes], pieces: list[int]) -> None:
    stream, sink = Script(wire(*sent), pieces), Taker()
    receiver = FrameReceiver(stream, sink, budget=10**6)  # type: ignore[arg-type]
    while stream.incoming and stream.counts:
        receiver.run()
    stream.counts = None
    assert receiver.run() is Halt.SOCKET
    assert sink.taken == list(enumerate(sent))
    assert receiver.frames == len(sent)
    assert receiver.nbytes == len(wire(*sent))
    assert not receiver.amid


@given(payloads, st.lists(st.integers(0, 200), max_size=60))
def test_sends_any_frames_in_any_pieces(sent: list[bytes], pieces: list[int]) -> None:
    queue = [OutFrame(BulkHeader(kind=1, index=i, length=len(p)), p, None) for i, p in enumerate(sent)]
    stream = Script(counts=pieces)
    sender = FrameSender(stream, lambda: queue.pop(0) if queue else None, budget=10**6)  # type: ignore[arg-type]
    while stream.counts and sender.run() is Halt.SOCKET:
        pass
    stream.counts = None
    assert sender.run() is Halt.EMPTY
    assert bytes(stream.outgoing) == wire(*sent)
    assert sender.sent == len(sent)
    assert sender.backlog == 0
    assert [frame.header.index for frame in sender.confirm(len(sent))] == list(range(len(sent)))


def test_payload_lands_in_the_buffer_of_the_sink() -> None:
    buffer = bytearray(8)
    receiver = FrameReceiver(Script(wire(b"12345")), Taker(lambda _: memoryview(buffer)[1:6]), 10**6)  # type: ignore[arg-type]
    receiver.run()
    assert bytes(buffer) == b"\x0012345\0\0"


def test_budget_bounds_one_run() -> None:
    stream = Script(wire(bytes(1000)))
    receiver = FrameReceiver(stream, Taker(), budget=300)  # type: ignore[arg-type]
    assert receiver.run() is Halt.BUDGET
    assert receiver.nbytes == 300
    frame = OutFrame(BulkHeader(kind=1, length=20000), bytes(20000), None)
    queue = [frame, frame]
    out = Script()
    sender = FrameSender(out, lambda: queue.pop() if queue else None, budget=16384 + 300)  # type: ignore[arg-type]
    assert sender.run() is Halt.BUDGET
    assert len(out.outgoing) == 16384 + 300


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_discard_skips_exactly_the_payload(size: int) -> None:
    sink = Taker(lambda h: DISCARD if h.index == 0 else memoryview(bytearray(h.length)))
    receiver = FrameReceiver(Script(wire(bytes(size), b"kept")), sink, 10**6)  # type: ignore[arg-type]
    receiver.run()
    assert sink.taken == [(1, b"kept")]
    assert receiver.frames == 2


def test_pause_holds_the_header_until_asked_again() -> None:
    room = False
    sink = Taker(lambda h: memoryview(bytearray(h.length)) if room else PAUSE)
    stream = Script(wire(b"one", b"two"))
    receiver = FrameReceiver(stream, sink, 10**6)  # type: ignore[arg-type]
    assert receiver.run() is Halt.PAUSED
    assert (receiver.paused, receiver.amid, sink.asked) == (True, False, [0])
    receiver.ask_again()
    assert receiver.paused
    room = True
    receiver.ask_again()
    receiver.run()
    assert sink.taken == [(0, b"one"), (1, b"two")]
    assert sink.asked == [0, 0, 0, 1]


def test_a_buffer_of_the_wrong_size_is_the_callers_error() -> None:
    receiver = FrameReceiver(Script(wire(b"12345")), Taker(lambda _: memoryview(bytearray(4))), 10**6)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gave 4 bytes for a payload of 5"):
        receiver.run()


def test_bad_header_in_the_stream() -> None:
    receiver = FrameReceiver(Script(wire(b"good") + bytes(64)), Taker(), 10**6)  # type: ignore[arg-type]
    with pytest.raises(RemoteProtocolError):
        receiver.run()
    assert receiver.frames == 1


def test_what_a_broken_connection_leaves_to_send_again() -> None:
    sent = [OutFrame(BulkHeader(kind=1, index=i, length=50_000), bytes(50_000), None) for i in range(5)]
    queue = list(sent)
    sender = FrameSender(Script(), lambda: queue.pop(0) if queue else None, budget=2 * 50_064 + 20_000)  # type: ignore[arg-type]
    sender.run()
    assert sender.sent == 2
    assert sender.confirm(1) == sent[:1]
    assert sender.unfinished() == sent[1:3]
    assert queue == sent[3:]
    assert sender.backlog == 0


def test_a_frame_counts_as_sent_when_its_last_byte_is_taken() -> None:
    """The budget ends a run exactly at a frame's end; the receiver's confirmation must not come as a surprise."""
    queue = [OutFrame(BulkHeader(kind=1, length=36), bytes(36), None)]
    sender = FrameSender(Script(), lambda: queue.pop() if queue else None, budget=100)  # type: ignore[arg-type]
    assert sender.run() is Halt.BUDGET
    assert len(sender.confirm(1)) == 1


def test_bytes_that_the_stream_holds_back_keep_the_sender_at_it() -> None:
    stream, queue = Script(), [OutFrame(BulkHeader(kind=1), b"", None)]
    sender = FrameSender(stream, lambda: queue.pop() if queue else None, budget=1000)  # type: ignore[arg-type]
    stream.holds = True
    assert sender.run() is Halt.SOCKET
    stream.holds = False
    assert sender.run() is Halt.EMPTY


@pytest.mark.parametrize("count", [0, 3])
def test_impossible_confirmations(count: int) -> None:
    queue = [OutFrame(BulkHeader(kind=1), b"", None) for _ in range(2)]
    sender = FrameSender(Script(), lambda: queue.pop() if queue else None, budget=1000)  # type: ignore[arg-type]
    sender.run()
    sender.confirm(1)
    with pytest.raises(ValueError, match="frames confirmed where 1 to 2 can be"):
        sender.confirm(count)


def test_header_and_first_payload_fill_one_tls_record() -> None:
    stream = Script(slice_bytes=2**18)
    queue = [OutFrame(BulkHeader(kind=1, length=10**6), bytes(10**6), None)]
    sender = FrameSender(stream, lambda: queue.pop() if queue else None, budget=10**7)  # type: ignore[arg-type]
    sender.run()
    assert stream.offered[:3] == [2**14, 2**18, 2**18]
    assert decode_bulk(bytes(stream.outgoing[:64])).length == 10**6
