"""A link to one peer: a control connection, the bulk lanes beside it, and the queue that feeds them.

A frame is confirmed by the receiver's count of whole frames per lane. When a lane breaks, both ends close
it and tell each other how many frames they got on it; the others are queued again, whole, for other lanes. So
within the life of a link each frame is delivered exactly once, and only a frame's begun payload may be
received twice (`bulk_aborted`, then `bulk_begins` again). When the link ends, what is unconfirmed is forgotten.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from chaos.agent.transport.bulk import OutFrame, Verdict
from chaos.agent.transport.config import TransportConfig
from chaos.agent.transport.control import ControlConnection
from chaos.agent.transport.frames import HOP, BulkHeader, ControlFrame
from chaos.agent.transport.hop import (
    MAX_REASON,
    Farewell,
    HopMessage,
    LaneClosed,
    Ping,
    Pong,
    Receipt,
    decode_hop,
    encode_hop,
)
from chaos.agent.transport.lane import Lane
from chaos.agent.transport.rate import RAMP_ROUND_TRIPS, BusyMeter, RateEstimator
from chaos.agent.transport.streams import Stream, give_up_after, same_host
from chaos.agent.transport.uplink import Uplink
from chaos.core.errors import RemoteProtocolError
from chaos.core.types import PeerInfo

RTT_SAMPLES = 10
"""Of which the lowest counts: the others waited in a queue or for a processor."""
_MAX_LIMBO = 64
"""Broken lanes for which the other end's count is awaited; an honest peer answers within a round trip."""


@dataclass(frozen=True)
class LinkInfo:
    """Measurements of one link. Bytes are counted above TLS."""

    rtt_s: float
    """Lowest of the last ten pings; 0 before the first answer."""
    rate_bps: float
    """Bytes (not bits) per second that the peer received while bulk flowed; 0 while unknown."""
    control_in: int
    control_out: int
    bulk_in: int
    bulk_out: int
    kinds_out: dict[int, int]
    """Bytes of payloads whose sending has begun, by the kind in their header."""
    since: float
    """The event loop's clock when the link came up."""
    lanes: int
    """Bulk connections that stand now."""
    address: str
    """Of the other end of the control connection."""

    def for_people(self) -> dict[str, Any]:
        """What `chaos status` shows."""
        return {"address": self.address, "rtt_ms": round(self.rtt_s * 1000, 3), "bytes_per_s": self.rate_bps}


class State(enum.Enum):
    OPENING = enum.auto()
    UP = enum.auto()
    CLOSED = enum.auto()


class LinkOwner(Protocol):
    """What a link tells the transport. `control_received`, `bulk_begins`, `bulk_done` may raise RemoteProtocolError."""

    def link_is_up(self, link: Link) -> None: ...

    def link_is_closed(self, link: Link, reason: str, misbehaved: bool, was_up: bool) -> None: ...

    def linger(self, control: ControlConnection) -> None:
        """Let the last control message leave, then close."""

    def control_received(self, link: Link, frame: ControlFrame) -> None: ...

    def bulk_begins(self, link: Link, header: BulkHeader) -> memoryview | Verdict: ...

    def bulk_done(self, link: Link, header: BulkHeader, payload: memoryview) -> None: ...

    def bulk_aborted(self, link: Link, header: BulkHeader, payload: memoryview) -> None: ...


