"""Greetings: decoding, and the reasons for which a hello is turned away."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.agent.transport.addresses import format_address, parse_address
from chaos.agent.transport.hello import (
    MAX_GREETING,
    PREAMBLE_SIZE,
    Goodbye,
    Hello,
    Identity,
    decode_greeting,
    encode_greeting,
    greeting_length,
    objection,
)
from chaos.agent.transport.hop import Receipt, decode_hop, encode_hop
from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.types import PROTOCOL_VERSION, PeerInfo

ME = PeerInfo("a" * 16, 3, "me", "1" * 64, bytes(32), ("127.0.0.1:1",))
YOU = PeerInfo("b" * 16, 5, "you", "2" * 64, b"\1" * 32, ())
PROVEN = Identity(YOU.id, YOU.key, YOU.party)


def hello(**changes: Any) -> Hello:
    return msgspec.structs.replace(Hello("run", "control", 1, 0, 0, 0, YOU, ME.id), **changes)


def test_round_trip() -> None:
    data = encode_greeting(hello())
    assert greeting_length(data[:PREAMBLE_SIZE], MAX_GREETING) == len(data) - PREAMBLE_SIZE
    assert decode_greeting(data[PREAMBLE_SIZE:]) == hello()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_decode(data: bytes) -> None:
    for decode in (decode_greeting, decode_hop):
        try:
            decode(data)
        except RemoteProtocolError:
            continue


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_decodes(place: int, value: int) -> None:
    body = bytearray(encode_greeting(hello())[PREAMBLE_SIZE:])
    body[place % len(body)] = value
    try:
        decode_greeting(bytes(body))
    except RemoteProtocolError:
        return


NEWER = f"speaks protocol version {PROTOCOL_VERSION + 1}, this one {PROTOCOL_VERSION}"


@pytest.mark.parametrize(
    ("preamble", "complaint"),
    [
        (b"HTTP/1.1 4", "not a chaos agent: check host and port"),
        (
            struct.pack("<4sHI", b"CHAO", PROTOCOL_VERSION + 1, 4),
            f"speaks protocol version {PROTOCOL_VERSION + 1}, this one {PROTOCOL_VERSION}",
        ),
        (struct.pack("<4sHI", b"CHAO", PROTOCOL_VERSION, MAX_GREETING + 1), "is over"),
    ],
)
def test_preamble(preamble: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        greeting_length(preamble, MAX_GREETING)


@pytest.mark.parametrize(
    "field",
    [{"lane": 16}, {"lane": -1}, {"kind": "other"}, {"expects": "x"}, {"run": "r" * 65}, {"link": -1}],
)
def test_fields_out_of_range_do_not_decode(field: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="does not decode"):
        decode_greeting(encode_greeting(hello(**field))[PREAMBLE_SIZE:])


def other_info(**changes: Any) -> PeerInfo:
    return msgspec.structs.replace(YOU, **changes)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, ""),
        ({"run": ""}, ""),
        ({"expects": ""}, ""),
        ({"kind": "client", "info": None}, ""),
        ({"run": "another"}, "takes part in run 'run', not 'another'"),
        ({"expects": "c" * 16}, "answers here, not cccc"),
        ({"info": None}, "must say who it is"),
        ({"info": other_info(id="c" * 16)}, "certificate belongs to peer bbbb"),
        ({"info": other_info(party="3" * 64)}, "certificate belongs to peer bbbb"),
        ({"info": other_info(key=b"\2" * 32)}, "certificate belongs to peer bbbb"),
        ({"info": other_info(incarnation=4)}, "is older than 5"),
        ({"info": other_info(incarnation=6)}, ""),
    ],
)
def test_objections(change: dict[str, Any], complaint: str) -> None:
    reason = objection(hello(**change), ME, "run", PROVEN, newest=5)
    assert complaint in reason
    assert bool(reason) == bool(complaint)
    assert "\n" not in reason


def test_objection_to_myself() -> None:
    mine = Identity(ME.id, ME.key, ME.party)
    assert "itself" in objection(hello(info=ME), ME, "run", mine, 0)


def test_a_joiner_takes_any_run() -> None:
    assert objection(hello(run="another"), ME, "", PROVEN, 0) == ""


def test_reason_is_bounded() -> None:
    with pytest.raises(RemoteProtocolError):
        decode_greeting(encode_greeting(Goodbye("x" * 4097))[PREAMBLE_SIZE:])


def test_receipt_is_bounded() -> None:
    frame = encode_hop(Receipt(((1, 1),) * 65, 0, 0))
    with pytest.raises(RemoteProtocolError):
        decode_hop(frame[21:])


@pytest.mark.parametrize(
    ("text", "parsed"), [("h:1", ("h", 1)), ("[::1]:70", ("::1", 70)), ("192.0.2.7:0", ("192.0.2.7", 0))]
)
def test_address(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed
    assert format_address(parsed) == text


@pytest.mark.parametrize("text", ["", "h", ":1", "h:", "h:x", "h:65536", "::1:70", "h:-1", "h:１"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ChaosError, match="write HOST:PORT"):
        parse_address(text)
