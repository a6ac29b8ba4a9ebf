"""Who is who: the key and certificate of a peer, the root certificate of a party, and signatures.

A peer is its Ed25519 key: the same key speaks TLS and signs the peer's statements. A party is the
fingerprint of its root certificate. Subject names are for people to read and decide nothing.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from chaos.core.errors import ChaosError
from chaos.core.types import PeerId

MAX_PEM_BYTES = 64 * 1024
"""A root of this project has some 700 bytes; nobody gets more than this parsed."""

MALFORMED = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What reading a strange certificate may raise."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""The whole of a name, as `chaos.core.types.Name` has it."""

_CONTEXT = b"chaos peer statement 1\x00"
"""Put before everything that is signed, so that no statement can pass for a TLS handshake or the reverse."""


def utc_now() -> datetime:
    """Certificates are the one place where wall clocks of different machines are compared."""
    return datetime.now(UTC)


def peer_id_of(public_key: bytes) -> PeerId:
    """The id that belongs to a raw Ed25519 public key (32 bytes)."""
    return PeerId(hashlib.sha256(public_key).hexdigest()[:16])


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """True if `Identity.sign(data)` with this key (raw, 32 bytes) gave this signature (64 bytes)."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, _CONTEXT + data)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_name(name: str, what: str) -> None:
    """ChaosError unless the name of a peer or party is fit for messages, file names and terminals."""
    if not _NAME.fullmatch(name):
        raise ChaosError(
            f"{name!r} cannot name a {what}: use 1 to 64 letters, digits, dots, dashes or underscores, "
            "the first one a letter or digit"
        )


@dataclass(frozen=True, slots=True)
class Root:
    """The self-signed certificate of a party's own authority."""

    cert: x509.Certificate

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER encoding, 64 hexadecimal digits. This is the party."""
        return hashlib.sha256(self.cert.public_bytes(serialization.Encoding.DER)).hexdigest()

    @property
    def name(self) -> str:
        return common_name(self.cert)

    @property
    def expires(self) -> datetime:
        return self.cert.not_valid_after_utc

    @property
    def key_id(self) -> bytes:
        """Subject key identifier; certificates made by this root name it as their authority's."""
        return self.cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest

    @property
    def pem(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.PEM)

    def issued(self, cert: x509.Certificate) -> bool:
        """True if this root's key signed the certificate."""
        try:
            cert.verify_directly_issued_by(self.cert)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer's key, with the certificate that its party gave it."""

    name: str
    key: Ed25519PrivateKey = field(repr=False)
    cert: x509.Certificate
    root: Root

    @property
    def public_key(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    @property
    def peer_id(self) -> PeerId:
        return peer_id_of(self.public_key)

    @property
    def party(self) -> str:
        """Fingerprint of the party's root."""
        return self.root.fingerprint

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The leaf and the root that signed it."""
        return (self.cert, self.root.cert)

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature, 64 bytes; see `verify`."""
        return self.key.sign(_CONTEXT + data)

    def secret_pem(self) -> bytes:
        """Key and leaf as TLS wants them. Holds the private key."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return key + self.cert.public_bytes(serialization.Encoding.PEM)


def common_name(cert: x509.Certificate) -> str:
    """The subject's common name, empty if it has none or several."""
    names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def read_root(pem: bytes, source: str) -> Root:
    """Parses one root certificate and checks all but its dates. ChaosError names `source`."""
    if b"PRIVATE KEY" in pem[:MAX_PEM_BYTES]:
        raise ChaosError(f"{source} holds a private key, which must not leave its party: hand over its ca.pem")
    try:
        (cert,) = x509.load_pem_x509_certificates(pem[:MAX_PEM_BYTES])
        flaw = _root_flaw(cert)
    except MALFORMED as error:
        raise ChaosError(
            f"{source} is not the root certificate of a party: ask for the ca.pem that `chaos party show` names there"
        ) from error
    if flaw:
        raise ChaosError(f"{source} cannot be a party's root ({flaw}): ask for one made by `chaos party init`")
    return Root(cert)


def _root_flaw(cert: x509.Certificate) -> str:
    """Why the certificate is no root of a party, or an empty string. May raise what is MALFORMED.

    The key identifier has to follow from the key: else a party could take that of another one, and
    break the other's links by making the choice of the root ambiguous.
    """
    key = cert.public_key()
    if not isinstance(key, Ed25519PublicKey):
        return "its key is not Ed25519"
    if not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        return "it is not a certificate authority"
    if not cert.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
        return "its key may not sign certificates"
    root = Root(cert)
    if root.key_id != x509.SubjectKeyIdentifier.from_public_key(key).digest:
        return "its key identifier is not that of its key"
    if not root.issued(cert):
        return "it is not signed by itself"
    if not _NAME.fullmatch(root.name):
        return f"{root.name!r} cannot name a party"
    return ""
