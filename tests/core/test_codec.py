"""Decoding is validation: what comes out is typed and in range, or it is the sender's fault."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from chaos.core.codec import MAX_MESSAGE_BYTES, decode, decode_words, encode, encode_words
from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import MOST_VIEWS, Ack, LastWords, Sealed, SnapshotOffer, newest_views
from chaos.core.types import DataState, StateManifest, View
from chaos.sim.symbols import info
from tests.core.random_messages import ANY_MESSAGE, BY_TYPE, MESSAGES, strategy


@pytest.mark.parametrize("tp", MESSAGES, ids=lambda tp: tp.__name__)
def test_every_message_survives_the_round_trip(tp: type) -> None:
    @settings(max_examples=15, deadline=None)
    @given(BY_TYPE[tp])
    def check(message: object) -> None:
        assert decode(encode(message)) == message  # type: ignore[arg-type]

    check()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_the_senders_fault_or_a_message(data: bytes) -> None:
    try:
        message = decode(data)
    except RemoteProtocolError:
        return
    assert type(message) in MESSAGES


@settings(max_examples=200, deadline=None)
@given(ANY_MESSAGE, st.data())
def test_damaged_messages_raise_nothing_else(message: object, data: st.DataObject) -> None:
    body = bytearray(encode(message))  # type: ignore[arg-type]
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        decode(bytes(body[: data.draw(st.integers(0, len(body)))]))


@pytest.mark.parametrize(
    "fields",
    [
        ["Ack", -1, b""],
        ["Ack", 2**63, b""],
        ["Ack", 1, b"x" * 33],
        ["Ack", 1.5, b""],
        ["Ack", 1, b"", "more"],
        ["Ack", 1],
        ["Probe", "not an id"],
        ["Probe", "0" * 17],
        ["Nope", 1],
        ["SnapshotOffer", 1, b"", None, None, 2**31, []],
        ["Seal", [b"words", b"short"]],
        [],
        7,
        None,
    ],
)
def test_out_of_range_is_refused(fields: object) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(msgspec.msgpack.encode(fields))


def test_too_long_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RemoteProtocolError, match="exceeds"):
        decode(encode(Ack(1, b"")) + b"\0" * MAX_MESSAGE_BYTES)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(b"\x91" * 100_000)


@settings(max_examples=30, deadline=None)
@given(strategy(msgspec.inspect.type_info(LastWords)), st.binary(max_size=40))
def test_words(words: LastWords, noise: bytes) -> None:
    assert decode_words(Sealed(encode_words(words), b"0" * 64)) == words
    with pytest.raises(RemoteProtocolError):
        decode_words(Sealed(b"\xc1" + noise, b"0" * 64))


@pytest.mark.parametrize(("peers", "sent"), [(3, MOST_VIEWS), (1000, 10)])
def test_views_of_any_size_fit_into_an_offer(peers: int, sent: int) -> None:
    members = tuple(replace(info(1), id=f"{n:016x}", name=f"hospital-{n}") for n in range(peers))
    views = [View("one", n, members, (), n, False, (), "scale-out: hospital-7 becomes a member") for n in range(1, 81)]
    newest = newest_views(views)
    assert [view.id for view in newest] == list(range(81 - sent, 81))
    manifest = StateManifest(9, 2**36, (), b"")
    offer = SnapshotOffer(9, b"h" * 16, DataState(), manifest, 2**20, (b"0" * 32,) * 2**16, newest)
    assert decode(encode(offer)) == offer, "with the hashes of a model of 64 GB"
