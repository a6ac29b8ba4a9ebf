"""Non-blocking byte streams over a TCP socket, bare or with TLS, with one surface: bytes moved, 0 for "not now".

TLS runs over memory, not over the socket: OpenSSL alone does a system call per record of 16 KiB when it writes and
two when it reads. With a quarter of a megabyte per call, a transfer takes a quarter less processor time.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from typing import Protocol

SCRATCH_BYTES = 512 * 1024
"""Ciphertext taken from a socket at a time. Larger gains nothing, and no longer fits a processor's cache."""
HANDSHAKE_BYTES = 16 * 1024
"""The same while nobody knows who the other end is; a handshake has 2 KB."""
TLS_SLICE = 256 * 1024
"""Bytes best offered to `TlsStream.send` at a time: 0.15 ms of encryption."""
PLAIN_SLICE = 1024 * 1024
WAKE_BYTES = 64 * 1024
"""A stream that expects more is read in pieces of at least so many bytes. A slow link brings packets one by one: woken
for each, three peers spent 4.2 s of processor time on an all-reduce of 100 MB over 200 Mbit/s, instead of 2.7 s."""

RECORD_BYTES = 17 * 1024
"""Ciphertext of an incomplete record that OpenSSL may hold, at most. It does not say how much it does."""

_scratch = memoryview(bytearray(SCRATCH_BYTES))
"""One for all streams of the event loop's thread: it is emptied before `_feed` returns."""


class ConnectionLost(OSError):
    """The connection ended or broke. The message is a short reason; a TLS error is its `__cause__`."""


class LowWater:
    """How many bytes have to lie in a socket before it counts as readable. The end of the connection always does."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._now = 1

    def set(self, count: int) -> None:
        """At most `WAKE_BYTES`, at least 1."""
        wanted = max(1, min(count, WAKE_BYTES))
        if wanted != self._now:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            self._now = wanted


class Stream(Protocol):
    """A connected non-blocking socket. `recv_into`, `send` and `flush` raise ConnectionLost when it has ended."""

    @property
    def sock(self) -> socket.socket: ...

    @property
    def slice(self) -> int:
        """How many bytes to offer to `send` at a time."""

    def recv_into(self, view: memoryview) -> int:
        """Bytes received into a view that is not empty; 0: nothing there now."""

    def send(self, view: memoryview) -> int:
        """Bytes taken; 0: no room now. Some of them may wait here: see `flush`."""

    def flush(self) -> bool:
        """Gives the kernel what waits here. True: nothing waits any more."""

    def buffered(self) -> bool:
        """Received bytes wait here, of which the event loop can't know."""

    def expect(self, count: int) -> None:
        """Nothing can be done before so many more bytes are received: the event loop need not wake for fewer."""


class PlainStream:
    """A bare TCP socket."""

    slice = PLAIN_SLICE

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._wake = LowWater(sock)

    def recv_into(self, view: memoryview) -> int:
        try:
            count = self.sock.recv_into(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(describe(error)) from error
        if count == 0:
            raise ConnectionLost(_CLOSED)
        return count

    def send(self, view: memoryview) -> int:
        try:
            return self.sock.send(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(describe(error)) from error

    def flush(self) -> bool:
        return True

    def buffered(self) -> bool:
        return False

    def expect(self, count: int) -> None:
        self._wake.set(count)


class TlsStream:
    """TLS over a TCP socket."""

    slice = TLS_SLICE

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        self.sock = sock
        self._wake = LowWater(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side)
        self._unsent = memoryview(b"")
        """Ciphertext that the kernel had no room for."""

    def handshake(self) -> bool:
        """Goes on with the handshake. True when it is complete; the last of it may wait for `flush`."""
        self._feed(HANDSHAKE_BYTES)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            return False
        except ssl.SSLError as error:
            self._flush_alert()
            raise ConnectionLost(describe(error)) from error
        self.flush()
        return True

    def recv_into(self, view: memoryview) -> int:
        count = self._decrypt(view)
        if count == 0 and self._feed():
            count = self._decrypt(view)
        return count

    def send(self, view: memoryview) -> int:
        if not self.flush():
            return 0
        try:
            count = self.tls.write(view)
        except ssl.SSLError as error:
            raise ConnectionLost(describe(error)) from error
        self.flush()
        return count

    def flush(self) -> bool:
        try:
            while self._unsent or self._outgoing.pending:
                if not self._unsent:
                    self._unsent = memoryview(self._outgoing.read())
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConnectionLost(describe(error)) from error
        return True

    def buffered(self) -> bool:
        return self._incoming.pending > 0 or self.tls.pending() > 0

    def expect(self, count: int) -> None:
        self._wake.set(count - self._incoming.pending - RECORD_BYTES)

    def _decrypt(self, view: memoryview) -> int:
        """Bytes of whole records at hand. OpenSSL gives at most one record (16 KiB) per call."""
        read: Callable[[int, memoryview], int] = self.tls.read  # type: ignore[assignment]
        size, done = len(view), 0
        try:
            while done < size:
                count = read(size - done, view[done:])
                if not count:
                    raise ConnectionLost(_CLOSED)
                done += count
        except ssl.SSLWantReadError:
            return done
        except ssl.SSLError as error:
            raise ConnectionLost(describe(error)) from error
        return done

    def _feed(self, most: int = SCRATCH_BYTES) -> bool:
        """Takes ciphertext from the socket. False: there is none now."""
        try:
            count = self.sock.recv_into(_scratch, most)
        except BlockingIOError:
            return False
        except OSError as error:
            raise ConnectionLost(describe(error)) from error
        if count == 0:
            raise ConnectionLost(_CLOSED)
        self._incoming.write(_scratch[:count])
        return True

    def _flush_alert(self) -> None:
        """Tell the other end why the handshake failed, as far as the socket takes it."""
        try:
            self.flush()
        except ConnectionLost:
            self._unsent = memoryview(b"")


_CLOSED = "the other end closed the connection"


def describe(error: OSError) -> str:
    """A short reason in lower case, without numbers."""
    reason = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
    return str(reason).lower().replace("_", " ")


def tune(sock: socket.socket) -> None:
    """Non-blocking, and no delay for small messages."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def give_up_after(sock: socket.socket, seconds: float) -> None:
    """Break the connection if the other end's host acknowledges nothing, or has no room, for so long."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


SO_MAX_PACING_RATE = 47
"""From Linux's asm-generic/socket.h; the socket module does not name it."""
_UNPACED = 2**32 - 1


def pace(sock: socket.socket, bytes_per_s: int | None) -> None:
    """Let the kernel send at most so fast. None lifts the limit."""
    rate = _UNPACED if bytes_per_s is None else max(1, min(bytes_per_s, _UNPACED - 1))
    sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=I", rate))


def same_host(sock: socket.socket) -> bool:
    """True if both ends have the same IP address: no network queue lies in between. Raises OSError if it is gone."""
    return bool(sock.getsockname()[0] == sock.getpeername()[0])
