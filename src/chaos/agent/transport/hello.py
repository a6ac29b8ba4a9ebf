"""The first words on every connection, and what makes a hello unacceptable. Pure: bytes in, values out.

A greeting is: magic "CHAO" | u16 protocol version | u32 length | msgpack. The version stands outside of what
versions may change, so that another version gets a reason instead of a decoding error.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from chaos.agent.transport.config import MAX_LANES
from chaos.core.errors import RemoteProtocolError
from chaos.core.types import PROTOCOL_VERSION, Count, PeerInfo, Record, Text

MAX_GREETING = 64 * 2**10
"""A hello with 16 addresses of 256 characters is below 5 KiB."""
MAX_CLIENT_BODY = 4 * 2**20
"""As control frames."""

_MAGIC = b"CHAO"
_PREAMBLE = struct.Struct("<4sHI")
PREAMBLE_SIZE = _PREAMBLE.size


class Hello(Record, frozen=True, tag=True):
    """Who I am, what this connection is for, and whom I mean to talk to. Answered by a hello or a goodbye."""

    run: Annotated[str, Meta(max_length=64)]
    """Empty: a joiner that does not know it yet."""
    kind: Literal["control", "bulk", "client"]
    link: Count
    """Number of the link, counted by the peer that dials; a bulk connection repeats that of its control connection."""
    accepted: Count
    """Highest number of a link dialed by the other that this peer has taken up; tells a late hello from a new one."""
    lane: Annotated[int, Meta(ge=0, lt=MAX_LANES)]
    serial: Count
    """Number of this bulk connection within its link."""
    info: PeerInfo | None
    """None from a client, which is no peer."""
    expects: Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?\Z")]
    """Id of the peer that should answer; empty at first contact."""


class Goodbye(Record, frozen=True, tag=True):
    """No, and why. `duplicate`: a link between the two exists already, or is being made by the other."""

    reason: Text
    duplicate: bool = False
    peer: Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?\Z")] = ""
    """Who says so."""


class Request(Record, frozen=True, tag=True):
    """From a client, after the hellos."""

    body: Annotated[bytes, Meta(max_length=MAX_CLIENT_BODY)]


class Answer(Record, frozen=True, tag=True):
    """To a client."""

    body: Annotated[bytes, Meta(max_length=MAX_CLIENT_BODY)]


Greeting = Hello | Goodbye | Request | Answer


class Identity(NamedTuple):
    """Who is at the other end, as its certificate proves."""

    peer_id: str
    public_key: bytes
    party: str


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Greeting] = msgspec.msgpack.Decoder(Greeting)


def encode_greeting(message: Greeting) -> bytes:
    """The message as it goes over the wire, preamble and all."""
    body = _encoder.encode(message)
    return _PREAMBLE.pack(_MAGIC, PROTOCOL_VERSION, len(body)) + body


def greeting_length(preamble: bytes, limit: int) -> int:
    """Bytes that follow a preamble.

    Raises:
        RemoteProtocolError: another protocol, another version, or longer than `limit`.
    """
    magic, version, length = _PREAMBLE.unpack(preamble)
    if magic != _MAGIC:
        raise RemoteProtocolError("what answers is not a chaos agent: check host and port")
    if version != PROTOCOL_VERSION:
        raise RemoteProtocolError(
            f"the other end speaks protocol version {version}, this one {PROTOCOL_VERSION}: "
            "install the same version of chaos-train on both"
        )
    if length > limit:
        raise RemoteProtocolError(f"a greeting of {length} bytes is over {limit}")
    return int(length)


def decode_greeting(body: bytes) -> Greeting:
    """Raises RemoteProtocolError if the bytes are no greeting or a field is out of range."""
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a greeting does not decode: {error}") from error


def objection(hello: Hello, me: PeerInfo, run_id: str, proven: Identity | None, newest: int) -> str:
    """Why this hello can't be accepted, in one line; empty if it can.

    `proven` is None only in plain mode. `newest` is the highest incarnation known of the hello's sender.
    """
    if hello.run and run_id and hello.run != run_id:
        return (
            f"peer {me.name} takes part in run {run_id!r}, not {hello.run!r}: use the address of a member of your run"
        )
    if hello.expects not in ("", me.id):
        return f"peer {me.id} answers here, not {hello.expects}: use the address that {hello.expects} now prints"
    if hello.info is None:
        return "" if hello.kind == "client" else "a peer's hello must say who it is"
    if proven is not None and proven != Identity(hello.info.id, hello.info.key, hello.info.party):
        return f"the certificate belongs to peer {proven.peer_id}, and the hello claims to be {hello.info.id}"
    if hello.info.id == me.id:
        return f"this is peer {me.id} itself: give every peer a key of its own, and the address of another one"
    if hello.info.incarnation < newest:
        return (
            f"incarnation {hello.info.incarnation} of peer {hello.info.name} is older than {newest}, "
            "which is known here: stop one of the two agents that use this key"
        )
    return ""
