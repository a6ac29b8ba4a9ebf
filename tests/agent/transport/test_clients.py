"""Requests of the command line and of observers, and who is let in by certificate."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from chaos.agent.transport import DialFailed, PlainSecurity, TlsSecurity, TransportConfig, request
from chaos.agent.transport.hello import Identity
from chaos.core.errors import ChaosError, Refused

from .ends import LIMIT_S, World, eventually, run, world


def security_of(w: World, party: str, name: str) -> TlsSecurity:
    owner = w.party(party)
    return TlsSecurity(owner.peer(name), owner.roots())


def test_request_and_answer(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            a = await w.end("a")
            answer = await request(a.address, security_of(w, "main", "operator"), b"status", "run")
            assert answer == a.info.party.encode() + b":status"
            large = bytes(2**22 - 64 - 10)
            assert (await request(a.address, security_of(w, "main", "operator"), large)).endswith(large)

    run(test())


def test_refusals_reach_the_client(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            a = await w.end("a")
            with pytest.raises(Refused, match="takes part in run 'run', not 'other'"):
                await request(a.address, security_of(w, "main", "operator"), b"", "other")

            async def deny(_payload: bytes, _party: str) -> bytes:
                raise ChaosError("only its own party may ask that")

            a.answer = deny
            with pytest.raises(Refused, match="only its own party may ask that"):
                await request(a.address, security_of(w, "main", "operator"), b"")

    run(test())


def test_request_ends_in_time() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a")

            async def never(_payload: bytes, _party: str) -> bytes:
                await asyncio.Event().wait()
                return b""

            a.answer = never
            with pytest.raises(DialFailed, match="does not answer within"):
                await request(a.address, PlainSecurity(), b"", timeout_s=0.1)

    run(test())


def test_number_of_clients_is_limited() -> None:
    async def test() -> None:
        async with world() as w:
            a = await w.end("a", config=TransportConfig(max_clients=2))
            go = asyncio.Event()

            async def wait(_payload: bytes, _party: str) -> bytes:
                await go.wait()
                return b"done"

            a.answer = wait
            served = [asyncio.create_task(request(a.address, PlainSecurity(), b"")) for _ in range(2)]
            await eventually(lambda: a.transport._listener._clients == 2)
            with pytest.raises(Refused, match="2 clients are being served"):
                await request(a.address, PlainSecurity(), b"")
            go.set()
            async with asyncio.timeout(LIMIT_S):
                assert await asyncio.gather(*served) == [b"done", b"done"]

    run(test())


@pytest.mark.parametrize("who", ["server", "client"])
def test_a_party_that_is_not_admitted(tmp_path: Path, who: str) -> None:
    """The dialer learns the reason whichever end refuses; in TLS 1.3 the server's refusal comes with the first read."""

    async def test() -> None:
        async with world(tmp_path) as w:
            ours, theirs = w.party("main"), w.party("guest")
            if who == "server":
                theirs.admit(ours.root_file.read_bytes())
            else:
                ours.admit(theirs.root_file.read_bytes())
            a, b = await w.end("a"), await w.end("b", party="guest")
            with pytest.raises(Refused, match="not admitted"):
                await b.transport.dial(a.address)
            b.transport.connect(a.info)
            await eventually(lambda: b.refusals)
            assert "chaos party admit" in b.refusals[0][1]
            assert a.ups == b.ups == []

    run(test())


def test_admission_and_eviction_at_run_time(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            ours, theirs = w.party("main"), w.party("guest")
            theirs.admit(ours.root_file.read_bytes())
            a, b = await w.end("a"), await w.end("b", party="guest")
            without = security_of(w, "main", "a")
            with pytest.raises(Refused, match="not admitted"):
                await b.transport.dial(a.address)
            ours.admit(theirs.root_file.read_bytes())
            a.transport.set_security(security_of(w, "main", "a"))
            await b.transport.dial(a.address)
            await eventually(lambda: a.linked(b))
            a.transport.set_security(without)
            assert a.linked(b), "only connections from now on are concerned"
            b.transport.connect(a.info)
            a.transport.disconnect(b.id, "its party was evicted")
            await eventually(lambda: b.refusals)
            assert "not admitted" in b.refusals[0][1]
            assert len(a.ups) == 1

    run(test())


@pytest.mark.parametrize("way", ["in", "out"])
def test_parties_that_change_during_a_handshake(tmp_path: Path, way: str) -> None:
    """A connection that was checked against the old set is not let in under the new one."""

    async def test() -> None:
        async with world(tmp_path) as w:
            a, b = await w.end("a"), await w.end("b")
            after = security_of(w, "main", "a")

            class Before(TlsSecurity):
                def identify(self, connection: ssl.SSLObject) -> Identity:
                    a.transport.set_security(after)
                    return super().identify(connection)

            owner = w.party("main")
            a.transport.set_security(Before(owner.peer("a"), owner.roots()))
            with pytest.raises(Refused, match="admitted parties changed at this moment"):
                await (b.transport.dial(a.address) if way == "in" else a.transport.dial(b.address))
            assert a.ups == b.ups == []
            b.transport.connect(a.info)
            await eventually(lambda: a.linked(b) and b.linked(a))

    run(test())


def test_a_hello_must_fit_the_certificate(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            a, b = await w.end("a"), await w.end("b")
            b.transport.set_me(a.info)
            with pytest.raises(Refused, match=f"certificate belongs to peer {b.id}, and the hello claims to be {a.id}"):
                await b.transport.dial(a.address)

    run(test())


def test_plain_text_at_a_tls_port(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            a = await w.end("a")
            with pytest.raises(ChaosError):
                await request(a.address, PlainSecurity(), b"")
            assert (await request(a.address, security_of(w, "main", "operator"), b"x")).endswith(b"x")

    run(test())
