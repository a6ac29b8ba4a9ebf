"""Bytes to typed messages and back. Decoding validates: what comes out is in range, or it does not come out."""

from __future__ import annotations

import msgspec

from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import LastWords, PeerMessage, Sealed

MAX_MESSAGE_BYTES = 4 * 2**20
"""A snapshot offer with 100,000 shard hashes is the largest message, at 3.4 MB."""

_encoder = msgspec.msgpack.Encoder()
_messages: msgspec.msgpack.Decoder[PeerMessage] = msgspec.msgpack.Decoder(PeerMessage)
_words = msgspec.msgpack.Decoder(LastWords)


def encode(message: PeerMessage) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> PeerMessage:
    """Decode one control message.

    Raises:
        RemoteProtocolError: it is too long, not msgpack, of no known type, or a field is out of range.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"a control message of {len(data)} bytes exceeds {MAX_MESSAGE_BYTES}")
    try:
        return _messages.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a control message does not decode: {error}") from error


def encode_words(words: LastWords) -> bytes:
    return _encoder.encode(words)


def decode_words(sealed: Sealed) -> LastWords:
    """Decode sealed last words (the signature is the caller's to check).

    Raises:
        RemoteProtocolError: they do not decode.
    """
    try:
        return _words.decode(sealed.words)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"last words do not decode: {error}") from error
