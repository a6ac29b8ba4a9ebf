"""What goes around each control message between agents: the sender's causal stamp."""

from __future__ import annotations

import struct

from chaos.core.errors import RemoteProtocolError

_STAMP = struct.Struct("<Q")


def wrap(stamp: int, message: bytes) -> bytes:
    return _STAMP.pack(stamp) + message


def unwrap(body: bytes) -> tuple[int, bytes]:
    """Stamp and message. Raises RemoteProtocolError if there is not even a stamp."""
    if len(body) < _STAMP.size:
        raise RemoteProtocolError("a control message is shorter than its stamp")
    return _STAMP.unpack_from(body)[0], body[_STAMP.size :]
