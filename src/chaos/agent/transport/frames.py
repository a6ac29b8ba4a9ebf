"""Layout of control and bulk frames on the wire. Pure: bytes in, values out.

Control: u32 length of the body | u8 ttl | source (8 bytes) | destination (8 bytes) | body.
Bulk: a header of 64 bytes, see `BulkHeader`, then `length` bytes of payload. All integers little-endian.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from chaos.core.errors import RemoteProtocolError

MAX_CONTROL_BODY = 4 * 2**20
MAX_BULK_PAYLOAD = 16 * 2**20
MAX_TTL = 8
"""Hops a frame may take; a routing loop ends after so many."""
HOP = "0" * 16
"""Destination of frames that the transports at the two ends of a link exchange themselves."""

_CONTROL = struct.Struct("<IB8s8s")
_BULK = struct.Struct("<BBBBI8s8sQQIIdQ")
CONTROL_HEADER_SIZE = _CONTROL.size
BULK_HEADER_SIZE = _BULK.size


class ControlFrame(NamedTuple):
    """One control message between two peers that may be several hops apart. Ids are 16 hexadecimal digits."""

    ttl: int
    src: str
    dst: str
    body: bytes


def encode_control(frame: ControlFrame) -> bytes:
    """The frame as it goes over the wire. Raises ValueError if the body is over 4 MiB."""
    if len(frame.body) > MAX_CONTROL_BODY:
        raise ValueError(f"a control message of {len(frame.body)} bytes is over {MAX_CONTROL_BODY}")
    head = _CONTROL.pack(len(frame.body), frame.ttl, bytes.fromhex(frame.src), bytes.fromhex(frame.dst))
    return head + frame.body


class ControlReader:
    """Cuts a stream of bytes into control frames; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[ControlFrame]:
        """Frames that `data` completes. Raises RemoteProtocolError for a header out of range."""
        self._buffer += data
        frames: list[ControlFrame] = []
        start = 0
        while len(self._buffer) - start >= CONTROL_HEADER_SIZE:
            length, ttl, src, dst = _CONTROL.unpack_from(self._buffer, start)
            if length > MAX_CONTROL_BODY:
                raise RemoteProtocolError(f"a control frame of {length} bytes is over {MAX_CONTROL_BODY}")
            if not 1 <= ttl <= MAX_TTL:
                raise RemoteProtocolError(f"a control frame's ttl is {ttl}, not 1 to {MAX_TTL}")
            body = start + CONTROL_HEADER_SIZE
            if len(self._buffer) < body + length:
                break
            start = body + length
            frames.append(ControlFrame(ttl, src.hex(), dst.hex(), bytes(self._buffer[body:start])))
        del self._buffer[:start]
        return frames


class BulkHeader(msgspec.Struct, frozen=True, gc=False):
    """What precedes a bulk payload. The sender sets the first eight; the transport sets the last four.

    `kind` is 1 to 255. The meaning of kind, flags (u8), view, step, tag (u64), index, aux (u32) and weight (f64) is
    the caller's. `length` is the payload's bytes; `ttl` falls by one at each relay.
    """

    kind: int
    view: int = 0
    step: int = 0
    index: int = 0
    aux: int = 0
    weight: float = 0.0
    tag: int = 0
    flags: int = 0
    length: int = 0
    src: str = HOP
    dst: str = HOP
    ttl: int = MAX_TTL


def encode_bulk(header: BulkHeader) -> bytes:
    """The 64 bytes of a header. Raises struct.error if a field is out of range."""
    h = header
    src, dst = bytes.fromhex(h.src), bytes.fromhex(h.dst)
    return _BULK.pack(h.kind, h.flags, h.ttl, 0, h.length, src, dst, h.view, h.step, h.index, h.aux, h.weight, h.tag)


def decode_bulk(data: bytes | bytearray | memoryview) -> BulkHeader:
    """Inverse of `encode_bulk`. Raises RemoteProtocolError for anything that `send_bulk` can't have made."""
    kind, flags, ttl, zero, length, src, dst, view, step, index, aux, weight, tag = _BULK.unpack(data)
    if kind == 0 or zero != 0:
        raise RemoteProtocolError(f"a bulk header begins with {bytes(data[:4]).hex()}, which no sender writes")
    if length > MAX_BULK_PAYLOAD:
        raise RemoteProtocolError(f"a bulk frame of {length} bytes is over {MAX_BULK_PAYLOAD}")
    if not 1 <= ttl <= MAX_TTL:
        raise RemoteProtocolError(f"a bulk frame's ttl is {ttl}, not 1 to {MAX_TTL}")
    return BulkHeader(
        kind, view, step, index, aux, weight, tag, flags, length, src.hex(), dst.hex(), ttl
    )  # fmt: skip
