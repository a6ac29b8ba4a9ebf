"""What a transport calls back. All calls come from the event loop's thread, one at a time."""

from __future__ import annotations

from typing import Protocol

from chaos.agent.transport.bulk import Verdict
from chaos.agent.transport.frames import BulkHeader
from chaos.core.types import PeerInfo


class Handlers(Protocol):
    """`peer` is the link that something came over; `src` is who sent it first, perhaps through relays.

    A relay is trusted with `src`: it is proven by a certificate only where it equals the link's peer. `on_control`,
    `bulk_sink` and `on_bulk` may raise RemoteProtocolError: the link it came over is dropped, and the peer is not
    dialed or accepted for a while.
    """

    def on_link_up(self, info: PeerInfo, run: str) -> None:
        """Control and bulk can be sent. `run` is the run the peer takes part in; empty: it does not know yet."""

    def on_link_down(self, peer: str, reason: str) -> None:
        """Queued and unconfirmed bulk for this link is forgotten: send again what still matters, on the next one.

        Also after `disconnect`, before that returns.
        """

    def on_refused(self, address: str, reason: str) -> None:
        """A wanted peer could not be reached at this address. Called once per reason while tries go on."""

    def on_control(self, src: str, body: bytes) -> None: ...

    def bulk_sink(self, peer: str, header: BulkHeader) -> memoryview | Verdict:
        """Where the payload goes: a writable buffer of exactly `header.length` bytes, DISCARD or PAUSE.

        After PAUSE the connection stands still, and the sink is asked again after `Transport.resume_bulk`.
        """

    def on_bulk(self, peer: str, header: BulkHeader, payload: memoryview) -> None:
        """The buffer that `bulk_sink` gave is full."""

    def bulk_aborted(self, peer: str, header: BulkHeader, payload: memoryview) -> None:
        """The buffer that `bulk_sink` gave will not be filled. If the link stands, the frame comes again from its
        beginning, and the sink is asked again."""

    async def on_client(self, payload: bytes, party: str) -> bytes:
        """Answers a client's request. `party` is the fingerprint of the client's party; empty in plain mode."""
