"""Handshakes between parties over memory buffers: who gets in, who is told what, and who the remote is."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaos.agent.identity import Identity, Root
from chaos.agent.party import Party, issue_leaf
from chaos.agent.tls import Remote, client_context, explain, remote_identity, server_context
from chaos.core.errors import RemoteProtocolError

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@dataclass
class End:
    """One end of a connection. `error` is the first TLS error it met."""

    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    done: bool = False
    error: ssl.SSLError | None = None
    received: bytes = b""

    def advance(self) -> None:
        """As far as it gets with what has arrived: the handshake first, then one read."""
        try:
            if not self.done:
                self.tls.do_handshake()
                self.done = True
            self.received += self.tls.read(1024)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error


@dataclass
class Wire:
    """A client and a server joined by memory, without threads or sockets."""

    client: End
    server: End

    def exchange(self) -> Wire:
        """Carries bytes to and fro until nothing moves any more."""
        for _ in range(20):
            moved = 0
            for end, other in ((self.client, self.server), (self.server, self.client)):
                if end.error is None:
                    end.advance()
                moved += other.incoming.write(end.outgoing.read())
            if not moved:
                return self
        raise AssertionError("the two ends never came to rest")


def connect(client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Wire:
    def end(context: ssl.SSLContext, server_side: bool) -> End:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(
            incoming,
            outgoing,
            server_side=server_side,
            server_hostname=None if server_side else "host.example",
            session=None if server_side else session,
        )
        return End(tls, incoming, outgoing)

    return Wire(end(client, False), end(server, True)).exchange()


def party(directory: Path, name: str, age: timedelta = 0 * DAY) -> Party:
    return Party.init(directory / f"{name}-{age.days}", name, lambda: NOW - age)


def dial(client: Identity, client_roots: list[Root], server: Identity, server_roots: list[Root]) -> Wire:
    return connect(client_context(client, client_roots), server_context(server, server_roots))


# --- getting in ---------------------------------------------------------------------------------------


def test_peers_of_two_parties_that_admit_each_other(tmp_path: Path) -> None:
    north, south = party(tmp_path, "north"), party(tmp_path, "south")
    north.admit(south.root.pem)
    south.admit(north.root.pem)
    a, b = north.peer("a"), south.peer("b")
    wire = dial(a, north.roots(), b, south.roots())
    assert wire.client.error is None and wire.server.error is None
    assert wire.client.tls.version() == "TLSv1.3"
    seen_by_client = remote_identity(wire.client.tls, north.roots())
    seen_by_server = remote_identity(wire.server.tls, south.roots())
    assert seen_by_client == Remote(b.peer_id, b.public_key, south.fingerprint)
    assert seen_by_server == Remote(a.peer_id, a.public_key, north.fingerprint)
    wire.client.tls.write(b"hello")
    assert wire.exchange().server.received == b"hello"


def test_peers_of_one_party(tmp_path: Path) -> None:
    lab = party(tmp_path, "lab")
    wire = dial(lab.peer("a"), lab.roots(), lab.peer("b"), lab.roots())
    assert remote_identity(wire.server.tls, lab.roots()).party == lab.fingerprint


def test_parties_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Roots are looked up by subject first; all of them, not the first only, have to be tried."""
    parties = [party(tmp_path / str(number), "lab") for number in range(3)]
    roots = [one.root for one in parties]
    for client in parties:
        for server in parties:
            wire = dial(client.peer("a"), roots, server.peer("b"), roots)
            assert wire.client.error is None and wire.server.error is None
            assert remote_identity(wire.server.tls, roots).party == client.fingerprint
            assert remote_identity(wire.client.tls, roots).party == server.fingerprint


def test_no_session_outlives_its_connection(tmp_path: Path) -> None:
    """A resumed session would get in without a certificate, even that of an evicted party."""
    lab = party(tmp_path, "lab")
    client = client_context(lab.peer("a"), lab.roots())
    server = server_context(lab.peer("b"), lab.roots())
    first = connect(client, server)
    assert server.num_tickets == 0
    session = first.client.tls.session
    assert session is None or not session.has_ticket
    again = connect(client, server, session)
    assert again.server.error is None
    assert not again.client.tls.session_reused and not again.server.tls.session_reused


