"""A party's directory: what is made, kept and refused. Clocks are given, so that years pass at once."""

from __future__ import annotations

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaos.agent import party as party_module
from chaos.agent.identity import Identity, peer_id_of, verify
from chaos.agent.party import Party
from chaos.core.errors import ChaosError

NOW = datetime(2030, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def at(moment: datetime) -> party_module.Clock:
    return lambda: moment


def make(directory: Path, name: str = "lab", moment: datetime = NOW) -> Party:
    return Party.init(directory, name, at(moment))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the authority ------------------------------------------------------------------------------------


def test_a_party_is_the_fingerprint_of_its_root(tmp_path: Path) -> None:
    party = make(tmp_path / "p", "north-lab")
    pem = (tmp_path / "p" / "ca.pem").read_bytes()
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    assert party.fingerprint == hashlib.sha256(der).hexdigest()
    assert party.name == "north-lab"
    assert party.root_file.read_bytes() == pem


def test_the_root_is_a_proper_authority(tmp_path: Path) -> None:
    cert = make(tmp_path / "p").root.cert
    extensions = cert.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    key_id = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign
    assert not usage.value.digital_signature
    authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == key_id
    assert cert.issuer == cert.subject
    years = (cert.not_valid_after_utc - NOW) / timedelta(days=365.25)
    assert years == pytest.approx(10, abs=0.01)
    assert cert.not_valid_before_utc < NOW


def test_private_files_are_private(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    party.peer("a")
    assert mode_of(tmp_path / "p") == 0o700
    assert mode_of(tmp_path / "p" / "ca.key") == 0o600
    assert mode_of(tmp_path / "p" / "peers" / "a.key") == 0o600
    assert mode_of(tmp_path / "p" / "ca.pem") == 0o644
    assert mode_of(tmp_path / "p" / "peers" / "a.pem") == 0o644


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    (tmp_path / "p" / "ca.key").chmod(0o640)
    with pytest.raises(ChaosError, match=r"ca\.key is open to other users: run `chmod 600"):
        party.peer("a")


def test_nothing_temporary_stays_behind(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    party.peer("a")
    files = {str(path.relative_to(tmp_path / "p")) for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert files == {"ca.key", "ca.pem", "lock", "peers/a.key", "peers/a.pem"}


def test_opening_gives_the_same_party(tmp_path: Path) -> None:
    made = make(tmp_path / "p")
    assert Party.open(tmp_path / "p").fingerprint == made.fingerprint
    assert Party.open_or_init(tmp_path / "p", "other").fingerprint == made.fingerprint


def test_open_or_init_makes_one(tmp_path: Path) -> None:
    assert Party.open_or_init(tmp_path / "a" / "b", "lab").name == "lab"


def test_no_party_to_open(tmp_path: Path) -> None:
    with pytest.raises(ChaosError, match=r"there is no party in .*: make one with `chaos party init`"):
        Party.open(tmp_path / "none")


def test_a_party_is_never_overwritten(tmp_path: Path) -> None:
    made = make(tmp_path / "p")
    with pytest.raises(ChaosError, match="already holds a party"):
        make(tmp_path / "p")
    assert Party.open(tmp_path / "p").fingerprint == made.fingerprint


def test_a_key_left_by_a_crash_is_used(tmp_path: Path) -> None:
    make(tmp_path / "p")
    key = (tmp_path / "p" / "ca.key").read_bytes()
    (tmp_path / "p" / "ca.pem").unlink()
    party = Party.open_or_init(tmp_path / "p", "lab", at(NOW))
    assert (tmp_path / "p" / "ca.key").read_bytes() == key
    assert party.peer("a").party == party.fingerprint


def test_peers_that_start_together_find_one_party_and_one_key_each(tmp_path: Path) -> None:
    """The first start of several peers on one machine makes the party once."""

    def start(number: int) -> tuple[str, str]:
        party = Party.open_or_init(tmp_path / "p", "lab", at(NOW))
        return party.fingerprint, party.peer(f"peer{number % 2}").peer_id

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(start, range(16)))
    assert len({fingerprint for fingerprint, _ in found}) == 1
    assert len({found[i][1] for i in range(0, 16, 2)}) == 1
    assert len({peer_id for _, peer_id in found}) == 2


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "a\n", "\x1b[2J", "x" * 65])
def test_names_that_are_not_fit(tmp_path: Path, name: str) -> None:
    with pytest.raises(ChaosError, match="cannot name a party"):
        make(tmp_path / "p", name)
    with pytest.raises(ChaosError, match="cannot name a party"):
        Party.open_or_init(tmp_path / "p", name)
    assert not (tmp_path / "p").exists()
    with pytest.raises(ChaosError, match="cannot name a peer"):
        make(tmp_path / "q").peer(name)


def test_a_lock_that_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    party = make(tmp_path / "p")
    monkeypatch.setattr(party_module, "LOCK_WAIT_S", 0.0)
    with (
        party_module._locked(tmp_path / "p"),
        pytest.raises(ChaosError, match="lock is held by another process"),
    ):
        party.peer("a")
    assert party.peer("a").name == "a"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChaosError, match="cannot write to"):
        make(tmp_path / "file" / "p")


