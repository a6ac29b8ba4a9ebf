"""Where a frame goes: to this peer's handlers, or on to the next hop through a bounded buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from chaos.agent.transport.bulk import DISCARD, PAUSE, Bytes, OutFrame, Verdict
from chaos.agent.transport.frames import (
    HOP,
    MAX_BULK_PAYLOAD,
    MAX_TTL,
    BulkHeader,
    ControlFrame,
    encode_control,
)
from chaos.agent.transport.handlers import Handlers
from chaos.agent.transport.link import Link
from chaos.agent.transport.shared import Shared


class _Parcel(bytearray):
    """Payload on its way through this peer. Counts against the link by which it will leave."""

    via: Link


class Router:
    """Relayed frames are dropped and counted where no route leads on; whoever sent them sends them again."""

    def __init__(self, shared: Shared, handlers: Handlers, resume: Callable[[], None]) -> None:
        self._shared = shared
        self._handlers = handlers
        self._resume = resume
        self._routes: Mapping[str, str] = {}

    def set_routes(self, routes: Mapping[str, str]) -> None:
        """Next hop by destination, for destinations without a link. Replaces all earlier routes."""
        self._routes = dict(routes)
        self._resume()

    def next_link(self, dst: str) -> Link | None:
        """The link to `dst`, or the one to the next hop towards it."""
        roster = self._shared.roster
        return roster.up(dst) or roster.up(self._routes.get(dst, ""))

    def send_control(self, dst: str, body: bytes) -> bool:
        """False: no link and no route. Raises ValueError if the body is over 4 MiB."""
        link = self.next_link(dst)
        if link is None:
            self._shared.counters["control_unroutable"] += 1
            return False
        link.send_control(encode_control(ControlFrame(MAX_TTL, self._shared.me.id, dst, body)))
        return True

    def send_bulk(
        self, dst: str, header: BulkHeader, payload: Bytes, urgent: bool, on_sent: Callable[[], None] | None
    ) -> bool:
        """False: no link and no route. Raises ValueError if the payload is over 16 MiB."""
        nbytes = memoryview(payload).nbytes
        if nbytes > MAX_BULK_PAYLOAD:
            raise ValueError(f"a bulk payload of {nbytes} bytes is over {MAX_BULK_PAYLOAD}")
        link = self.next_link(dst)
        if link is None:
            self._shared.counters["bulk_unroutable"] += 1
            return False
        header = msgspec.structs.replace(header, length=nbytes, src=self._shared.me.id, dst=dst, ttl=MAX_TTL)
        link.send_bulk(OutFrame(header, payload, on_sent, urgent))
        return True

    def control_received(self, link: Link, frame: ControlFrame) -> None:
        if frame.dst == self._shared.me.id:
            self._handlers.on_control(frame.src, frame.body)
            return
        onward = self._onward(link, frame.dst, frame.ttl, "control")
        if onward is None:
            return
        if onward.control_backlog > self._shared.config.control_queue_bytes // 2:
            self._shared.counters["control_relay_full"] += 1
            return
        onward.send_control(encode_control(frame._replace(ttl=frame.ttl - 1)))
        self._shared.counters["control_relayed"] += 1

    def bulk_begins(self, link: Link, header: BulkHeader) -> memoryview | Verdict:
        if header.dst == self._shared.me.id:
            return self._handlers.bulk_sink(link.info.id, header)
        onward = self._onward(link, header.dst, header.ttl, "bulk")
        if onward is None:
            return DISCARD
        if onward.relay_bytes + header.length > self._shared.config.relay_bytes:
            return PAUSE
        parcel = _Parcel(header.length)
        parcel.via = onward
        onward.relay_bytes += header.length
        return memoryview(parcel)

    def bulk_done(self, link: Link, header: BulkHeader, payload: memoryview) -> None:
        parcel = payload.obj
        if not isinstance(parcel, _Parcel):
            self._handlers.on_bulk(link.info.id, header, payload)
            return
        if self._shared.roster.up(parcel.via.info.id) is not parcel.via:
            self._shared.counters["bulk_unroutable"] += 1
            return
        onward = msgspec.structs.replace(header, ttl=header.ttl - 1)
        parcel.via.send_bulk(OutFrame(onward, payload, lambda: self._left(parcel)))
        self._shared.counters["bulk_relayed"] += 1

    def bulk_aborted(self, link: Link, header: BulkHeader, payload: memoryview) -> None:
        if isinstance(payload.obj, _Parcel):
            self._left(payload.obj)
        else:
            self._handlers.bulk_aborted(link.info.id, header, payload)

    def _onward(self, link: Link, dst: str, ttl: int, what: str) -> Link | None:
        """The link by which another peer's frame goes on; None, and counted, if it must be dropped."""
        onward = None if dst == HOP else self.next_link(dst)
        if onward is None or onward is link:
            self._shared.counters[f"{what}_unroutable"] += 1
            return None
        if ttl <= 1:
            self._shared.counters[f"{what}_expired"] += 1
            return None
        return onward

    def _left(self, parcel: _Parcel) -> None:
        parcel.via.relay_bytes -= len(parcel)
        self._resume()