def test_private_keys_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = party(tmp_path, "lab")
    identity = lab.peer("a")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("TMPDIR", str(empty))
    monkeypatch.chdir(empty)
    server_context(identity, lab.roots())
    assert list(empty.iterdir()) == []


# --- being refused ------------------------------------------------------------------------------------


def test_a_refused_client_learns_it_at_its_first_read(tmp_path: Path) -> None:
    """Its handshake is complete before the server has seen its certificate."""
    north, south = party(tmp_path, "north"), party(tmp_path, "south")
    client = client_context(north.peer("a"), [north.root, south.root]).wrap_bio(
        to_client := ssl.MemoryBIO(), from_client := ssl.MemoryBIO()
    )
    server = server_context(south.peer("b"), [south.root]).wrap_bio(
        to_server := ssl.MemoryBIO(), from_server := ssl.MemoryBIO(), server_side=True
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    to_server.write(from_client.read())
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    to_client.write(from_server.read())

    client.do_handshake()  # succeeds
    with pytest.raises(ssl.SSLWantReadError):
        client.read(1)

    to_server.write(from_client.read())
    with pytest.raises(ssl.SSLCertVerificationError):
        server.do_handshake()
    to_client.write(from_server.read())
    with pytest.raises(ssl.SSLError) as caught:
        client.read(1)
    line = explain(caught.value, north.peer("a"))
    assert line.startswith(f"the party with fingerprint {north.fingerprint} (this one) is not admitted there")
    assert "`chaos party admit FILE`" in line


def test_the_server_says_whom_it_does_not_know(tmp_path: Path) -> None:
    north, south = party(tmp_path, "north"), party(tmp_path, "south")
    wire = dial(north.peer("a"), [north.root, south.root], south.peer("b"), [south.root])
    assert wire.client.done and not wire.server.done
    assert wire.server.error is not None
    here = south.peer("b")
    remedy = " is not admitted here: get its ca.pem and run `chaos party admit FILE`"
    assert explain(wire.server.error, here) == "the remote's party" + remedy
    named = explain(wire.server.error, here, party=north.fingerprint)
    assert named == f"the party with fingerprint {north.fingerprint}" + remedy


def test_a_client_refuses_a_server_it_does_not_know(tmp_path: Path) -> None:
    north, south = party(tmp_path, "north"), party(tmp_path, "south")
    wire = dial(north.peer("a"), [north.root], south.peer("b"), [north.root, south.root])
    assert not wire.client.done and not wire.server.done
    assert wire.client.error is not None and wire.server.error is not None
    line = explain(wire.client.error, north.peer("a"), party=south.fingerprint)
    assert line.startswith(f"the party with fingerprint {south.fingerprint} is not admitted here")
    assert "(this one) is not admitted there" in explain(wire.server.error, south.peer("b"))


def expired_leaf(lab: Party, directory: Path) -> Identity:
    """A peer's identity that was right until a month ago, under a root that still is."""
    key = Ed25519PrivateKey.generate()
    ca_key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, Ed25519PrivateKey)
    cert = issue_leaf(ca_key, lab.root, key.public_key(), "old", NOW - 395 * DAY)
    return Identity("old", key, cert, lab.root)


def test_an_expired_leaf_of_the_client(tmp_path: Path) -> None:
    lab = party(tmp_path, "lab", 400 * DAY)
    old = expired_leaf(lab, lab.directory)
    wire = dial(old, lab.roots(), lab_peer(lab), lab.roots())
    assert wire.client.done and not wire.server.done
    assert wire.server.error is not None and wire.client.error is not None
    assert "the remote's certificate expired" in explain(wire.server.error, lab_peer(lab))
    day = f"{NOW - 30 * DAY:%Y-%m-%d}"
    assert explain(wire.client.error, old) == (
        f"this peer's certificate expired on {day}: restart the peer, which renews it"
    )


def lab_peer(lab: Party) -> Identity:
    """A good peer of a party that was made long ago."""
    return Party.open(lab.directory).peer("b")