# --- admission ----------------------------------------------------------------------------------------


def test_admission(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path / "a", "a"), make(tmp_path / "b", "b")
    assert ours.admitted() == []
    assert ours.admit(theirs.root.pem) == theirs.fingerprint
    assert ours.admit(theirs.root.pem) == theirs.fingerprint
    assert [root.fingerprint for root in ours.admitted()] == [theirs.fingerprint]
    assert [root.name for root in ours.roots()] == ["a", "b"]
    stored = tmp_path / "a" / "admitted" / f"{theirs.fingerprint[:16]}.pem"
    assert stored.read_bytes() == theirs.root.pem
    reopened = Party.open(tmp_path / "a")
    assert [root.fingerprint for root in reopened.admitted()] == [theirs.fingerprint]


def test_parties_of_one_name_are_two_parties(tmp_path: Path) -> None:
    ours = make(tmp_path / "a")
    others = [make(tmp_path / str(i), "lab") for i in range(2)]
    for other in others:
        ours.admit(other.root.pem)
    assert sorted(root.fingerprint for root in ours.admitted()) == sorted(o.fingerprint for o in others)


def refusal(party: Party, pem: bytes) -> str:
    with pytest.raises(ChaosError) as caught:
        party.admit(pem, "other.pem")
    assert party.admitted() == []
    assert "\n" not in str(caught.value)
    assert "other.pem" in str(caught.value)
    return str(caught.value)


