"""What the transport needs to know about certificates, and the two kinds of it: TLS, and plain for comparisons."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Protocol, cast

from chaos.agent import tls
from chaos.agent.identity import Identity as OwnIdentity
from chaos.agent.identity import Root
from chaos.agent.transport.hello import Identity


class Security(Protocol):
    """Contexts for both ends of a connection, and who the other end is. Replaced as a whole, never changed."""

    @property
    def plain(self) -> bool:
        """True: no TLS at all; the other methods are not called."""

    def server_context(self) -> ssl.SSLContext: ...

    def client_context(self) -> ssl.SSLContext: ...

    def identify(self, connection: ssl.SSLObject) -> Identity:
        """Who the other end is, after the handshake. Raises RemoteProtocolError if its certificate is unfit."""

    def explain(self, error: ssl.SSLError) -> str:
        """One line: what a TLS error means and what to do."""


class TlsSecurity:
    """TLS 1.3 with this peer's certificate; lets in peers of the parties in `roots`."""

    plain = False

    def __init__(self, own: OwnIdentity, roots: Sequence[Root]) -> None:
        self._own = own
        self._roots = tuple(roots)
        self._server = tls.server_context(own, roots)
        self._client = tls.client_context(own, roots)

    def server_context(self) -> ssl.SSLContext:
        return self._server

    def client_context(self) -> ssl.SSLContext:
        return self._client

    def identify(self, connection: ssl.SSLObject) -> Identity:
        return Identity(*tls.remote_identity(cast(tls.Connection, connection), self._roots))

    def explain(self, error: ssl.SSLError) -> str:
        return tls.explain(error, self._own)


class PlainSecurity:
    """No encryption and no proof of identity. For tests and comparisons on one machine only."""

    plain = True

    def server_context(self) -> ssl.SSLContext:
        raise NotImplementedError("plain mode has no TLS context")

    def client_context(self) -> ssl.SSLContext:
        raise NotImplementedError("plain mode has no TLS context")

    def identify(self, connection: ssl.SSLObject) -> Identity:
        raise NotImplementedError("plain mode proves no identity")

    def explain(self, error: ssl.SSLError) -> str:
        return str(error)
