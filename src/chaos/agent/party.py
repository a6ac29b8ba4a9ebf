"""A party is its own certificate authority, kept in a directory. Its private key never leaves that directory.

    ca.key, ca.pem        the authority; ca.pem is handed to others, and makes the directory a party
    admitted/*.pem        the roots of the parties that this one admits
    peers/NAME.key, .pem  a key per peer, and the certificate for it
    lock                  held by whoever writes

Every file is complete or absent, so reading needs no lock. A peer keeps its key, and with it its id, when its
certificate is renewed. Where ca.key is absent, peers that were issued elsewhere can be used, but not renewed.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaos.agent.identity import MAX_PEM_BYTES, Identity, Root, check_name, read_root, utc_now
from chaos.core.errors import ChaosError

ROOT_LIFE = timedelta(days=3652)
LEAF_LIFE = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
CLOCK_SKEW = timedelta(hours=1)
"""Certificates start this long ago: the clocks of other parties may be behind."""

LOCK_WAIT_S = 10.0
"""Whoever holds the lock writes two small files; more than this means that it hangs."""

SERVER_NAME = "chaos-peer"
"""Subject alternative name of every leaf. Nobody checks it; some tools refuse certificates without one."""

Clock = Callable[[], datetime]


def default_directory() -> Path:
    """Where a party lies if nobody says otherwise."""
    return Path.home() / ".config" / "chaos" / "party"


class Party:
    """A party's directory. Made by `init`, `open` or `open_or_init`; all raise ChaosError if they can't."""

    def __init__(self, directory: Path, root: Root, clock: Clock) -> None:
        self.directory = directory
        self.root = root
        self._clock = clock

    @classmethod
    def init(cls, directory: Path, name: str, clock: Clock = utc_now) -> Party:
        """Makes a new party. Refuses a directory that holds one."""
        check_name(name, "party")
        with _locked(directory):
            if _exists(directory / "ca.pem"):
                raise ChaosError(f"{directory} already holds a party: `chaos party show` describes it")
            _make_root(directory, name, clock())
        return cls.open(directory, clock)

    @classmethod
    def open(cls, directory: Path, clock: Clock = utc_now) -> Party:
        """Opens the party in the directory."""
        if not _exists(directory / "ca.pem"):
            raise ChaosError(f"there is no party in {directory}: make one with `chaos party init`")
        return cls(directory, _read_root_file(directory / "ca.pem"), clock)

    @classmethod
    def open_or_init(cls, directory: Path, name: str, clock: Clock = utc_now) -> Party:
        """Opens the party in the directory, which is made under this name if there is none."""
        if not _exists(directory / "ca.pem"):
            check_name(name, "party")
            with _locked(directory):
                if not _exists(directory / "ca.pem"):
                    _make_root(directory, name, clock())
        return cls.open(directory, clock)

    @property
    def fingerprint(self) -> str:
        """The party: SHA-256 of its root certificate, 64 hexadecimal digits."""
        return self.root.fingerprint

    @property
    def name(self) -> str:
        """For people; two parties may bear the same."""
        return self.root.name

    @property
    def root_file(self) -> Path:
        """What to hand to other parties."""
        return self.directory / "ca.pem"

    def admit(self, pem: bytes, source: str = "this file") -> str:
        """Admits the party with this root certificate and returns its fingerprint. Twice is fine.

        ChaosError (naming `source`) for what is no party's root, is out of date, or is this party itself.
        """
        root = read_root(pem, source)
        now = self._clock()
        if root.expires <= now:
            raise ChaosError(f"{source} expired on {root.expires:%Y-%m-%d}: ask that party for a new root")
        if root.cert.not_valid_before_utc > now:
            raise ChaosError(f"{source} is not valid yet: compare the clocks of both machines")
        if root.fingerprint == self.fingerprint:
            raise ChaosError(f"{source} is the root of this party itself: admit the roots of others")
        with _locked(self.directory):
            for other in self.roots():
                if other.fingerprint == root.fingerprint:
                    return root.fingerprint
                if other.key_id == root.key_id:
                    raise ChaosError(
                        f"{source} has the key of party {other.fingerprint[:16]}, which is known here: "
                        "remove that one first"
                    )
            _write(self.admitted_file(root.fingerprint), root.pem, mode=0o644)
        return root.fingerprint

    def admitted_file(self, fingerprint: str) -> Path:
        """Where the root of an admitted party lies."""
        return self.directory / "admitted" / f"{fingerprint[:16]}.pem"

    def admitted(self) -> list[Root]:
        """The admitted parties' roots in order of fingerprint, expired ones included."""
        return [_read_root_file(path) for path in sorted((self.directory / "admitted").glob("*.pem"))]

    def roots(self) -> list[Root]:
        """All roots whose peers are trusted: this party's own, then the admitted ones."""
        return [self.root, *self.admitted()]

    def peer(self, name: str) -> Identity:
        """The identity of the peer with this name: made at first, renewed before it expires.

        ChaosError if a certificate is needed and ca.key is absent or the root has expired.
        """
        check_name(name, "peer")
        may_renew = _exists(self.directory / "ca.key")
        identity = self._load_peer(name, may_renew)
        if identity is None:
            with _locked(self.directory):
                identity = self._issue_peer(name)
        return identity

    def _load_peer(self, name: str, may_renew: bool) -> Identity | None:
        """The identity on disk, or None if it is absent, out of date, due for renewal or another root's."""
        key_path = self.directory / "peers" / f"{name}.key"
        if not (_exists(key_path) and _exists(key_path.with_suffix(".pem"))):
            return None
        key = _read_key(key_path)
        cert = _read_leaf(key_path.with_suffix(".pem"))
        good_for = RENEW_BEFORE if may_renew else timedelta(0)
        good_until = min(self._clock() + good_for, self.root.expires)
        if cert.public_key() != key.public_key() or not self.root.issued(cert):
            return None
        if cert.not_valid_after_utc < good_until or cert.not_valid_after_utc <= self._clock():
            return None
        return Identity(name, key, cert, self.root)

    def _issue_peer(self, name: str) -> Identity:
        ca_path = self.directory / "ca.key"
        if not _exists(ca_path):
            raise ChaosError(
                f"peer {name} needs a certificate and {ca_path} is absent: make peers/{name}.key and "
                f"peers/{name}.pem where the party's key is, and copy them here"
            )
        if self.root.expires <= self._clock():
            raise ChaosError(
                f"the root of party {self.name} expired on {self.root.expires:%Y-%m-%d}: make a new party "
                "with `chaos party init --dir DIR` and have it admitted"
            )
        ca_key = _read_key(ca_path)
        if ca_key.public_key() != self.root.cert.public_key():
            raise ChaosError(f"{ca_path} is not the key of ca.pem beside it: restore the one that is")
        key_path = self.directory / "peers" / f"{name}.key"
        if _exists(key_path):
            key = _read_key(key_path)
        else:
            key = _new_key(key_path)
        cert = issue_leaf(ca_key, self.root, key.public_key(), name, self._clock())
        _write(key_path.with_suffix(".pem"), cert.public_bytes(serialization.Encoding.PEM), mode=0o644)
        return Identity(name, key, cert, self.root)