def test_itself_is_not_admitted(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    assert "the root of this party itself" in refusal(party, party.root.pem)


def test_expired_roots_are_not_admitted(tmp_path: Path) -> None:
    old = make(tmp_path / "old", moment=NOW - 4000 * DAY)
    assert "expired on 2029-06-1" in refusal(make(tmp_path / "p"), old.root.pem)


def test_roots_of_the_future_are_not_admitted(tmp_path: Path) -> None:
    early = make(tmp_path / "early", moment=NOW + 2 * DAY)
    assert "not valid yet: compare the clocks" in refusal(make(tmp_path / "p"), early.root.pem)


def test_a_leaf_is_not_admitted(tmp_path: Path) -> None:
    leaf = make(tmp_path / "other").peer("a").cert
    pem = leaf.public_bytes(serialization.Encoding.PEM)
    assert "not a certificate authority" in refusal(make(tmp_path / "p"), pem)


def test_a_private_key_is_not_taken(tmp_path: Path) -> None:
    make(tmp_path / "other")
    key = (tmp_path / "other" / "ca.key").read_bytes()
    assert "must not leave its party" in refusal(make(tmp_path / "p"), key)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_is_not_admitted(tmp_path: Path, content: bytes) -> None:
    assert "is not the root certificate of a party" in refusal(make(tmp_path / "p"), content)


def test_two_certificates_in_a_file_are_not_admitted(tmp_path: Path) -> None:
    pems = b"".join(make(tmp_path / name).root.pem for name in "ab")
    assert "is not the root certificate of a party" in refusal(make(tmp_path / "p"), pems)


def forged_root(
    *,
    name: str = "mallory",
    ca: bool = True,
    cert_sign: bool = True,
    key_id: bytes | None = None,
    signer: Ed25519PrivateKey | None = None,
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """A root as somebody else's tool would make it."""
    key = key or Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"), False)
    usage |= dict.fromkeys(("key_agreement", "crl_sign", "encipher_only", "decipher_only"), False)
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(x509.KeyUsage(key_cert_sign=cert_sign, **usage), True)
        .add_extension(x509.SubjectKeyIdentifier(key_id) if key_id else own_id, False)
    )
    is_ed25519 = isinstance(signer or key, Ed25519PrivateKey)
    cert = builder.sign(signer or key, None if is_ed25519 else hashes.SHA256())
    return cert.public_bytes(serialization.Encoding.PEM)


def test_a_sound_foreign_root_is_admitted(tmp_path: Path) -> None:
    """Shows that the refusals below are for the reasons they name."""
    make(tmp_path / "p").admit(forged_root())


def test_a_root_cannot_take_the_key_identifier_of_another(tmp_path: Path) -> None:
    victim = make(tmp_path / "victim")
    pem = forged_root(name="lab", key_id=victim.root.key_id)
    assert "its key identifier is not that of its key" in refusal(make(tmp_path / "p"), pem)


@pytest.mark.parametrize(
    ("pem", "flaw"),
    [
        (forged_root(cert_sign=False), "may not sign certificates"),
        (forged_root(ca=False), "not a certificate authority"),
        (forged_root(signer=Ed25519PrivateKey.generate()), "not signed by itself"),
        (forged_root(key=ec.generate_private_key(ec.SECP256R1())), "not Ed25519"),
        (forged_root(name="\x1b[31mroot"), "cannot name a party"),
    ],
)
def test_flawed_roots_are_not_admitted(tmp_path: Path, pem: bytes, flaw: str) -> None:
    assert flaw in refusal(make(tmp_path / "p"), pem)


def test_one_key_is_not_two_parties(tmp_path: Path) -> None:
    """Which of the two a peer belongs to could not be told, and would be told differently elsewhere."""
    key = Ed25519PrivateKey.generate()
    ours = make(tmp_path / "p")
    ours.admit(forged_root(key=key))
    with pytest.raises(ChaosError, match="has the key of party"):
        ours.admit(forged_root(key=key, name="again"))
    assert len(ours.admitted()) == 1


# --- peers --------------------------------------------------------------------------------------------


def test_a_peer_is_its_key(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    identity = party.peer("a")
    raw = identity.cert.public_key().public_bytes_raw()  # type: ignore[union-attr]
    assert identity.public_key == raw
    assert identity.peer_id == hashlib.sha256(raw).hexdigest()[:16] == peer_id_of(raw)
    assert identity.party == party.fingerprint
    assert identity.chain == (identity.cert, party.root.cert)
    assert party.peer("b").peer_id != identity.peer_id


def test_the_leaf_is_a_proper_leaf(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    cert = party.peer("a").cert
    get = cert.extensions.get_extension_for_class
    assert get(x509.BasicConstraints).value.ca is False
    assert get(x509.KeyUsage).critical
    assert get(x509.KeyUsage).value.digital_signature and not get(x509.KeyUsage).value.key_cert_sign
    purposes = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert set(get(x509.ExtendedKeyUsage).value) == purposes
    assert get(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == ["chaos-peer"]
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == party.root.key_id
    assert get(x509.SubjectKeyIdentifier).value.digest
    assert cert.not_valid_after_utc == NOW + 365 * DAY
    assert party.root.issued(cert)


def test_a_peer_stays_the_same(tmp_path: Path) -> None:
    first = make(tmp_path / "p").peer("a")
    again = Party.open(tmp_path / "p", at(NOW + 300 * DAY)).peer("a")
    assert (again.cert, again.peer_id) == (first.cert, first.peer_id)


@pytest.mark.parametrize("later", [336 * DAY, 400 * DAY])
def test_a_certificate_is_renewed_and_the_key_stays(tmp_path: Path, later: timedelta) -> None:
    """29 days before it expires, and after."""
    first = make(tmp_path / "p").peer("a")
    again = Party.open(tmp_path / "p", at(NOW + later)).peer("a")
    assert again.cert.not_valid_after_utc == NOW + later + 365 * DAY
    assert again.peer_id == first.peer_id


def test_a_certificate_of_another_root_is_replaced(tmp_path: Path) -> None:
    first = make(tmp_path / "p").peer("a")
    make(tmp_path / "q")
    for name in ("ca.key", "ca.pem"):
        (tmp_path / "q" / name).replace(tmp_path / "p" / name)
    moved = Party.open(tmp_path / "p", at(NOW))
    again = moved.peer("a")
    assert moved.root.issued(again.cert)
    assert again.peer_id == first.peer_id


def test_a_certificate_for_another_key_is_replaced(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    party.peer("a")
    other = party.peer("b")
    (tmp_path / "p" / "peers" / "b.key").replace(tmp_path / "p" / "peers" / "a.key")
    again = party.peer("a")
    assert again.peer_id == other.peer_id
    assert again.cert.public_key() == again.key.public_key()


def test_a_leaf_does_not_outlive_its_root(tmp_path: Path) -> None:
    make(tmp_path / "p")
    late = Party.open(tmp_path / "p", at(NOW + 3640 * DAY))
    identity = late.peer("a")
    assert identity.cert.not_valid_after_utc == late.root.expires
    assert late.peer("a").cert == identity.cert, "renewing it again would not make it last longer"


def test_an_expired_root_gives_no_certificates(tmp_path: Path) -> None:
    make(tmp_path / "p").peer("a")
    Party.open(tmp_path / "p", at(NOW + 3640 * DAY)).peer("until-the-end")
    late = Party.open(tmp_path / "p", at(NOW + 3700 * DAY))
    for name in ("a", "until-the-end", "new"):
        with pytest.raises(ChaosError, match=r"the root of party lab expired on 2040-05-3\d: make a new"):
            late.peer(name)


def test_peers_can_be_used_where_the_authority_is_not(tmp_path: Path) -> None:
    first = make(tmp_path / "p").peer("a")
    (tmp_path / "p" / "ca.key").unlink()
    elsewhere = Party.open(tmp_path / "p", at(NOW + 350 * DAY))
    assert elsewhere.peer("a").cert == first.cert
    with pytest.raises(ChaosError, match=r"peer b needs a certificate and .*ca.key is absent"):
        elsewhere.peer("b")
    with pytest.raises(ChaosError, match=r"peer a needs a certificate"):
        Party.open(tmp_path / "p", at(NOW + 366 * DAY)).peer("a")


def test_a_key_that_is_not_the_root_s_signs_nothing(tmp_path: Path) -> None:
    make(tmp_path / "p")
    make(tmp_path / "q")
    (tmp_path / "q" / "ca.key").replace(tmp_path / "p" / "ca.key")
    with pytest.raises(ChaosError, match=r"is not the key of ca\.pem beside it"):
        Party.open(tmp_path / "p", at(NOW)).peer("a")


@pytest.mark.parametrize("file", ["ca.pem", "ca.key", "peers/a.key", "peers/a.pem", "admitted/0.pem"])
def test_damaged_files_are_named(tmp_path: Path, file: str) -> None:
    make(tmp_path / "p").peer("a")
    (tmp_path / "p" / "admitted").mkdir()
    damaged = tmp_path / "p" / file
    damaged.touch(mode=0o600)
    damaged.write_bytes(b"\x00nothing")
    with pytest.raises(ChaosError, match=file):
        use_everything(tmp_path / "p")


def use_everything(directory: Path) -> Identity:
    party = Party.open(directory, at(NOW))
    party.admitted()
    party.peer("b")
    return party.peer("a")


# --- signatures ---------------------------------------------------------------------------------------


def test_signatures(tmp_path: Path) -> None:
    party = make(tmp_path / "p")
    a, b = party.peer("a"), party.peer("b")
    signature = a.sign(b"last words")
    assert len(signature) == 64
    assert verify(a.public_key, signature, b"last words")
    assert not verify(b.public_key, signature, b"last words")
    assert not verify(a.public_key, signature, b"last wordz")
    assert not verify(a.public_key, signature[:-1], b"last words")
    assert not verify(a.public_key[:-1], signature, b"last words")


def test_a_statement_cannot_pass_for_a_handshake(tmp_path: Path) -> None:
    """The key also signs TLS handshakes: what `sign` signs never is the bare data it was given."""
    identity = make(tmp_path / "p").peer("a")
    handshake = b" " * 64 + b"TLS 1.3, server CertificateVerify\x00" + bytes(32)
    assert identity.sign(handshake) != identity.key.sign(handshake)
    assert not verify(identity.public_key, identity.key.sign(handshake), handshake)


def test_the_private_key_is_not_printed(tmp_path: Path) -> None:
    identity = make(tmp_path / "p").peer("a")
    assert "key=" not in repr(identity)
