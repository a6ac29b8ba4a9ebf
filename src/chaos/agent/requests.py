"""What a client that is no peer may ask: status, lines, a measurement; to leave, cut links, force a view, seal."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import Sealed
from chaos.core.types import Count, Record, Text

PROBE_BYTES = 3 * 2**20
"""Of one measurement, each way: a request and its answer hold 4 MiB."""


class ClientRequest(Record, tag=True, frozen=True):
    """Base of all requests."""


class StatusRequest(ClientRequest, frozen=True):
    pass


class ProbeRequest(ClientRequest, frozen=True):
    """`chaos doctor` measures the line: so many bytes there, and so many wanted back."""

    padding: Annotated[bytes, Meta(max_length=PROBE_BYTES)]
    want: Annotated[int, Meta(ge=0, le=PROBE_BYTES)]


class DialBackRequest(ClientRequest, frozen=True):
    """`chaos doctor` asks whether its host is reached at these addresses, as a joiner's are dialed."""

    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]


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


AnyRequest = (
    StatusRequest
    | ProbeRequest
    | DialBackRequest
    | LinesRequest
    | LeaveRequest
    | LinkRequest
    | ForceViewRequest
    | SealRequest
)

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
