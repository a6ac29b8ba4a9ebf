"""Settings of the transport. Nothing here changes what is sent, only when and how much at a time."""

from __future__ import annotations

from dataclasses import dataclass

from chaos.core.errors import ChaosError

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """Every default names its source; "guess" means that nobody has measured it."""

    lanes: int = 2
    """Bulk connections per link. One connection is capped at send buffer / round trip (4 MiB / 100 ms = 40 MB/s)."""
    handshake_timeout_s: float = 5.0
    """For connecting, and again for TLS with hello. A handshake over a 300 ms round trip takes 1.2 s."""
    backoff_first_s: float = 0.1
    """First pause between two rounds over a peer's addresses (guess: a restarted agent listens after about 0.3 s)."""
    backoff_max_s: float = 5.0
    """Longest such pause (guess: what an operator who plugs a cable back in waits without noticing)."""
    quarantine_s: float = 5.0
    """How long a peer dropped for misbehaviour is neither dialed nor accepted (guess)."""
    lane_gap_s: float = 10.0
    """A link without any bulk lane for this long is down: twice the time one dial may take."""
    control_timeout_s: float = 30.0
    """TCP gives a control connection up when the peer's host takes nothing for so long; the detector is far quicker."""
    lane_timeout_s: float = 120.0
    """The same for a lane, where a sink may pause; it is then dialed anew, and nothing is lost."""
    ping_interval_s: float = 1.0
    """Between two measurements of the round-trip time; 60 bytes each."""
    max_pending: int = 128
    """Accepted connections that have not proven who they are; one more closes the oldest (guess)."""
    max_clients: int = 64
    """Client connections (status, leave, observers) served at a time (guess)."""
    client_idle_s: float = 60.0
    """A client that asks nothing for this long is disconnected (guess)."""
    control_queue_bytes: int = 16 * MIB
    """Unsent control bytes per link; more means the peer has stopped reading, and drops the link."""
    bulk_queue_frames: int = 65536
    """Queued bulk frames per link; about 400 bytes each besides the caller's payload."""
    relay_bytes: int = 64 * MIB
    """Memory for payloads of other peers on their way through, per outgoing link: four frames of the largest size."""
    tls_budget: int = 512 * KIB
    """Bulk bytes one TLS connection reads or writes per turn of the event loop: 0.5 ms at 1 GB/s."""
    plain_budget: int = 2 * MIB
    """The same for plain connections: 0.5 ms at 4 GB/s."""
    receipt_interval_s: float = 0.05
    """A receiver confirms frames this often at the latest: bounds how long memory of sent frames is held."""
    receipt_bytes: int = 4 * MIB
    """A receiver confirms frames after this many bytes: one message of 60 bytes per 4 MiB."""
    pacing: bool = True
    """Pace bulk on links to other hosts, so that control does not wait behind it in the network's queues."""
    close_flush_s: float = 0.2
    """How long closing waits for queued control frames to leave."""

    def __post_init__(self) -> None:
        if not 1 <= self.lanes <= MAX_LANES:
            raise ChaosError(f"lanes is {self.lanes}: choose 1 to {MAX_LANES}")


MAX_LANES = 16
"""Bulk connections that one link may have; a hello beyond it is refused."""
