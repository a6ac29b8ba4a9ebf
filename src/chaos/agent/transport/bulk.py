"""The two directions of a bulk connection, without the event loop: `run` moves bytes until it has to stop."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import Protocol

from chaos.agent.transport.frames import BULK_HEADER_SIZE, BulkHeader, decode_bulk, encode_bulk
from chaos.agent.transport.streams import Stream

Bytes = bytes | bytearray | memoryview


class Verdict(enum.Enum):
    """What a sink may answer instead of a buffer."""

    DISCARD = "read the payload and drop it"
    PAUSE = "stop reading this connection and ask again later"


DISCARD = Verdict.DISCARD
PAUSE = Verdict.PAUSE


class Halt(enum.Enum):
    """Why `run` returned."""

    SOCKET = "the socket has no more bytes, or no more room"
    BUDGET = "enough for this turn of the event loop"
    PAUSED = "the sink has no room for the next payload"
    EMPTY = "nothing is left to send"


class Sink(Protocol):
    """Takes what a connection receives. Both may raise RemoteProtocolError."""

    def begin(self, header: BulkHeader) -> memoryview | Verdict:
        """A writable buffer of exactly `header.length` bytes, or a verdict."""

    def done(self, header: BulkHeader, payload: memoryview) -> None:
        """The buffer that `begin` gave is complete."""


_DISCARDED = memoryview(bytearray(256 * 1024))
"""Where dropped payloads go; shared, as nobody reads it."""


class FrameReceiver:
    """Reads headers, and payloads straight into the sink's buffers."""

    def __init__(self, stream: Stream, sink: Sink, budget: int) -> None:
        self._stream = stream
        self._sink = sink
        self._budget = budget
        self._head = memoryview(bytearray(BULK_HEADER_SIZE))
        self._rest = self._head
        """What is still to be filled of the header, of the payload, or of the piece that is dropped."""
        self._header: BulkHeader | None = None
        self._target: memoryview | None = None
        self._to_drop = 0
        """Bytes to drop besides the present piece."""
        self.frames = 0
        """Whole frames received or dropped."""
        self.nbytes = 0
        self.paused = False
        self.stopped = False
        """Set from outside, also by a sink in the middle of `run`: read no more."""

    @property
    def amid(self) -> bool:
        """A frame is incomplete, and the sink does not hold it up."""
        return self._header is not None and not self.paused

    @property
    def missing(self) -> int:
        """Bytes still to come of the present header or payload."""
        return len(self._rest) + self._to_drop

    @property
    def unfinished(self) -> tuple[BulkHeader, memoryview] | None:
        """The frame for which the sink has given a buffer that is not full yet, and the buffer."""
        return (self._header, self._target) if self._header and self._target is not None else None

    def run(self) -> Halt:
        """Raises ConnectionLost, or RemoteProtocolError for a bad header or by the sink."""
        left = self._budget
        recv_into = self._stream.recv_into
        while left > 0:
            if self.stopped:
                return Halt.SOCKET
            rest = self._rest
            count = recv_into(rest if len(rest) <= left else rest[:left])
            if count == 0:
                return Halt.SOCKET
            left -= count
            self.nbytes += count
            if count < len(rest):
                self._rest = rest[count:]
            else:
                self._filled()
                if self.paused:
                    return Halt.PAUSED
        return Halt.BUDGET

    def ask_again(self) -> None:
        """After a pause: offer the header to the sink once more."""
        if self.paused and self._header is not None:
            self.paused = False
            self._begin(self._header)

    def _filled(self) -> None:
        if self._header is None:
            self._begin(decode_bulk(self._head))
        elif self._target is not None:
            self._finish(self._header, self._target)
        else:
            self._drop()

    def _begin(self, header: BulkHeader) -> None:
        self._header = header
        given = self._sink.begin(header)
        if given is PAUSE:
            self.paused = True
        elif isinstance(given, memoryview):
            if given.nbytes != header.length:
                raise ValueError(f"the sink gave {given.nbytes} bytes for a payload of {header.length}")
            self._target = self._rest = given
            if header.length == 0:
                self._finish(header, given)
        else:
            self._to_drop = header.length
            self._drop()

    def _drop(self) -> None:
        """Begin the next piece to be dropped, or end the frame."""
        self._rest = _DISCARDED[: self._to_drop]
        self._to_drop -= len(self._rest)
        if not self._rest:
            self._next()

    def _finish(self, header: BulkHeader, target: memoryview) -> None:
        self._next()
        self._sink.done(header, target)

    def _next(self) -> None:
        self._header = self._target = None
        self._rest = self._head
        self.frames += 1


