"""The agent's end of the Unix socket to its worker: framed messages, descriptors beside them, death at once."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from chaos.core.worker_messages import FromAgent, FromWorker, SnapshotPrepared

MAX_FRAME = 64 * 2**20
"""Bytes. The largest message, a manifest of 400,000 tensors, stays below."""

_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")
_decoder = msgspec.msgpack.Decoder(FromWorker)
_encoder = msgspec.msgpack.Encoder()


class WorkerLink:
    """Listens on an abstract socket for one worker at a time, of the same user.

    Args:
        on_message: called with each message and the descriptors that came with it (the callee owns them).
        on_death: called with a reason when the worker's socket closes.
    """

    def __init__(self, on_message: Callable[[FromWorker, list[int]], None], on_death: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._on_death = on_death
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.address = f"@chaos-{secrets.token_hex(8)}"
        self._worker: socket.socket | None = None
        self._received = bytearray()
        self._fds: deque[int] = deque()
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()

    def start(self) -> None:
        self._listener.bind("\0" + self.address[1:])
        self._listener.listen(4)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """End the worker's socket; it learns so that this agent is gone."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        self._drop()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        while self._worker is not None and self._read():
            pass  # of a former worker that has ended, the end may lie there unread
        if uid != os.getuid() or self._worker is not None:
            sock.close()
            return
        sock.setblocking(False)
        self._worker = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read)

    # --- receiving -----------------------------------------------------------------------------------------

    def _read(self) -> bool:
        """Take what has come; whether anything had."""
        assert self._worker is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._worker, 2**18, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError as error:
            self._died(f"its socket failed: {error.strerror}")
            return False
        self._fds.extend(fds)
        if not data:
            self._died("its process ended")
            return False
        self._received += data
        self._deliver()
        return True

    def _deliver(self) -> None:
        while len(self._received) >= _LENGTH.size and self._worker is not None:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > MAX_FRAME:
                self._died(f"it announced a message of {length} bytes")
                return
            if len(self._received) < _LENGTH.size + length:
                return
            body = bytes(self._received[_LENGTH.size : _LENGTH.size + length])
            del self._received[: _LENGTH.size + length]
            try:
                message = _decoder.decode(body)
            except msgspec.DecodeError as error:
                self._died(f"it sent what is no message ({error}); are the versions the same?")
                return
            fds = [self._fds.popleft()] if isinstance(message, SnapshotPrepared) and self._fds else []
            self._on_message(message, fds)

    def _died(self, reason: str) -> None:
        self._drop()
        self._on_death(reason)

    def _drop(self) -> None:
        if self._worker is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._worker.fileno())
            loop.remove_writer(self._worker.fileno())
            self._worker.close()
            self._worker = None
        self._received.clear()
        self._unsent.clear()
        while self._fds:
            os.close(self._fds.popleft())

    # --- sending -------------------------------------------------------------------------------------------

    def send(self, message: FromAgent, fds: Sequence[int] = ()) -> None:
        """Queue a message. Without a worker it is dropped: its death has been or will be reported."""
        if self._worker is None:
            return
        body = _encoder.encode(message)
        self._unsent.append((_LENGTH.pack(len(body)) + body, tuple(fds)))
        self._flush()

    def _flush(self) -> None:
        while self._unsent and self._worker is not None:
            data, fds = self._unsent[0]
            try:
                sent = socket.send_fds(self._worker, [data], list(fds)) if fds else self._worker.send(data)
            except BlockingIOError:
                asyncio.get_running_loop().add_writer(self._worker.fileno(), self._flush)
                return
            except OSError:
                return  # the reader learns of the worker's death, and reports it
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[sent:], ())
        if self._worker is not None:
            asyncio.get_running_loop().remove_writer(self._worker.fileno())
