"""Where `benchmarks.peers` has its hosts live, when links are shaped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.places import Links, Place

pytestmark = pytest.mark.namespaces

LOOK = """
import os, socket
print(socket.gethostname(), socket.gethostbyname(socket.gethostname()), socket.gethostbyname("host1"))
print(os.listdir("/dev/shm"))
open("/dev/shm/leaked", "w").close()
"""


def said(place: Place, name: str) -> list[str]:
    command = [*place.enter(name), sys.executable, "-c", LOOK]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()


def test_each_host_has_a_name_of_its_own_and_leaves_no_shared_memory() -> None:
    with Place(Links("20mbit", 5.0)) as place:
        assert said(place, "a") == ["host0 10.77.0.1 10.77.0.2", "[]"]
        assert said(place, "b") == ["host1 10.77.0.2 10.77.0.2", "[]"]
        assert (place.address("a"), place.address("b")) == ("10.77.0.1", "10.77.0.2")
        place.leave("a")
        assert place.address("c") == "10.77.0.1", "who is gone leaves its slot to another"
    assert not place.directory.exists()
    assert not Path("/dev/shm/leaked").exists()


def test_on_loopback_all_hosts_are_one_machine_whose_bytes_are_counted() -> None:
    with Place(Links()) as place:
        assert (place.address("a"), place.address("b"), place.interface) == ("127.0.0.1", "127.0.0.1", "lo")
        before = place.sent()
        send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes(1000), ('127.0.0.1', 9))"
        subprocess.run([*place.enter("a"), sys.executable, "-c", send], check=True, timeout=30)
        after = place.sent()
    assert before is not None and after is not None and 1000 <= after - before < 5000