class OutFrame:
    """A frame to be sent. `on_sent` is called when the next hop has confirmed it."""

    __slots__ = ("header", "on_sent", "payload", "urgent")

    def __init__(
        self, header: BulkHeader, payload: Bytes, on_sent: Callable[[], None] | None, urgent: bool = False
    ) -> None:
        self.header = header
        view = memoryview(payload)
        self.payload = view.cast("B") if view.nbytes else memoryview(b"")
        self.on_sent = on_sent
        self.urgent = urgent


_FIRST = 16384 - BULK_HEADER_SIZE
"""Payload bytes copied behind the header, so that both leave in one full TLS record (16 KiB)."""


class FrameSender:
    """Writes frames one after the other, as `pull` gives them, and keeps those that are not confirmed."""

    def __init__(self, stream: Stream, pull: Callable[[], OutFrame | None], budget: int) -> None:
        self._stream = stream
        self._pull = pull
        self._budget = budget
        self._frame: OutFrame | None = None
        self._piece = memoryview(b"")
        self._offset = 0
        """Payload bytes before the end of the piece."""
        self.unconfirmed: deque[OutFrame] = deque()
        """Frames that the stream has taken, oldest first."""
        self.sent = 0
        self.confirmed = 0
        self.nbytes = 0

    @property
    def backlog(self) -> int:
        """Bytes of the present frame that the stream has not taken."""
        if self._frame is None:
            return 0
        return len(self._piece) + self._frame.header.length - self._offset

    def run(self) -> Halt:
        """Raises ConnectionLost."""
        left = self._budget
        send = self._stream.send
        while left > 0:
            piece = self._piece
            if not piece:
                if self._advance():
                    continue
                return Halt.EMPTY if self._stream.flush() else Halt.SOCKET
            count = send(piece)
            if count == 0:
                return Halt.SOCKET
            left -= count
            self.nbytes += count
            self._piece = piece[count:]
        self._retire()
        return Halt.BUDGET

    def confirm(self, frames: int) -> list[OutFrame]:
        """The frames that a total of `frames` newly confirms. Raises ValueError if more than were sent."""
        if not self.confirmed <= frames <= self.sent:
            raise ValueError(f"{frames} frames confirmed where {self.confirmed} to {self.sent} can be")
        newly = [self.unconfirmed.popleft() for _ in range(frames - self.confirmed)]
        self.confirmed = frames
        return newly

    def unfinished(self) -> list[OutFrame]:
        """Frames to send again on another connection: unconfirmed, and the present one. Empties this sender."""
        frames = list(self.unconfirmed)
        if self._frame is not None:
            frames.append(self._frame)
        self.unconfirmed.clear()
        self._frame, self._piece = None, memoryview(b"")
        return frames

    def _advance(self) -> bool:
        """The next piece of the present frame, or the first of the next frame. False: there is none."""
        frame = self._frame
        if frame is not None and self._offset < len(frame.payload):
            stop = self._offset + self._stream.slice
            self._piece = frame.payload[self._offset : stop]
            self._offset += len(self._piece)
            return True
        self._retire()
        self._frame = frame = self._pull()
        if frame is None:
            return False
        first = frame.payload[:_FIRST]
        self._piece = memoryview(b"".join((encode_bulk(frame.header), first)))
        self._offset = len(first)
        return True

    def _retire(self) -> None:
        """If the stream has taken the whole of the present frame, its confirmation may come from now on."""
        if self._frame is not None and not self._piece and self._offset == len(self._frame.payload):
            self.unconfirmed.append(self._frame)
            self.sent += 1
            self._frame = None
