"""Each line of `chaos doctor`: when it is ok, when a warning, when a problem; and that the last two say what to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from chaos.agent import findings as judge
from chaos.agent.findings import Finding, Level

NOW = datetime(2026, 7, 1, tzinfo=UTC)
OWN = {"chaos": "1", "python": "3.11.7", "torch": "2.13.0"}
GIB = 2**30
CARDS = {"192.0.2.7": "eth0", "172.17.0.1": "docker0", "127.0.0.1": "lo"}


def certificate(days: float, since: float = -10) -> Finding:
    return judge.certificate("party", NOW + timedelta(days=since), NOW + timedelta(days=days), NOW, "renew it")


OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM
LINES = {
    "certificate": [(OK, certificate(200)), (WARNING, certificate(29)), (PROBLEM, certificate(-1))],
    "certificate of tomorrow": [(PROBLEM, certificate(300, since=1))],
    "clock": [(OK, judge.clock(0.2, "b")), (WARNING, judge.clock(-90, "b")), (PROBLEM, judge.clock(4000, "b"))],
    "addresses": [
        (OK, judge.addresses(["192.0.2.7:1", "127.0.0.1:1"], CARDS, "192.0.2.7")),
        (OK, judge.addresses(["192.0.2.7:1"], CARDS, None)),
        (OK, judge.addresses(["127.0.0.1:1"], CARDS, "127.0.0.1")),
        (WARNING, judge.addresses(["172.17.0.1:1", "192.0.2.7:1"], CARDS, "192.0.2.7")),
        (WARNING, judge.addresses(["127.0.0.1:1"], CARDS, None)),
        (PROBLEM, judge.addresses(["127.0.0.1:1"], CARDS, "192.0.2.7")),
    ],
    "mtu": [
        (OK, judge.interface_mtu("eth0", 1500)),
        (WARNING, judge.interface_mtu("wg0", 1380)),
        (PROBLEM, judge.interface_mtu("tun0", 576)),
    ],
    "memory": [
        (OK, judge.memory(16 * GIB, "")),
        (WARNING, judge.memory(2 * GIB, "")),
        (PROBLEM, judge.memory(GIB // 2, "")),
        (PROBLEM, judge.memory(16 * GIB, "memfd_create is forbidden")),
    ],
    "files": [(OK, judge.files(65536)), (WARNING, judge.files(512)), (PROBLEM, judge.files(64))],
    "versions": [
        (OK, judge.versions(OWN, None)),
        (OK, judge.versions(OWN, dict(OWN), "b")),
        (WARNING, judge.versions(OWN, OWN | {"python": "3.12.1"}, "b")),
        (WARNING, judge.versions(OWN, OWN | {"chaos": "2"}, "b")),
        (PROBLEM, judge.versions(OWN, OWN | {"torch": "2.12.0"}, "b")),
        (PROBLEM, judge.versions(OWN | {"torch": "none"}, None)),
    ],
    "disk": [
        (OK, judge.disk("/c", 50 * GIB, None, "")),
        (OK, judge.disk("/c", 5 * GIB, GIB, "")),
        (WARNING, judge.disk("/c", 5 * GIB, None, "")),
        (WARNING, judge.disk("/c", 3 * GIB, GIB, "")),
        (PROBLEM, judge.disk("/c", GIB // 2, GIB, "")),
        (PROBLEM, judge.disk("/c", GIB // 2, None, "")),
        (PROBLEM, judge.disk("/c", 50 * GIB, None, "can't be written to")),
    ],
    "reached": [
        (OK, judge.reached("b", [("b:1", "")])),
        (WARNING, judge.reached("b", [("10.0.0.1:1", "no answer"), ("b:1", "")])),
        (PROBLEM, judge.reached("b", [("b:1", "nobody listens")])),
        (PROBLEM, judge.reached("b", [])),
    ],
    "dialed back": [
        (OK, judge.dialed_back("b", {"a:1": ""})),
        (WARNING, judge.dialed_back("b", {"a:1": "", "10.0.0.1:1": "no answer"})),
        (PROBLEM, judge.dialed_back("b", {"a:1": "no answer"})),
        (PROBLEM, judge.dialed_back("b", {})),
    ],
    "line": [
        (OK, judge.line("b", 0.02, 1e8, 1e8)),
        (WARNING, judge.line("b", 0.3, 1e8, 1e8)),
        (WARNING, judge.line("b", 0.02, 1e6, 1e8)),
        (PROBLEM, judge.line("b", 1.5, 1e8, 1e8)),
        (PROBLEM, judge.line("b", 0.02, 1e8, 5e4)),
    ],
}


@pytest.mark.parametrize("what", LINES)
def test_each_line_has_its_outcomes(what: str) -> None:
    for number, (level, found) in enumerate(LINES[what]):
        assert found.level == level, f"{what} {number}: {found}"
        assert bool(found.remedy) == (level != OK), "a remedy exactly where something is to be mended"
        assert found.text and "\n" not in found.text + found.remedy


def test_the_address_to_name_is_named() -> None:
    assert "--advertise 192.0.2.7:PORT" in LINES["addresses"][3][1].remedy
    assert "docker0" in LINES["addresses"][3][1].text
