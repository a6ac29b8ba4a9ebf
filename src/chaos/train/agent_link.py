"""The worker's end of the Unix socket to its agent: framed messages, and file descriptors beside them."""

from __future__ import annotations

import array
import os
import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import msgspec

from chaos.core.errors import RemoteProtocolError
from chaos.core.worker_messages import FromAgent, FromWorker, LoadState, Welcome
from chaos.train.errors import AgentLost

MAX_FRAME = 64 * 2**20
"""Bytes. The largest message, a manifest of 400,000 tensors, stays below."""
CONNECT_SECONDS = 30.0
"""The agent listens before it starts the worker, so this only bounds a start on a busy machine."""

_LENGTH = struct.Struct("<I")
_MAX_FDS = 4
_LOST = "the agent of this peer ended; see its log"


class AgentLink:
    """Blocking. One thread receives; any thread may send. Raises `AgentLost` when the agent is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromAgent)
        self._fds: deque[int] = deque()
        _close_in_children(sock)

    @classmethod
    def connect(cls, address: str) -> AgentLink:
        """Connect to the agent at a socket path, or '@name' for an abstract one. Raises `AgentLost`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(CONNECT_SECONDS)
        try:
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            sock.close()
            raise AgentLost(f"no agent answers at {address} ({error}); start the script with 'chaos run'") from error
        sock.settimeout(None)
        return cls(sock)

    def send(self, message: FromWorker, fds: Sequence[int] = ()) -> None:
        """Send one message, with descriptors attached to its first byte."""
        body = self._encoder.encode(message)
        frame = memoryview(_LENGTH.pack(len(body)) + body)
        with self._sending:
            try:
                sent = socket.send_fds(self._sock, [frame], list(fds)) if fds else 0
                self._sock.sendall(frame[sent:])
            except OSError as error:
                raise AgentLost(_LOST) from error

    def receive(self) -> tuple[FromAgent, list[int]]:
        """The next message and the descriptors that belong to it, which the caller must close."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > MAX_FRAME:
            raise RemoteProtocolError(
                f"the agent announced a message of {length} bytes; at most {MAX_FRAME} are allowed"
            )
        try:
            message = self._decoder.decode(self._read(length))
        except msgspec.DecodeError as error:
            raise RemoteProtocolError(
                f"the agent sent what is no message ({error}); are the versions the same?"
            ) from error
        wanted = _descriptors(message)
        if len(self._fds) != wanted:
            raise RemoteProtocolError(
                f"{type(message).__name__} came with {len(self._fds)} file descriptors instead of {wanted}"
            )
        return message, [self._fds.popleft() for _ in range(wanted)]

    def close(self) -> None:
        """Close the socket and the descriptors nobody took. The agent reads it as the worker's end."""
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())

    def _read(self, count: int) -> bytearray:
        """Exactly `count` bytes, keeping the descriptors that come along."""
        data = bytearray(count)
        view = memoryview(data)
        while view:
            try:
                got, ancillary, _, _ = self._sock.recvmsg_into(
                    [view], socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            except OSError as error:
                raise AgentLost(_LOST) from error
            for level, kind, payload in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    received = array.array("i")
                    received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                    self._fds.extend(received)
            if got == 0:
                raise AgentLost(_LOST)
            view = view[got:]
        return data


def _descriptors(message: FromAgent) -> int:
    """How many come with it."""
    match message:
        case Welcome(disk_slots=disk_slots):
            return 3 if disk_slots else 2
        case LoadState():
            return 1
    return 0


def _close_in_children(sock: socket.socket) -> None:
    """A forked data loader that kept the socket open would hide this worker's death from the agent."""
    link_socket = weakref.ref(sock)

    def close() -> None:
        if (open_socket := link_socket()) is not None:
            open_socket.close()

    os.register_at_fork(after_in_child=close)