class Link:
    """OPENING until the first lane stands, then UP, then CLOSED for good; a new link is a new object."""

    def __init__(
        self,
        info: PeerInfo,
        run: str,
        number: int,
        outgoing: bool,
        address: str,
        owner: LinkOwner,
        config: TransportConfig,
        uplink: Uplink,
    ) -> None:
        self.info = info
        self.run = run
        self.number = number
        self.outgoing = outgoing
        """This end dialed it, and dials its lanes."""
        self.address = address
        self.state = State.OPENING
        self.meter = BusyMeter()
        self.relay_bytes = 0
        """Of other peers' payloads that wait to leave by this link."""
        self.changed = asyncio.Event()
        """Set when a lane broke or the link closed; for whoever dials lanes."""
        self.ended = asyncio.Event()
        self.closed_for = ""
        """Why it closed."""
        self.up: asyncio.Future[PeerInfo] = asyncio.get_running_loop().create_future()
        """Done when the link is up, or cancelled when it closes first."""
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._config = config
        self._control: ControlConnection | None = None
        self._lanes: dict[int, Lane] = {}
        self._limbo: dict[int, Lane] = {}
        self._serial = 0
        self._queue: deque[OutFrame] = deque()
        self._urgent: deque[OutFrame] = deque()
        self._queued = 0
        self._estimator = RateEstimator()
        self._uplink = uplink
        self._training = 0
        """Bytes of urgent frames that are not confirmed."""
        self._held = False
        """Training fills the uplink, so this link is paced down."""
        self._paced_for = 0
        """Lanes that were busy when the pace was shared among them."""
        self._rtts: deque[float] = deque(maxlen=RTT_SAMPLES)
        self._ping_us = 0
        """When the ping that is not answered yet was sent; 0 if there is none."""
        self._since = 0.0
        self._unreported = 0
        self._bulk_in = 0
        self._bulk_out = 0
        self._kinds_out: Counter[int] = Counter()
        self._gap_timer: asyncio.TimerHandle | None = self._loop.call_later(config.handshake_timeout_s, self._no_lane)
        self._ping_timer: asyncio.TimerHandle | None = None
        self._receipt_timer: asyncio.TimerHandle | None = None

    # --- life -----------------------------------------------------------------------------------

    def attach_control(self, stream: Stream) -> None:
        """The end that dialed reads from it once the link is up, as the other may speak a moment earlier.

        The other end reads at once: before it is up, all that can come is the dialer's giving up.
        """
        give_up_after(stream.sock, self._config.control_timeout_s)
        self._control = ControlConnection(stream, self._control_frame, self._control_lost)
        if not self.outgoing:
            self._control.start()

    def attach_lane(self, stream: Stream, index: int, serial: int) -> None:
        """A new bulk connection; the first makes the link up. An older one of the same index is broken by it."""
        old = self._lanes.get(index)
        if old is not None:
            old.close()
            self.lane_broken(old, "replaced by a new connection", False)
        if self.state is State.CLOSED:
            stream.sock.close()
            return
        try:
            local = same_host(stream.sock)
            give_up_after(stream.sock, self._config.lane_timeout_s)
        except OSError:
            stream.sock.close()  # it broke between its hello and now; who dialed it dials again
            return
        lane = Lane(stream, index, serial, local, self, self._config)
        self._lanes[index] = lane
        self._cancel_gap()
        if self.state is State.OPENING:
            self._become_up()
        if self.state is State.UP:
            self._apply_pace()
            lane.start()

    def missing_lane(self) -> tuple[int, int] | None:
        """Index and serial of a lane to dial, if one is missing."""
        index = next((i for i in range(self._config.lanes) if i not in self._lanes), None)
        if index is None:
            return None
        self._serial += 1
        return index, self._serial

    def close(self, reason: str, farewell: str = "", misbehaved: bool = False) -> None:
        """End the link. `farewell` is told to the peer, if there is one and the control connection still works."""
        if self.state is State.CLOSED:
            return
        was_up, self.state, self.closed_for = self.state is State.UP, State.CLOSED, reason
        for timer in (self._gap_timer, self._ping_timer, self._receipt_timer):
            if timer is not None:
                timer.cancel()
        lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.close()
            self._count(lane)
        self._uplink.remove(self)
        self._queue.clear()
        self._urgent.clear()
        self._limbo.clear()
        self._queued = 0
        if self._control is not None and farewell:
            self._control.send(encode_hop(Farewell(farewell[:MAX_REASON])))
            self._owner.linger(self._control)
        elif self._control is not None:
            self._control.close()
        self.changed.set()
        self.ended.set()
        if not self.up.done():
            self.up.cancel()
        for lane in lanes:
            if lane.unfinished:
                self._owner.bulk_aborted(self, *lane.unfinished)
        self._owner.link_is_closed(self, reason, misbehaved, was_up)

    def describe(self) -> LinkInfo:
        control, lanes = self._control, self._lanes.values()
        return LinkInfo(
            rtt_s=min(self._rtts, default=0.0),
            rate_bps=self._estimator.rate,
            control_in=control.bytes_in if control else 0,
            control_out=control.bytes_out if control else 0,
            bulk_in=self._bulk_in + sum(lane.bytes_in for lane in lanes),
            bulk_out=self._bulk_out + sum(lane.sender.nbytes for lane in lanes),
            kinds_out=dict(self._kinds_out),
            since=self._since,
            lanes=len(lanes),
            address=self.address,
        )

    # --- sending --------------------------------------------------------------------------------

    @property
    def control_backlog(self) -> int:
        """Control bytes that the kernel has not taken."""
        return self._control.queued if self._control else 0

    def send_control(self, data: bytes) -> None:
        """Queue an encoded control frame. Too long a queue ends the link."""
        if self._control is None or self.state is State.CLOSED:
            return
        if self._control.queued + len(data) > self._config.control_queue_bytes:
            self._loop.call_soon(self.close, "the peer has stopped reading control messages")
            return
        self._control.send(data)

    def send_bulk(self, frame: OutFrame) -> None:
        """Queue a frame. Too long a queue ends the link."""
        if len(self._queue) + len(self._urgent) >= self._config.bulk_queue_frames:
            self._loop.call_soon(
                self.close, f"{self._config.bulk_queue_frames} bulk frames wait: send fewer, larger ones"
            )
            return
        (self._urgent if frame.urgent else self._queue).append(frame)
        if frame.urgent:
            self._trains(frame.header.length)
        self._queued += frame.header.length
        for lane in self._lanes.values():
            lane.wake()

    def queued_bytes(self) -> int:
        """Bulk bytes that the kernel has not taken."""
        return self._queued + sum(lane.sender.backlog for lane in self._lanes.values())

    def drop_bulk(self, predicate: Callable[[BulkHeader], bool]) -> int:
        """Remove the queued frames whose header fits; returns how many. Frames that were begun go on."""
        dropped = 0
        for queue in (self._queue, self._urgent):
            kept = [frame for frame in queue if not predicate(frame.header)]
            if queue is self._urgent:
                self._trains(sum(f.header.length for f in kept) - sum(f.header.length for f in queue))
            dropped += len(queue) - len(kept)
            queue.clear()
            queue.extend(kept)
        self._queued = sum(frame.header.length for q in (self._queue, self._urgent) for frame in q)
        return dropped

    def next_frame(self) -> OutFrame | None:
        queue = self._urgent or self._queue
        if not queue:
            return None
        frame = queue.popleft()
        self._queued -= frame.header.length
        self._kinds_out[frame.header.kind] += frame.header.length
        return frame

    # --- receiving ------------------------------------------------------------------------------

    def resume(self) -> None:
        """Lanes that wait for room in a sink ask again."""
        for lane in list(self._lanes.values()):
            lane.resume()

    def bulk_begins(self, header: BulkHeader) -> memoryview | Verdict:
        return self._owner.bulk_begins(self, header)

    def bulk_done(self, header: BulkHeader, payload: memoryview) -> None:
        self._owner.bulk_done(self, header, payload)

    def lane_read(self, nbytes: int) -> None:
        self._unreported += nbytes
        if self._unreported >= self._config.receipt_bytes:
            self._send_receipt()
        elif self._receipt_timer is None and nbytes:
            self._receipt_timer = self._loop.call_later(self._config.receipt_interval_s, self._send_receipt)

    def lane_wrote(self) -> None:
        if self._busy_lanes() != self._paced_for:
            self._apply_pace()

    def lane_broken(self, lane: Lane, reason: str, misbehaved: bool) -> None:
        if self.state is State.CLOSED:
            return
        if misbehaved:
            self.close(reason, farewell=reason, misbehaved=True)
            return
        if self._lanes.get(lane.index) is lane:
            del self._lanes[lane.index]
        self._count(lane)
        self._limbo[lane.serial] = lane
        self.send_control(encode_hop(LaneClosed(lane.serial, lane.received)))
        if lane.unfinished:
            self._owner.bulk_aborted(self, *lane.unfinished)
        if not self._lanes and self._gap_timer is None:
            self._gap_timer = self._loop.call_later(self._config.lane_gap_s, self._no_lane)
        self.changed.set()
        if len(self._limbo) > _MAX_LIMBO:
            self.close(f"the peer leaves broken lanes unanswered; the last one: {reason}", misbehaved=True)

    # --- inside ---------------------------------------------------------------------------------

    def _become_up(self) -> None:
        self.state = State.UP
        self._uplink.add(self)
        self._since = self._loop.time()
        if not self.up.done():
            self.up.set_result(self.info)
        self._owner.link_is_up(self)
        if self.state is State.UP and self._control is not None:
            if self.outgoing:
                self._control.start()
            self._ping()

    def _control_frame(self, frame: ControlFrame) -> None:
        if self.state is State.OPENING:
            raise RemoteProtocolError("it speaks before the link is up")
        if frame.dst == HOP:
            self._hop_message(decode_hop(frame.body))
        else:
            self._owner.control_received(self, frame)

    def _hop_message(self, message: HopMessage) -> None:
        if isinstance(message, Ping):
            self.send_control(encode_hop(Pong(message.sent_us)))
        elif isinstance(message, Pong):
            if self._ping_us and message.sent_us == self._ping_us:
                self._ping_us = 0
                self._rtts.append(self._loop.time() - message.sent_us / 1e6)
                self.meter.ramp_s = RAMP_ROUND_TRIPS * min(self._rtts)
        elif isinstance(message, Receipt):
            self._receipt(message)
        elif isinstance(message, LaneClosed):
            self._lane_closed(message)
        else:
            self.close(f"the peer closed the link: {message.reason}")

    def _receipt(self, receipt: Receipt) -> None:
        totals = dict(receipt.frames)
        for lane in list(self._lanes.values()):
            self._confirm(lane, totals.get(lane.serial, lane.sender.confirmed))
        if self._held:
            self._estimator.skip(receipt.nbytes, receipt.busy_us / 1e6)
            self._apply_pace()
        elif self._estimator.report(receipt.nbytes, receipt.busy_us / 1e6) or self._busy_lanes() != self._paced_for:
            self._apply_pace()

    def _lane_closed(self, message: LaneClosed) -> None:
        live = next((lane for lane in self._lanes.values() if lane.serial == message.serial), None)
        if live is not None:
            live.close()
            self.lane_broken(live, "the other end closed it", False)
        lane = self._limbo.pop(message.serial, None)
        if lane is None:
            self.send_control(encode_hop(LaneClosed(message.serial, 0)))
            return
        self._confirm(lane, message.received)
        again = lane.sender.unfinished()
        self._queue.extendleft(reversed(again))
        for frame in again:
            self._queued += frame.header.length
            self._kinds_out[frame.header.kind] -= frame.header.length
        for other in self._lanes.values():
            other.wake()

    def _confirm(self, lane: Lane, frames: int) -> None:
        try:
            confirmed = lane.sender.confirm(frames)
        except ValueError as error:
            raise RemoteProtocolError(f"a receipt is wrong: {error}") from error
        self._trains(-sum(frame.header.length for frame in confirmed if frame.urgent))
        for frame in confirmed:
            if frame.on_sent is not None:
                frame.on_sent()

    def _send_receipt(self) -> None:
        if self._receipt_timer is not None:
            self._receipt_timer.cancel()
            self._receipt_timer = None
        self._unreported = 0
        frames = tuple((lane.serial, lane.received) for lane in self._lanes.values())
        self.send_control(encode_hop(Receipt(frames, self.meter.nbytes, int(self.meter.busy_s * 1e6))))

    def _busy_lanes(self) -> int:
        return sum(lane.busy for lane in self._lanes.values() if not lane.local)

    def _apply_pace(self) -> None:
        """Share the link's pace among the lanes that have something to send.

        A share for one that idles would be lost: the next sample would be smaller, the pace after it again, and so on.
        """
        if not self._config.pacing or not self._lanes:
            return
        rate, part = self._estimator.pace(), 1.0 if self.relay_bytes else self._uplink.part_for(self)
        self._held = rate is not None and part < 1
        if rate is not None:
            rate = int(rate * part)
        self._paced_for = self._busy_lanes()
        for lane in self._lanes.values():
            if not lane.local:
                lane.pace(None if rate is None else rate // max(1, self._paced_for))

    def _trains(self, nbytes: int) -> None:
        """So many bytes more of training traffic are under way; those on this host take nothing of its uplink."""
        self._training += nbytes
        away = any(not lane.local for lane in self._lanes.values())
        rate = self._estimator.rate
        if away and rate:
            self._uplink.fills(self, self._training / rate)

    def give_way(self) -> None:
        if self.state is State.UP:
            self._apply_pace()

    def _ping(self) -> None:
        if not self._ping_us:
            self._ping_us = int(self._loop.time() * 1e6)
            self.send_control(encode_hop(Ping(self._ping_us)))
        self._ping_timer = self._loop.call_later(self._config.ping_interval_s, self._ping)

    def _control_lost(self, reason: str, misbehaved: bool) -> None:
        if self.state is State.OPENING:
            self.close("the other end gave it up")
        else:
            self.close(reason, misbehaved=misbehaved)

    def _no_lane(self) -> None:
        self._gap_timer = None
        reason = "no bulk connection could be made: check that the peer's port is open for several connections"
        self.close(reason, farewell=reason)

    def _cancel_gap(self) -> None:
        if self._gap_timer is not None:
            self._gap_timer.cancel()
            self._gap_timer = None

    def _count(self, lane: Lane) -> None:
        self._bulk_in += lane.bytes_in
        self._bulk_out += lane.sender.nbytes
