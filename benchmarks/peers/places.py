"""Where the hosts of one system live: all on one machine, or each on its own, joined by shaped links as in the lab."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from chaos.lab import guard
from chaos.lab.network import Network
from chaos.lab.scenario import Host, Scenario, parse_rate
from chaos.lab.wire import Wire, address

SLOTS = 8
"""Hosts that live at the same time, one for a coordinator included."""
MACHINE = "localhost"
PREPARE = """echo "$1" > /proc/sys/kernel/hostname && mount --bind "$2" /etc/hosts && mount -t tmpfs tmpfs /dev/shm &&
shift 2 && exec "$@"
"""
"""A host's own name, which others of its network can look up, and shared memory that goes when it goes."""


@dataclass(frozen=True)
class Links:
    """What every host's uplink and downlink carry. Without a rate: loopback."""

    rate: str = ""
    delay_ms: float = 0.0
    """One way."""

    @staticmethod
    def parse(rate: str, delay: str) -> Links:
        """Of `200mbit` or `loopback`, and `30ms`. Raises ChaosError or ValueError: not understood."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:ms)?", delay)
        if found is None:
            raise ValueError(f"a delay is given as 30ms, not {delay!r}")
        delay_ms = float(found.group(1))
        if rate == "loopback":
            if delay_ms:
                raise ValueError("loopback has no delay; give a rate as well")
            return Links()
        parse_rate(rate)
        return Links(rate, delay_ms)

    def __str__(self) -> str:
        if not self.rate:
            return "loopback"
        return self.rate + (f", {self.delay_ms:g} ms one way" if self.delay_ms else "")


class Place:
    """Network namespaces for one system. `with Place(links) as place`; nothing is left after the block.

    Where there are no rights to make any, hosts are plain processes on loopback, and bytes can't be told apart.
    """

    def __init__(self, links: Links, namespaces: bool = True) -> None:
        self.links = links
        self._namespaces = namespaces
        self._slots: dict[str, int] = {}

    def __enter__(self) -> Place:
        self._guard = guard.Guard("chaos-lab-peers-")  # `chaos lab clean` finds what is left of a killed one
        self.directory = self._guard.directory
        try:
            self._wire = self._lay() if self._namespaces else None
        except BaseException:
            self._guard.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._guard.end()
        if self._wire is not None:
            self._wire.close()

    @property
    def interface(self) -> str:
        return "lab0" if self.links.rate else "lo"

    def address(self, name: str) -> str:
        return address(self._slot(name)) if self.links.rate else "127.0.0.1"

    def leave(self, name: str) -> None:
        """This host is gone: another may have its slot."""
        self._slots.pop(name, None)

    def enter(self, name: str) -> list[str]:
        """What a command begins with that is to run on this host."""
        if self._wire is None:
            return []
        slot = self._slot(name) if self.links.rate else 0
        called = f"host{slot}" if self.links.rate else MACHINE
        own = ["unshare", "--uts", "--mount", "--", "sh", "-c", PREPARE, "sh", called, str(self._hosts_file)]
        return [*self._wire.enter(slot), *own]

    def environment(self, name: str) -> dict[str, str]:
        """By this mark the guard finds all processes; and there Chaos looks for the last words of its own machine."""
        runtime = guard.runtime_of(self.directory) / (name if self.links.rate else "")
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {guard.MARK: str(runtime), "TMPDIR": str(self.directory), "GLOO_SOCKET_IFNAME": self.interface}

    def sent(self) -> int | None:
        """Bytes that went over its links so far, with all headers. None: nobody knows."""
        if self._wire is None:
            return None
        if self.links.rate:
            return sum(way.nbytes for way in self._wire.traffic()[0].values())
        command = [*self._wire.enter(0), "cat", "/proc/net/dev"]
        return loopback_bytes(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def _lay(self) -> Wire:
        rate, count = self.links.rate, SLOTS if self.links.rate else 1
        self._hosts_file = self.directory / "hosts"
        names = "".join(f"{address(slot)} host{slot}\n" for slot in range(count) if rate)
        self._hosts_file.write_text(f"127.0.0.1 localhost\n{names}")
        wire = Wire(count)
        if rate:
            hosts = tuple(Host(name=f"host{slot}", up=rate, down=rate) for slot in range(count))
            Network(wire, Scenario(host=hosts, latency_ms=self.links.delay_ms))
        return wire

    def _slot(self, name: str) -> int:
        if name not in self._slots:
            self._slots[name] = min(set(range(SLOTS)) - set(self._slots.values()))
        return self._slots[name]


def loopback_bytes(table: str) -> int:
    """Sent over loopback, of the kernel's table of devices."""
    line = next(line for line in table.splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":", 1)[1].split()[8])