def test_an_expired_leaf_of_the_server(tmp_path: Path) -> None:
    lab = party(tmp_path, "lab", 400 * DAY)
    wire = dial(lab_peer(lab), lab.roots(), expired_leaf(lab, lab.directory), lab.roots())
    assert not wire.client.done and wire.client.error is not None
    assert "the remote's certificate expired" in explain(wire.client.error, lab_peer(lab))


def long_lived_leaf(old: Party, name: str) -> Identity:
    """A leaf that is valid today, by an authority whose own root is not."""
    identity = old.peer(name)
    ca_key = serialization.load_pem_private_key((old.directory / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, Ed25519PrivateKey)
    return replace(identity, cert=crafted(ca_key, old.root, key=identity.key))


def test_an_expired_root(tmp_path: Path) -> None:
    old, lab = party(tmp_path, "old", 3700 * DAY), party(tmp_path, "lab")
    roots = [lab.root, old.root]
    client = long_lived_leaf(old, "a")
    wire = dial(client, roots, lab.peer("b"), roots)
    assert not wire.server.done
    assert wire.server.error is not None and wire.client.error is not None
    assert "the remote's certificate expired" in explain(wire.server.error, lab.peer("b"))
    line = explain(wire.client.error, client)
    assert line.startswith(f"the root of this peer's party expired on {old.root.expires:%Y-%m-%d}")
    wire = dial(lab.peer("b"), roots, client, roots)
    assert not wire.client.done and isinstance(wire.client.error, ssl.SSLCertVerificationError)


def test_eviction_takes_a_new_context(tmp_path: Path) -> None:
    """A context keeps its roots for good: the old one would go on letting the party in."""
    north, south = party(tmp_path, "north"), party(tmp_path, "south")
    both = [north.root, south.root]
    client = client_context(north.peer("a"), both)
    before = server_context(south.peer("b"), both)
    first = connect(client, before)
    assert first.server.error is None
    after = server_context(south.peer("b"), [south.root])
    wire = connect(client, after, first.client.tls.session)
    assert not wire.server.done
    assert isinstance(wire.server.error, ssl.SSLCertVerificationError)
    assert connect(client, before).server.error is None


def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    lab = party(tmp_path, "lab")
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=lab.root.pem.decode())
    wire = connect(bare, server_context(lab.peer("b"), lab.roots()))
    assert not wire.server.done and wire.server.error is not None
    assert wire.client.error is not None
    assert "the remote refused this peer's certificate" in explain(wire.client.error, lab.peer("a"))


@pytest.mark.parametrize("old_end", ["client", "server"])
def test_older_tls_is_refused_by_both_ends(tmp_path: Path, old_end: str) -> None:
    lab = party(tmp_path, "lab")
    client = client_context(lab.peer("a"), lab.roots())
    server = server_context(lab.peer("b"), lab.roots())
    old = client if old_end == "client" else server
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    wire = connect(client, server)
    assert not wire.client.done and not wire.server.done
    errors = [end.error for end in (wire.client, wire.server) if end.error is not None]
    assert errors and all("does not speak TLS 1.3" in explain(e, lab.peer("a")) for e in errors)


def test_something_else_on_the_port(tmp_path: Path) -> None:
    lab = party(tmp_path, "lab")
    wire = connect(client_context(lab.peer("a"), lab.roots()), server_context(lab.peer("b"), lab.roots()))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    tls = client_context(lab.peer("a"), lab.roots()).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLError) as caught:
        tls.do_handshake()
    assert "check that a chaos agent listens there" in explain(caught.value, lab.peer("a"))
    assert wire.client.error is None


def test_a_connection_that_ends_early(tmp_path: Path) -> None:
    lab = party(tmp_path, "lab")
    incoming = ssl.MemoryBIO()
    incoming.write_eof()
    tls = client_context(lab.peer("a"), lab.roots()).wrap_bio(incoming, ssl.MemoryBIO())
    with pytest.raises(ssl.SSLError) as caught:
        tls.do_handshake()
    assert "closed the connection" in explain(caught.value, lab.peer("a"))


