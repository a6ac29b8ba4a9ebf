"""The wire itself: what it lets through, when, and what is left of it afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chaos.lab.wire import Quality, Wire, address

pytestmark = pytest.mark.namespaces

ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 9)); s.settimeout(20)
print("ready", flush=True)
while True:
    data, who = s.recvfrom(2000)
    s.sendto(data, who)
"""
ASK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1.0); times = []
for n in range(int(sys.argv[2])):
    began = time.monotonic(); s.sendto(bytes(1000), (sys.argv[1], 9))
    try:
        s.recvfrom(2000); times.append(time.monotonic() - began)
    except TimeoutError:
        pass
print(len(times), min(times, default=0))
"""


def ask(wire: Wire, count: int) -> tuple[int, float]:
    """How many of so many datagrams came back from host 1, and the quickest one's seconds."""
    echo = subprocess.Popen([*wire.enter(1), sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
    try:
        assert echo.stdout is not None and echo.stdout.readline() == "ready\n"
        command = [*wire.enter(0), sys.executable, "-c", ASK, address(1), str(count)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    finally:
        echo.kill()
        echo.communicate()
    return int(said[0]), float(said[1])


def test_packets_take_their_time() -> None:
    with Wire(2) as wire:
        wire.set_direction(0, 1, Quality(latency_ms=40))
        wire.set_direction(1, 0, Quality(latency_ms=20))
        came, quickest = ask(wire, 3)
    assert came == 3 and 0.060 <= quickest < 0.5


def test_a_rate_holds_a_packet_up() -> None:
    """1000 bytes and headers at 100 kbit/s take 82 ms; the first 10 ms of them may be there already."""
    with Wire(2) as wire:
        wire.set_direction(0, 1, Quality(rate=1e5))
        wire.set_direction(1, 0, Quality())
        came, quickest = ask(wire, 2)
    assert came == 2 and 0.070 <= quickest < 0.5


@pytest.mark.parametrize("down", [(0, 1), (1, 0)])
def test_nothing_comes_where_a_direction_is_down(down: tuple[int, int]) -> None:
    with Wire(2) as wire:
        wire.set_direction(*down[::-1], Quality())
        assert ask(wire, 1)[0] == 0
        wire.set_direction(*down, Quality())
        assert ask(wire, 1)[0] == 1
        traffic, _ = wire.traffic()
    assert traffic[down].dropped == 1


def test_losses_are_the_seed_s() -> None:
    came = []
    for _ in range(2):
        with Wire(2, seed=5) as wire:
            wire.set_direction(0, 1, Quality(loss=0.5))
            wire.set_direction(1, 0, Quality())
            came.append(ask(wire, 6)[0])
    assert came[0] == came[1] and 0 < came[0] < 6


def test_nothing_is_left_of_it() -> None:
    with Wire(3) as wire:
        keepers = [int(word.split("/")[2]) for host in range(3) for word in wire.enter(host) if "/proc/" in word]
        assert all(Path(f"/proc/{pid}").exists() for pid in keepers)
    for pid in keepers:
        path = Path(f"/proc/{pid}/stat")
        assert not path.exists() or path.read_text().split()[2] == "Z" or "chaos-wire" not in path.read_text()
