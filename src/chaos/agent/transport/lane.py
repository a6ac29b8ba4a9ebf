"""One bulk connection of a link, driven by the event loop."""

from __future__ import annotations

import asyncio
from typing import Protocol

from chaos.agent.transport.bulk import FrameReceiver, FrameSender, Halt, OutFrame, Verdict
from chaos.agent.transport.config import TransportConfig
from chaos.agent.transport.frames import BulkHeader
from chaos.agent.transport.rate import BusyMeter
from chaos.agent.transport.streams import ConnectionLost, PlainStream, Stream, pace
from chaos.core.errors import RemoteProtocolError


class LaneOwner(Protocol):
    """What a lane asks of its link. The first two may raise RemoteProtocolError."""

    meter: BusyMeter

    def bulk_begins(self, header: BulkHeader) -> memoryview | Verdict: ...

    def bulk_done(self, header: BulkHeader, payload: memoryview) -> None: ...

    def next_frame(self) -> OutFrame | None:
        """The frame to send next; it is this lane's from now on."""

    def lane_read(self, nbytes: int) -> None:
        """So many bytes have come."""

    def lane_wrote(self) -> None:
        """The lane has sent something, and may be busy now where it was not."""

    def lane_broken(self, lane: Lane, reason: str, misbehaved: bool) -> None:
        """The lane has closed itself."""


class Lane:
    """Owns the stream. After `close` it calls its owner no more. `local`: both ends are on one host."""

    def __init__(
        self, stream: Stream, index: int, serial: int, local: bool, owner: LaneOwner, config: TransportConfig
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._fd = stream.sock.fileno()
        self._owner = owner
        budget = config.plain_budget if isinstance(stream, PlainStream) else config.tls_budget
        self._receiver = FrameReceiver(stream, self, budget)
        self.sender = FrameSender(stream, owner.next_frame, budget)
        self._open = True
        self._watching_read = False
        self._watching_write = False
        self._woken = False
        self._reading_soon = False
        self._metered = False
        """The meter takes this lane to be amid a frame."""
        self.index = index
        self.serial = serial
        self.local = local

    @property
    def received(self) -> int:
        """Whole frames received."""
        return self._receiver.frames

    @property
    def busy(self) -> bool:
        """Something that it was given to send has not been confirmed."""
        return self.sender.sent > self.sender.confirmed or self.sender.backlog > 0

    @property
    def bytes_in(self) -> int:
        return self._receiver.nbytes

    @property
    def unfinished(self) -> tuple[BulkHeader, memoryview] | None:
        """The frame for which a buffer was given that is not full, and the buffer."""
        return self._receiver.unfinished

    def start(self) -> None:
        """Begin to receive, and to send if there are frames; both in the next turn of the event loop."""
        self._watch_read(True)
        self._read_soon()
        self.wake()

    def wake(self) -> None:
        """There may be something to send."""
        if self._open and not self._watching_write and not self._woken:
            self._woken = True
            self._loop.call_soon(self._write)

    def resume(self) -> None:
        """If the sink had said PAUSE: ask it again."""
        if not self._open or not self._receiver.paused:
            return
        try:
            self._receiver.ask_again()
        except RemoteProtocolError as error:
            self._break(str(error), True)
            return
        if self._open and not self._receiver.paused:
            self._meter(0)
            self._watch_read(True)
            self._read_soon()

    def pace(self, bytes_per_s: int | None) -> None:
        if self._open:
            pace(self._stream.sock, bytes_per_s)

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._receiver.stopped = True
        self._owner.meter.note(self._loop.time(), 0, self._metered, False)
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._stream.sock.close()

    def begin(self, header: BulkHeader) -> memoryview | Verdict:
        return self._owner.bulk_begins(header)

    def done(self, header: BulkHeader, payload: memoryview) -> None:
        self._owner.bulk_done(header, payload)

    def _read_soon(self) -> None:
        """Read in the next turn, whether or not the socket has something: bytes may wait in the stream."""
        if not self._reading_soon:
            self._reading_soon = True
            self._loop.call_soon(self._read)

    def _readable(self) -> None:
        if not self._reading_soon:  # else this turn would have two budgets
            self._read()

    def _read(self) -> None:
        self._reading_soon = False
        receiver = self._receiver
        if not self._open or receiver.paused:
            return
        count = receiver.nbytes
        try:
            halt = receiver.run()
            if self._open and not self._stream.flush():  # TLS may answer what it reads
                self._watch_write(True)
        except ConnectionLost as error:
            self._break(str(error), False)
            return
        except RemoteProtocolError as error:
            self._break(str(error), True)
            return
        if not self._open:
            return
        count = receiver.nbytes - count
        self._meter(count)
        self._owner.lane_read(count)
        if not self._open:
            return
        self._stream.expect(receiver.missing)
        if halt is Halt.PAUSED:
            self._watch_read(False)
        elif halt is Halt.BUDGET and self._stream.buffered():
            self._read_soon()

    def _write(self) -> None:
        self._woken = False
        if not self._open:
            return
        try:
            halt = self.sender.run()
        except ConnectionLost as error:
            self._break(str(error), False)
            return
        self._watch_write(halt is not Halt.EMPTY)
        self._owner.lane_wrote()

    def _meter(self, nbytes: int) -> None:
        amid = self._receiver.amid
        self._owner.meter.note(self._loop.time(), nbytes, self._metered, amid)
        self._metered = amid

    def _break(self, reason: str, misbehaved: bool) -> None:
        if self._open:
            self.close()
            self._owner.lane_broken(self, reason, misbehaved)

    def _watch_read(self, wanted: bool) -> None:
        if wanted and not self._watching_read:
            self._loop.add_reader(self._fd, self._readable)
        elif self._watching_read and not wanted:
            self._loop.remove_reader(self._fd)
        self._watching_read = wanted

    def _watch_write(self, wanted: bool) -> None:
        if wanted and not self._watching_write:
            self._loop.add_writer(self._fd, self._write)
        elif self._watching_write and not wanted:
            self._loop.remove_writer(self._fd)
        self._watching_write = wanted
