"""A connection while it is being made: connect, TLS handshake, greetings. Coroutines, not callbacks.

Nothing here blocks: a slow or hostile remote costs a socket and a timer, no thread. The steps of a TLS handshake
run in the event loop, each below a millisecond. Only host names are resolved in a thread.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from concurrent.futures import Executor
from typing import Any

from chaos.agent.transport.hello import (
    MAX_GREETING,
    PREAMBLE_SIZE,
    Greeting,
    decode_greeting,
    encode_greeting,
    greeting_length,
)
from chaos.agent.transport.streams import PlainStream, Stream, TlsStream

LINGER_S = 1.0
"""How long a refused remote may take to read why; its unread bytes would otherwise reset the connection."""


class Channel:
    """Owns a connected non-blocking socket until `release` hands its stream on, or `close` ends it.

    Waits are without limit here; whoever uses a channel sets a timeout. One coroutine at a time. All raise
    ConnectionLost when the connection ends; a TLS error is its `__cause__`.
    """

    def __init__(self, sock: socket.socket, remote: str) -> None:
        self.remote = remote
        self._sock = sock
        self._stream: Stream = PlainStream(sock)
        self._loop = asyncio.get_running_loop()
        self._owned = True

    @property
    def local(self) -> tuple[Any, ...]:
        """The socket address at this end."""
        name: tuple[Any, ...] = self._sock.getsockname()
        return name

    async def secure(self, context: ssl.SSLContext, server_side: bool) -> ssl.SSLObject:
        """TLS handshake."""
        stream = TlsStream(self._sock, context, server_side)
        self._stream = stream
        while not stream.handshake():
            if not stream.flush():
                await self._writable()
            await self._readable()
        await self._flush()
        return stream.tls

    async def say(self, message: Greeting) -> None:
        """Sends one greeting."""
        data = memoryview(encode_greeting(message))
        while data:
            count = self._stream.send(data[: self._stream.slice])
            if count == 0:
                await self._writable()
            data = data[count:]
        await self._flush()

    async def hear(self, limit: int = MAX_GREETING) -> Greeting:
        """Receives one greeting. Raises RemoteProtocolError: none, over `limit` bytes, or of another version."""
        length = greeting_length(await self._exactly(PREAMBLE_SIZE), limit)
        return decode_greeting(await self._exactly(length))

    def release(self) -> Stream:
        """The stream, now the caller's. Bytes that came after the last greeting are still in it."""
        self._owned = False
        return self._stream

    def close(self) -> None:
        """Ends the connection, unless it was released."""
        if self._owned and self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()

    async def close_after_reading(self) -> None:
        """Closes so that the remote can still read what was last sent; takes a second at most."""
        if not self._owned or self._sock.fileno() < 0:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(LINGER_S):
                while await self._loop.sock_recv(self._sock, 65536):
                    pass
        except OSError:
            return  # TimeoutError included: the remote is gone, or slow to read; both end here
        finally:
            self.close()

    async def _exactly(self, count: int) -> bytes:
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            got = self._stream.recv_into(rest)
            if got == 0:
                await self._readable()
            rest = rest[got:]
        return bytes(data)

    async def _flush(self) -> None:
        while not self._stream.flush():
            await self._writable()

    async def _readable(self) -> None:
        fd, waiter = self._sock.fileno(), self._loop.create_future()
        self._loop.add_reader(fd, _wake, waiter)
        try:
            await waiter
        finally:
            self._loop.remove_reader(fd)

    async def _writable(self) -> None:
        fd, waiter = self._sock.fileno(), self._loop.create_future()
        self._loop.add_writer(fd, _wake, waiter)
        try:
            await waiter
        finally:
            self._loop.remove_writer(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def resolve(
    host: str, port: int, executor: Executor | None, passive: bool = False
) -> list[tuple[int, tuple[Any, ...]]]:
    """(family, sockaddr) pairs for a host. Raises OSError if it has none. A thread only for names."""
    flags = socket.AI_PASSIVE if passive else 0

    def look_up(extra: int) -> list[Any]:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags | extra)

    try:
        found = look_up(socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await asyncio.get_running_loop().run_in_executor(executor, look_up, 0)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


async def connect(host: str, port: int, executor: Executor | None) -> socket.socket:
    """A connected non-blocking socket; the host's addresses are tried in order. Raises OSError."""
    failure = OSError(f"{host} has no address")
    for family, sockaddr in await resolve(host, port, executor):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, sockaddr)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except asyncio.CancelledError:
            sock.close()
            raise
    raise failure
