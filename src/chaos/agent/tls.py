"""TLS 1.3 between peers: contexts for both ends, who the other end is, and what a refusal means.

Both ends present a leaf that a known root signed. Host names are not checked: a peer is its key, not its
address. There is no resumption, so every connection is checked against the roots of its context; as a context
never forgets a root, evicting a party means making new contexts.

Under TLS 1.3 the client's handshake is complete before the server has seen its certificate. A client
that the server refuses learns it at its first read; a link is up only once the other end has spoken.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from chaos.agent.identity import MALFORMED, Identity, Root, peer_id_of, utc_now
from chaos.core.errors import RemoteProtocolError
from chaos.core.types import PeerId

_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ROOT = (18, 19, 20, 21)
"""OpenSSL's verify codes: self-signed leaf, unknown root in the chain, no issuer found, no chain at all."""


class Remote(NamedTuple):
    """Who is at the other end, as its certificate proves."""

    peer_id: PeerId
    public_key: bytes
    """Raw Ed25519 key, 32 bytes."""
    party: str
    """Fingerprint of the root that signed the leaf."""


class Connection(Protocol):
    """The part of `ssl.SSLObject` and `ssl.SSLSocket` that is needed here."""

    def getpeercert(self, binary_form: bool) -> bytes | None: ...


def server_context(identity: Identity, roots: Sequence[Root]) -> ssl.SSLContext:
    """For the end that listens. It lets in peers of the parties in `roots`, which must name its own too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    return _prepared(context, identity, roots)


def client_context(identity: Identity, roots: Sequence[Root]) -> ssl.SSLContext:
    """For the end that dials. See `server_context`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _prepared(context, identity, roots)


def remote_identity(connection: Connection, roots: Sequence[Root], now: datetime | None = None) -> Remote:
    """Who the other end is. Only after the handshake; `roots` are those of the connection's context.

    OpenSSL has verified the chain but does not tell by which root, so this finds it and checks
    again all that matters. RemoteProtocolError for anything but a leaf of one of the roots.
    """
    der = connection.getpeercert(binary_form=True)
    if der is None:
        raise RemoteProtocolError("the remote gave no certificate: it must run `chaos` with a party of its own")
    try:
        cert = x509.load_der_x509_certificate(der)
        flaw = _leaf_flaw(cert, now or utc_now())
        issuer = _issuer(cert, roots)
        key = cert.public_key()
    except MALFORMED as error:
        raise RemoteProtocolError(
            f"the remote's certificate is not that of a peer ({error}): it needs one made by `chaos party`"
        ) from error
    if flaw or not isinstance(key, Ed25519PublicKey):
        flaw = flaw or "its key is not Ed25519"
        raise RemoteProtocolError(
            f"the remote's certificate is not that of a peer ({flaw}): it needs one made by `chaos party`"
        )
    if issuer is None:
        raise RemoteProtocolError(_not_admitted(None))
    public_key = key.public_bytes_raw()
    return Remote(peer_id_of(public_key), public_key, issuer.fingerprint)


def explain(error: ssl.SSLError, identity: Identity, party: str | None = None, now: datetime | None = None) -> str:
    """One line: what a TLS error means and what to do.

    `identity` is this end's. `party` is the fingerprint of the party expected at the other end,
    if known (from an invite or a view); a refused certificate itself can't be read.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_refusal(error, party)
    reason = error.reason or ""
    if "UNKNOWN_CA" in reason:
        return (
            f"the party with fingerprint {identity.party} (this one) is not admitted there: hand its "
            "ca.pem to the remote's operator, for `chaos party admit FILE`"
        )
    if "CERTIFICATE_EXPIRED" in reason:
        return _explain_own_expiry(identity, now or utc_now())
    if "ALERT" in reason and "CERTIFICATE" in reason:
        return f"the remote refused this peer's certificate ({_plain(reason)}): make both ends the same version"
    if "VERSION" in reason or "PROTOCOL" in reason or "HTTP" in reason:
        return f"the remote does not speak TLS 1.3 ({_plain(reason)}): check that a chaos agent listens there"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "EOF" in reason:
        return "the remote closed the connection in the middle of the handshake: see its log for the reason"
    return f"TLS failed ({_plain(reason) or error}): see the remote's log for its side of it"


def _prepared(context: ssl.SSLContext, identity: Identity, roots: Sequence[Root]) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata="".join(root.pem.decode("ascii") for root in roots))
    _load_identity(context, identity)
    return context


def _load_identity(context: ssl.SSLContext, identity: Identity) -> None:
    """The ssl module takes keys from files only; an anonymous one keeps the key off every disk."""
    descriptor = os.memfd_create("chaos-identity")
    with os.fdopen(descriptor, "wb") as file:
        file.write(identity.secret_pem())
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def _leaf_flaw(cert: x509.Certificate, now: datetime) -> str:
    """Why the certificate can't be a peer's leaf, or an empty string."""
    if not cert.not_valid_before_utc <= now <= cert.not_valid_after_utc:
        return f"valid from {cert.not_valid_before_utc:%Y-%m-%d} to {cert.not_valid_after_utc:%Y-%m-%d}"
    if cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        return "it is a certificate authority's"
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    if not usage.digital_signature or usage.key_cert_sign:
        return "its key is not for signing handshakes only"
    purposes = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= set(purposes):
        return "it is not for both ends of a connection"
    return ""


def _issuer(cert: x509.Certificate, roots: Sequence[Root]) -> Root | None:
    """The root that the leaf names as its authority, and whose key did sign it."""
    authority = cert.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    named = (root for root in roots if root.key_id == authority)
    return next((root for root in named if root.issued(cert)), None)


def _explain_refusal(error: ssl.SSLCertVerificationError, party: str | None) -> str:
    if error.verify_code in _UNKNOWN_ROOT:
        return _not_admitted(party)
    if error.verify_code == _EXPIRED:
        return (
            "the remote's certificate expired (or this clock is ahead): restart that peer, which renews it, "
            "or have its party make a new root if that is what expired"
        )
    if error.verify_code == _NOT_YET_VALID:
        return "the remote's certificate is not valid yet: compare the clocks of both machines"
    return f"the remote's certificate was refused ({error.verify_message}): it needs one made by `chaos party`"


def _explain_own_expiry(identity: Identity, now: datetime) -> str:
    root = identity.root
    if root.expires <= now:
        return (
            f"the root of this peer's party expired on {root.expires:%Y-%m-%d}: make a new party with "
            "`chaos party init --dir DIR` and have it admitted"
        )
    expires = identity.cert.not_valid_after_utc
    if expires <= now:
        return f"this peer's certificate expired on {expires:%Y-%m-%d}: restart the peer, which renews it"
    return (
        f"the remote takes this peer's certificate for expired, though it is valid until {expires:%Y-%m-%d}: "
        "compare the clocks of both machines"
    )


def _not_admitted(party: str | None) -> str:
    who = f"the party with fingerprint {party}" if party else "the remote's party"
    return f"{who} is not admitted here: get its ca.pem and run `chaos party admit FILE`"


def _plain(reason: str) -> str:
    return reason.lower().replace("_", " ")
