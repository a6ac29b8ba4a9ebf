"""The control connection of a link: small frames, in order, bounded queue, sent at once when the socket has room."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from chaos.agent.transport.frames import ControlFrame, ControlReader
from chaos.agent.transport.streams import ConnectionLost, Stream
from chaos.core.errors import RemoteProtocolError

READ_BUDGET = 256 * 1024
"""Bytes per turn of the event loop, so that a peer that floods delays the others by below a millisecond."""
_scratch = memoryview(bytearray(64 * 1024))
"""One for all connections of the event loop's thread: what is read is taken from it at once."""
_JOIN = 64 * 1024
"""Queued frames are put together into pieces of about this size before they are sent."""


class ControlConnection:
    """Owns the stream. After `on_lost` or `close` it calls back no more.

    `on_frame` gets every frame and may raise RemoteProtocolError. `on_lost(reason, misbehaved)` is called once, from
    the event loop: the connection broke, or what came is not allowed. It is never called from within `send`.
    """

    def __init__(
        self,
        stream: Stream,
        on_frame: Callable[[ControlFrame], None],
        on_lost: Callable[[str, bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._fd = stream.sock.fileno()
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = ControlReader()
        self._queue: deque[bytes] = deque()
        self._piece = memoryview(b"")
        self._writing = False
        self._reading_soon = False
        self._open = True
        self._after_flush: Callable[[], None] | None = None
        self.queued = 0
        """Bytes not yet handed to the kernel."""
        self.bytes_in = 0
        self.bytes_out = 0

    def start(self) -> None:
        """Begin to receive; frames that are already here come in the next turn of the event loop."""
        self._loop.add_reader(self._fd, self._readable)
        self._read_soon()

    def send(self, data: bytes) -> None:
        """Queue an encoded frame. Nothing happens if the connection is closed or has failed."""
        if not self._open or self._after_flush is not None:
            return
        self._queue.append(data)
        self.queued += len(data)
        if not self._writing:
            self._write()

    def flush_then(self, done: Callable[[], None]) -> None:
        """Say no more, drop what comes in, and call `done` once the other end has closed too, or the connection broke.

        The caller sets the time limit, and closes.
        """
        self._after_flush = done
        self._on_lost = lambda _reason, _misbehaved: done()
        if not self._open:
            self._loop.call_soon(done)
        elif not self._writing:
            self._loop.call_soon(self._write)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._stream.sock.close()

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
        taken = 0
        try:
            while self._open and taken < READ_BUDGET:
                count = self._stream.recv_into(_scratch)
                if count == 0:
                    break
                taken += count
                if self._after_flush is None:
                    self._deliver(_scratch[:count])
                if count < len(_scratch):
                    break  # most likely the socket is empty; if not, the event loop says so
            if self._open and not self._stream.flush():  # TLS may answer what it reads
                self._await_writable()
        except ConnectionLost as error:
            self._fail(str(error), False)
        except RemoteProtocolError as error:
            self._fail(str(error), True)
        self.bytes_in += taken
        if self._open and self._stream.buffered():
            self._read_soon()

    def _deliver(self, data: memoryview) -> None:
        for frame in self._reader.feed(data):
            if self._open and self._after_flush is None:
                self._on_frame(frame)

    def _write(self) -> None:
        if not self._open:
            return
        try:
            blocked = self._drain()
        except ConnectionLost as error:
            self._loop.call_soon(self._fail, str(error), False)
            self._queue.clear()
            blocked = False
        if blocked:
            self._await_writable()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)
        if self._after_flush is not None:
            self._half_close()

    def _drain(self) -> bool:
        """Sends until all is sent (False) or the socket is full (True)."""
        while self._piece or self._queue:
            if not self._piece:
                self._piece = memoryview(self._next_piece())
            count = self._stream.send(self._piece)
            if count == 0:
                return True
            self._piece = self._piece[count:]
            self.queued -= count
            self.bytes_out += count
        return not self._stream.flush()

    def _next_piece(self) -> bytes:
        first = self._queue.popleft()
        if not self._queue or len(first) >= _JOIN:
            return first
        joined = bytearray(first)
        while self._queue and len(joined) + len(self._queue[0]) <= _JOIN:
            joined += self._queue.popleft()
        return bytes(joined)

    def _await_writable(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._write)

    def _half_close(self) -> None:
        try:
            self._stream.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._fail("gone", False)

    def _fail(self, reason: str, misbehaved: bool) -> None:
        if self._open:
            self.close()
            self._on_lost(reason, misbehaved)