def issue_leaf(
    ca_key: Ed25519PrivateKey, root: Root, public_key: Ed25519PublicKey, name: str, now: datetime
) -> x509.Certificate:
    """A peer's certificate for one year, but no longer than the root itself is valid."""
    return (
        _builder(name, public_key, now, min(now + LEAF_LIFE, root.expires))
        .issuer_name(root.cert.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(root.key_id, None, None), critical=False)
        .sign(ca_key, None)
    )


def _make_root(directory: Path, name: str, now: datetime) -> None:
    """Writes ca.key, then ca.pem. A key left by a crash in between is used, never overwritten."""
    key_path = directory / "ca.key"
    key = _read_key(key_path) if _exists(key_path) else _new_key(key_path)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    cert = (
        _builder(name, key.public_key(), now, now + ROOT_LIFE)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )
    _write(directory / "ca.pem", cert.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(name: str, public_key: Ed25519PublicKey, now: datetime, expires: datetime) -> x509.CertificateBuilder:
    """What root and leaf have in common."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(path, pem, mode=0o600)
    return key


def _read_key(path: Path) -> Ed25519PrivateKey:
    pem = read_file(path)
    if path.stat().st_mode & 0o077:
        raise ChaosError(f"{path} is open to other users: run `chmod 600 {path}`")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ChaosError(f"{path} is not a private key: restore it, or remove it to have a new one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ChaosError(f"{path} is not an Ed25519 key: restore it, or remove it to have a new one")
    return key


def _read_leaf(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(path))
    except ValueError as error:
        raise ChaosError(f"{path} is not a certificate: remove it, it will be made again") from error


def _read_root_file(path: Path) -> Root:
    return read_root(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """The content of a key or certificate file. ChaosError if it can't be read or is too large to be one."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ChaosError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_PEM_BYTES:
        raise ChaosError(f"{path} is too large for a key or certificate: give a PEM file")
    return content


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise ChaosError(f"cannot look for {path}: {error.strerror}") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Puts a complete file in place at once. mkstemp gives it mode 0600 while it is being written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ChaosError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lets one process at a time change the directory, which is made if need be."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / "lock").open("ab")
    except OSError as error:
        raise ChaosError(f"cannot write to {directory}: {error.strerror}") from error
    with file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise ChaosError(f"{directory}/lock is held by another process: see what it is, or end it")
            time.sleep(0.02)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
