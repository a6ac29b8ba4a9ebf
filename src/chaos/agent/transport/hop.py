"""What the transports at the two ends of a link tell each other, on its control connection."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from chaos.agent.transport.frames import HOP, ControlFrame, encode_control
from chaos.core.errors import RemoteProtocolError
from chaos.core.types import Count, Record


class Ping(Record, frozen=True, tag=True):
    """Answered at once by a pong with the same number."""

    sent_us: Count


class Pong(Record, frozen=True, tag=True):
    sent_us: Count


class Receipt(Record, frozen=True, tag=True):
    """Totals of what has come: whole frames by bulk connection, and bytes over busy time for the whole link."""

    frames: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=64)]
    """(serial of the bulk connection, frames received on it)."""
    nbytes: Count
    busy_us: Count


class LaneClosed(Record, frozen=True, tag=True):
    """This end has closed a bulk connection after so many whole frames; what came later is to be sent again."""

    serial: Count
    received: Count


MAX_REASON = 1024


class Farewell(Record, frozen=True, tag=True):
    """The last message on a link: this end closes it."""

    reason: Annotated[str, Meta(max_length=MAX_REASON)]


HopMessage = Ping | Pong | Receipt | LaneClosed | Farewell

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[HopMessage] = msgspec.msgpack.Decoder(HopMessage)


def encode_hop(message: HopMessage) -> bytes:
    """The message as a control frame on the wire."""
    return encode_control(ControlFrame(1, HOP, HOP, _encoder.encode(message)))


def decode_hop(body: bytes) -> HopMessage:
    """Raises RemoteProtocolError if the body is no such message or a field is out of range."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a message between transports does not decode: {error}") from error
