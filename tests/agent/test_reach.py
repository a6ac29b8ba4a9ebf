"""Doctor and agent over real sockets: measured, dialed back, turned away; and nobody becomes a peer by it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from chaos.agent import reach
from chaos.agent.client import security_of
from chaos.agent.party import Party
from chaos.agent.requests import PROBE_BYTES, DialBackRequest, ProbeRequest, decode_request, encode_answer
from chaos.agent.transport import Security
from chaos.core.errors import ChaosError
from tests.agent.transport.ends import End, run, world


@pytest.fixture(scope="module")
def securities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Security]:
    """Two parties that admitted each other, and one that nobody did."""
    places = tmp_path_factory.mktemp("parties")
    parties = {name: Party.init(places / name, name) for name in ("a", "b", "stranger")}
    parties["a"].admit(parties["b"].root_file.read_bytes())
    parties["b"].admit(parties["a"].root_file.read_bytes())
    return {name: security_of(party, party.peer("one")) for name, party in parties.items()}


def test_a_listening_doctor_turns_admitted_peers_away_and_they_know_that_they_reached_it(
    securities: dict[str, Security],
) -> None:
    async def test() -> None:
        async with reach.answering(["127.0.0.1:0"], securities["a"]) as bound:
            told = await reach.answer_dial_back(DialBackRequest((bound[0], "127.0.0.1:1")), securities["b"])
            assert told["told"][bound[0]] == ""
            assert "nobody listens" in told["told"]["127.0.0.1:1"]
            assert "not admitted" in await reach.knock(bound[0], securities["stranger"])
            assert await reach.knock(bound[0], securities["b"]) == "", "a stranger does not stop it"
        assert "nobody listens" in await reach.knock(bound[0], securities["b"])

    run(test())


def answering_as_an_agent(end: End, security: Security) -> None:
    async def answer(payload: bytes, _party: str) -> bytes:
        request = decode_request(payload)
        if isinstance(request, ProbeRequest):
            return encode_answer(reach.answer_probe(request))
        assert isinstance(request, DialBackRequest)
        return encode_answer(await reach.answer_dial_back(request, security))

    end.answer = answer


def test_a_visit_measures_and_lists_what_did_not_answer(tmp_path: Path) -> None:
    async def test() -> None:
        async with world(tmp_path) as w:
            member, party = await w.end("a"), w.party("main")
            security = security_of(party, party.peer("visitor"))
            answering_as_an_agent(member, security)
            async with reach.answering(["127.0.0.1:0"], security) as own:
                found = await reach.visit("a", ["127.0.0.1:1", member.address], own, security)
            assert [reason == "" for _, reason in found.tried] == [False, True]
            assert 0 < found.rtt_s < 5 and abs(found.offset_s) < 5 and found.local == "127.0.0.1"
            assert found.up > 1e5 and found.down > 1e5
            assert found.versions == reach.versions()
            assert found.told == {own[0]: ""}
            assert not member.ups and not member.transport.links(), "a visitor is no peer"

    run(test())


def test_a_port_in_use_is_said(securities: dict[str, Security]) -> None:
    async def test() -> None:
        async with reach.answering(["127.0.0.1:0"], securities["a"]) as bound:
            with pytest.raises(ChaosError, match="cannot listen at"):
                async with reach.answering(bound, securities["a"]):
                    pass

    run(test())


def test_requests_are_bounded() -> None:
    assert len(encode_answer(reach.answer_probe(ProbeRequest(b"", PROBE_BYTES)))) < 4 * 2**20
    for wrong in (ProbeRequest(b"x" * (PROBE_BYTES + 1), 0), ProbeRequest(b"", PROBE_BYTES + 1)):
        with pytest.raises(ChaosError):
            decode_request(msgspec.msgpack.encode(wrong))
