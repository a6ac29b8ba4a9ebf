"""Frames on the wire: what one side writes the other reads, and nothing else passes."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.agent.transport.frames import (
    BULK_HEADER_SIZE,
    CONTROL_HEADER_SIZE,
    MAX_BULK_PAYLOAD,
    MAX_CONTROL_BODY,
    BulkHeader,
    ControlFrame,
    ControlReader,
    decode_bulk,
    encode_bulk,
    encode_control,
)
from chaos.core.errors import RemoteProtocolError

ids = st.binary(min_size=8, max_size=8).map(bytes.hex)
ttls = st.integers(1, 8)
frames = st.builds(ControlFrame, ttls, ids, ids, st.binary(max_size=300))
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
headers = st.builds(
    BulkHeader,
    kind=st.integers(1, 255),
    view=u64,
    step=u64,
    index=u32,
    aux=u32,
    weight=st.floats(allow_nan=False),
    tag=u64,
    flags=st.integers(0, 255),
    length=st.integers(0, MAX_BULK_PAYLOAD),
    src=ids,
    dst=ids,
    ttl=ttls,
)


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 2000), max_size=8))
def test_control_frames_survive_any_cut(sent: list[ControlFrame], cuts: list[int]) -> None:
    data = b"".join(map(encode_control, sent))
    reader, received, start = ControlReader(), [], 0
    for stop in [*sorted(cuts), len(data)]:
        received += reader.feed(data[start:stop])
        start = max(start, min(stop, len(data)))
    assert received == sent


@given(st.binary(max_size=400))
def test_arbitrary_control_bytes_give_frames_or_an_error(data: bytes) -> None:
    reader = ControlReader()
    try:
        received = reader.feed(data)
    except RemoteProtocolError:
        return
    assert b"".join(map(encode_control, received)) == data[: len(b"".join(map(encode_control, received)))]


def control_header(length: int, ttl: int) -> bytes:
    return struct.pack("<IB16x", length, ttl)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (control_header(MAX_CONTROL_BODY + 1, 1), "is over"),
        (control_header(2**32 - 1, 1), "is over"),
        (control_header(0, 0), "ttl is 0"),
        (control_header(0, 9), "ttl is 9"),
    ],
)
def test_control_header_out_of_range(data: bytes, complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        ControlReader().feed(data)


def test_bad_header_is_seen_before_its_body_comes() -> None:
    reader = ControlReader()
    assert reader.feed(control_header(MAX_CONTROL_BODY + 1, 1)[: CONTROL_HEADER_SIZE - 1]) == []
    with pytest.raises(RemoteProtocolError):
        reader.feed(b"\0")


def test_too_long_body_is_the_senders_error() -> None:
    with pytest.raises(ValueError, match="is over"):
        encode_control(ControlFrame(1, "00" * 8, "00" * 8, bytes(MAX_CONTROL_BODY + 1)))


@given(headers)
def test_bulk_header_round_trip(header: BulkHeader) -> None:
    data = encode_bulk(header)
    assert len(data) == BULK_HEADER_SIZE == 64
    assert decode_bulk(data) == header


@given(st.binary(min_size=64, max_size=64))
def test_arbitrary_bulk_header_decodes_to_itself_or_not_at_all(data: bytes) -> None:
    try:
        header = decode_bulk(data)
    except RemoteProtocolError:
        return
    if not math.isnan(header.weight):
        assert encode_bulk(header) == data


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (0, b"\0", "no sender writes"),
        (3, b"\1", "no sender writes"),
        (2, b"\0", "ttl is 0"),
        (2, b"\x09", "ttl is 9"),
        (4, struct.pack("<I", MAX_BULK_PAYLOAD + 1), "is over"),
    ],
)
def test_bulk_header_out_of_range(place: int, value: bytes, complaint: str) -> None:
    data = bytearray(encode_bulk(BulkHeader(kind=1)))
    data[place : place + len(value)] = value
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode_bulk(data)
