"""Relays on loopback: what they let through, when, and what they do when an end breaks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.core.errors import ChaosError
from chaos.lab.carrier import Quality
from chaos.lab.guard import MARK
from chaos.lab.hosts import Hosts, leftovers
from chaos.lab.relay import Relays
from chaos.lab.run import Lab
from chaos.lab.scenario import Fault, Host, Scenario
from tests.cli.judge import judge

LISTEN = """
import socket, sys
host, port = sys.argv[1].split(":")
s = socket.create_server((host, int(port)))
print("ready", flush=True)
while True:
    one, _ = s.accept(); one.settimeout(20)
    while data := one.recv(1 << 16):
        one.sendall(data[:1] if sys.argv[2] == "count" else data)
    one.close()
"""
ASK = """
import json, socket, sys, time
host, port = sys.argv[1].split(":")
s = socket.create_connection((host, int(port))); s.settimeout(float(sys.argv[3])); said = b""
began = time.monotonic()
try:
    s.sendall(bytes(int(sys.argv[2]))); s.shutdown(socket.SHUT_WR)
    while data := s.recv(1 << 16):
        said += data
    how = "ended"
except TimeoutError:
    how = "silent"
except ConnectionError:
    how = "broken"
print(json.dumps([len(said), how, time.monotonic() - began]))
"""


@pytest.fixture
def relays() -> Iterator[Relays]:
    made = Relays(["a", "b"])
    yield made
    made.close()


def run_on(host: str, *command: str) -> subprocess.Popen[str]:
    environment = os.environ | {MARK: f"/nowhere/runtime/{host}"}
    return subprocess.Popen([sys.executable, "-c", *command], env=environment, stdout=subprocess.PIPE, text=True)


def ask(
    relays: Relays, nbytes: int, way: str = "echo", patience: float = 20.0, sender: str = "a"
) -> tuple[int, str, float]:
    """Send so many bytes from host a to host b. How many came back, how it ended, and after how many seconds."""
    listener = run_on("b", LISTEN, relays.listen_at(1), way)
    try:
        assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
        asker = run_on(sender, ASK, relays.reached_at(1), str(nbytes), str(patience))
        came, how, took = json.loads(asker.communicate(timeout=60)[0])
    finally:
        listener.kill()
        listener.communicate()
    return came, how, took


def up(relays: Relays, there: Quality, back: Quality) -> None:
    relays.set_direction(0, 1, there)
    relays.set_direction(1, 0, back)


def test_bytes_take_the_latency_of_both_ways_and_all_of_them_arrive(relays: Relays) -> None:
    up(relays, Quality(latency_ms=40), Quality(latency_ms=20))
    came, how, took = ask(relays, 300_000)
    assert (came, how) == (300_000, "ended") and 0.060 <= took < 2
    traffic, _ = relays.traffic()
    assert traffic[0, 1].nbytes == traffic[1, 0].nbytes == 300_000


def test_a_rate_holds_up_what_goes_this_way_only(relays: Relays) -> None:
    """500 kB at 4 Mbit/s take a second; what comes back is little."""
    up(relays, Quality(rate=4e6), Quality(rate=1e4))
    _, how, took = ask(relays, 500_000, "count")
    assert how == "ended" and 0.95 <= took < 2


def test_an_access_is_shared_by_all_links(relays: Relays) -> None:
    up(relays, Quality(), Quality())
    relays.set_access(0, 4e6, 0.0)
    assert 0.95 <= ask(relays, 500_000, "count")[2] < 2


def test_a_direction_that_is_down_carries_nothing_and_nobody_is_told(relays: Relays) -> None:
    relays.set_direction(0, 1, Quality())
    assert ask(relays, 10, patience=0.5)[:2] == (0, "silent"), "the answers do not arrive"
    relays.set_direction(1, 0, Quality())
    relays.set_direction(0, 1, None)
    assert ask(relays, 10, patience=0.5)[:2] == (0, "silent")
    relays.set_direction(0, 1, Quality())
    assert ask(relays, 10)[:2] == (10, "ended")


def test_where_nobody_listens_a_connection_breaks_at_once(relays: Relays) -> None:
    up(relays, Quality(), Quality())
    asker = run_on("a", ASK, relays.reached_at(1), "10", "20")
    assert json.loads(asker.communicate(timeout=60)[0])[0] == 0


def test_a_process_that_is_on_no_host_is_not_served(relays: Relays) -> None:
    up(relays, Quality(), Quality())
    assert ask(relays, 10, sender="elsewhere")[0] == 0


def test_a_receiver_that_dies_breaks_its_sender_s_connection(relays: Relays) -> None:
    up(relays, Quality(rate=1e6), Quality())
    listener = run_on("b", LISTEN, relays.listen_at(1), "count")
    assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
    asker = run_on("a", ASK, relays.reached_at(1), str(10_000_000), "20")
    while not relays.traffic()[0]:
        assert asker.poll() is None
    listener.kill()
    listener.communicate()
    assert json.loads(asker.communicate(timeout=10)[0])[1] == "broken"


def test_addresses_that_are_taken_are_named_and_the_others_given_back(relays: Relays) -> None:
    with pytest.raises(ChaosError, match="another lab with --emulate"):
        Relays(["x"])
    relays.close()
    Relays(["x"]).close()


def test_nothing_listens_once_they_are_closed(relays: Relays) -> None:
    host, port = relays.reached_at(0).split(":")
    relays.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_without_rights_relays_carry_what_a_scenario_says(tmp_path: Path) -> None:
    """A slow link, a cut that nobody is told of, and a join, by relays on loopback."""
    hosts_there = (Host(), Host(), Host(), Host(late=True))
    faults = (Fault("join", at=0.5, peers=(3,)), Fault("partition", at=4.0, peers=(2,), seconds=4.0))
    scenario = Scenario(latency_ms=5, rate="40mbit", state_mb=0.25, host=hosts_there, fault=faults)
    with Hosts(scenario, tmp_path, tmp_path, emulate=True) as hosts:
        assert not any("nsenter" in word for word in hosts.wire.enter(0))
        result = Lab(hosts, lambda _: None).run()
        judge(result.entries, hosts.peer_ids())
    assert result.broken == []
    paused = [e for e in result.entries if e.kind == "paused"]
    assert {e.peer for e in paused} == {"p2"} and paused[0].t - result.done[1].at < 3.0
    assert {who for who, traffic in result.traffic.items() if traffic.nbytes} >= {(0, 3), (3, 0), (1, 2), (2, 1)}
    assert leftovers() == []
