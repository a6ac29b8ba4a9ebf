"""What goes around each control message between agents: what it is, and the sender's causal stamp."""

from __future__ import annotations

import struct
from enum import IntEnum

from chaos.core.errors import RemoteProtocolError

_HEAD = struct.Struct("<BQ")


class Content(IntEnum):
    PROTOCOL = 0
    """A message for the node."""
    LINES = 1
    """Lines of the sender's trace, for the observer."""


def wrap(content: Content, stamp: int, body: bytes) -> bytes:
    return _HEAD.pack(content, stamp) + body


def unwrap(message: bytes) -> tuple[Content, int, bytes]:
    """Content, stamp and body. Raises RemoteProtocolError."""
    if len(message) < _HEAD.size or message[0] not in (Content.PROTOCOL, Content.LINES):
        raise RemoteProtocolError("a control message is too short, or of no known content")
    content, stamp = _HEAD.unpack_from(message)
    return Content(content), stamp, message[_HEAD.size :]
