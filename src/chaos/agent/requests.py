"""What a client that is no peer may ask an agent: status, to leave, cut a link, force a view, take last words."""

from __future__ import annotations

from typing import Any

import msgspec

from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import Sealed
from chaos.core.types import Count, Record, Text


class ClientRequest(Record, tag=True, frozen=True):
    """Base of all requests."""


class StatusRequest(ClientRequest, frozen=True):
    pass


class LinesRequest(ClientRequest, frozen=True):
    """Recent trace lines of all peers, as far as this one was told: those after that number. 0: all there are."""

    after: Count


class LeaveRequest(ClientRequest, frozen=True):
    """Own party only."""

    reason: Text


class ForceViewRequest(ClientRequest, frozen=True):
    """Answered only for a client of the agent's own party. `view`: the id that the operator saw; None: only look."""

    view: Count | None


class LinkRequest(ClientRequest, frozen=True):
    """`chaos link`: cut this peer's link to the one of this name or id, or make it again. Own party only."""

    peer: Text
    connect: bool


class SealRequest(ClientRequest, frozen=True):
    """Last words that somebody found after their peer's process had ended."""

    sealed: Sealed


AnyRequest = StatusRequest | LinesRequest | LeaveRequest | LinkRequest | ForceViewRequest | SealRequest

_requests: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)


def encode_request(request: AnyRequest) -> bytes:
    return msgspec.msgpack.encode(request)


def decode_request(payload: bytes) -> AnyRequest:
    """Raises RemoteProtocolError if it is no request."""
    try:
        return _requests.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"a request does not decode: {error}") from error


def encode_answer(answer: dict[str, Any]) -> bytes:
    return msgspec.json.encode(answer)


def decode_answer(payload: bytes) -> dict[str, Any]:
    """Raises RemoteProtocolError if it is no answer."""
    try:
        return msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"an answer does not decode: {error}") from error