def test_clocks_that_disagree_are_named(tmp_path: Path) -> None:
    """The remote's alert says 'expired', but by this end's clock nothing is."""
    lab = party(tmp_path, "lab", 400 * DAY)
    old = expired_leaf(lab, lab.directory)
    wire = dial(old, lab.roots(), lab_peer(lab), lab.roots())
    assert wire.client.error is not None
    assert "compare the clocks" in explain(wire.client.error, old, now=NOW - 40 * DAY)


# --- who it is: certificates that no handshake of ours would bring ------------------------------------


@dataclass
class FakeConnection:
    """Gives out a certificate as a connection does after its handshake."""

    certificate: bytes | None

    def getpeercert(self, binary_form: bool) -> bytes | None:
        assert binary_form
        return self.certificate


@dataclass
class Authority:
    """A root with its key at hand."""

    root: Root
    key: Ed25519PrivateKey


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    lab = party(tmp_path, "lab")
    key = serialization.load_pem_private_key((lab.directory / "ca.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return Authority(lab.root, key)


def crafted(
    signer: Ed25519PrivateKey,
    root: Root,
    *,
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | None = None,
    start: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    ca: bool = False,
    digital_signature: bool = True,
    cert_sign: bool = False,
    purposes: tuple[x509.ObjectIdentifier, ...] = (
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    ),
    authority_id: bytes | None = None,
) -> x509.Certificate:
    """A leaf as `issue_leaf` would never make it."""
    public_key = (key or Ed25519PrivateKey.generate()).public_key()
    unused = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    usage = x509.KeyUsage(digital_signature=digital_signature, key_cert_sign=cert_sign, **unused)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "crafted")]))
        .issuer_name(root.cert.subject)
        .public_key(public_key)
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
        .add_extension(x509.AuthorityKeyIdentifier(authority_id or root.key_id, None, None), False)
    )
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
    return builder.sign(signer, None)


def der(cert: x509.Certificate) -> FakeConnection:
    return FakeConnection(cert.public_bytes(serialization.Encoding.DER))


def test_a_crafted_leaf_without_flaw_is_accepted(authority: Authority) -> None:
    """Shows that the refusals below are for the reasons they name."""
    connection = der(crafted(authority.key, authority.root))
    assert remote_identity(connection, [authority.root]).party == authority.root.fingerprint


FLAWS: dict[str, tuple[Callable[[Authority], x509.Certificate], str]] = {
    "expired": (lambda a: crafted(a.key, a.root, end=NOW - timedelta(hours=1)), "valid from"),
    "not yet valid": (lambda a: crafted(a.key, a.root, start=NOW + timedelta(hours=1)), "valid from"),
    "an authority": (lambda a: crafted(a.key, a.root, ca=True), "certificate authority's"),
    "the root itself": (lambda a: a.root.cert, "certificate authority's"),
    "may not sign": (lambda a: crafted(a.key, a.root, digital_signature=False), "signing handshakes only"),
    "may sign certificates": (lambda a: crafted(a.key, a.root, cert_sign=True), "signing handshakes only"),
    "server only": (
        lambda a: crafted(a.key, a.root, purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        "both ends",
    ),
    "no purposes": (lambda a: crafted(a.key, a.root, purposes=()), "not that of a peer"),
    "another kind of key": (
        lambda a: crafted(a.key, a.root, key=ec.generate_private_key(ec.SECP256R1())),
        "not Ed25519",
    ),
    "signed by somebody else": (lambda a: crafted(Ed25519PrivateKey.generate(), a.root), "not admitted here"),
    "naming another authority": (
        lambda a: crafted(a.key, a.root, authority_id=b"\x01" * 20),
        "not admitted here",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_only_a_leaf_of_a_known_root_is_a_peer(authority: Authority, flaw: str) -> None:
    make, words = FLAWS[flaw]
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        remote_identity(der(make(authority)), [authority.root])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("certificate", [None, b"", b"\x30\x03\x02\x01\x01", b"x" * 5000])
def test_what_is_no_certificate_is_no_peer(authority: Authority, certificate: bytes | None) -> None:
    with pytest.raises(RemoteProtocolError):
        remote_identity(FakeConnection(certificate), [authority.root])
