"""What may happen in a lab: each verb of a scenario, done to real processes and to the wire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from chaos.core.errors import ChaosError
from chaos.lab.hosts import Hosts
from chaos.lab.network import Network
from chaos.lab.scenario import Fault

Later = Callable[[float, Callable[[], None]], None]
"""Seconds from now, and what is to be done then."""


@dataclass(frozen=True)
class Done:
    """A fault that was done."""

    at: float
    """Seconds on the monotonic clock."""
    do: str
    names: tuple[str, ...]
    fault: Fault


class Faults:
    """Does what a scenario says. `present` are the hosts whose peers are to be members when all is over."""

    def __init__(self, hosts: Hosts, network: Network, later: Later) -> None:
        self._hosts = hosts
        self._network = network
        self._later = later
        self.present: set[int] = set()
        self.left: set[int] = set()
        self._frozen: set[int] = set()

    def start(self, host: int, contacts: list[int], *options: str) -> None:
        """Start a host's peer."""
        self._hosts.start(host, contacts, *options)
        self.present.add(host)
        self.left.discard(host)

    def do(self, fault: Fault) -> None:
        """Raises ChaosError if it can't be done."""
        hosts = [self._hosts.scenario.number(who) for who in fault.peers]
        for host in hosts if fault.do in ON_PEERS else ():
            if host not in self.present:
                raise ChaosError(f"'{fault.do}' for {self._hosts.name(host)}: it is not there at that time")
        if fault.do in ("cut", "one_way", "flap", "partition", "delay", "link"):
            self._do_link(fault, hosts)
        else:
            self._do_peer(fault, hosts)

    def heal(self) -> None:
        """Everything works again that is not lost for ever."""
        self._network.heal()
        for host in sorted(self._frozen):
            self._wake(host)

    def _do_peer(self, fault: Fault, hosts: list[int]) -> None:
        first = hosts[0]
        verbs: dict[str, Callable[[], Any]] = {
            "join": lambda: self._join(first, hosts[1:]),
            "restart": lambda: self._restart(first, fault.seconds),
            "crash": lambda: self._hosts.peers[first].kill_part("agent"),
            "kill_worker": lambda: self._hosts.peers[first].kill_part("worker"),
            "lose_host": lambda: self._lose(first),
            "leave": lambda: self._leave(first),
            "freeze": lambda: self._freeze(first, fault.seconds),
            "admit": lambda: self._hosts.admit(first),
            "disconnect": lambda: self._hosts.client(first, "link", "disconnect", self._hosts.name(hosts[1])),
            "connect": lambda: self._hosts.client(first, "link", "connect", self._hosts.name(hosts[1])),
        }
        verbs[fault.do]()

    def _do_link(self, fault: Fault, hosts: list[int]) -> None:
        network = self._network
        pair = (hosts[0], hosts[-1])
        both = [pair, pair[::-1]]
        match fault.do:
            case "cut":
                self._block(both, fault.seconds)
            case "one_way":
                self._block([pair], fault.seconds)
            case "flap":
                period = fault.seconds / fault.times
                for turn in range(fault.times):
                    self._later(turn * period, lambda: self._block(both, period / 2))
            case "partition":
                others = set(range(len(self._hosts.scenario.hosts))) - set(hosts)
                self._block(network.links_between(hosts, others), fault.seconds)
            case "delay":
                network.delay(pair, fault.extra_ms)
                self._later(fault.seconds, lambda: network.delay(pair, -fault.extra_ms))
            case "link":
                network.change(pair, fault)

    def _block(self, directions: list[tuple[int, int]], seconds: float) -> None:
        self._network.block(directions)
        self._later(seconds, lambda: self._network.unblock(directions))

    def _join(self, host: int, contacts: list[int]) -> None:
        if host in self.present:
            raise ChaosError(f"'join' for {self._hosts.name(host)}: it is there already")
        near = [other for other in self._network.neighbours(host) if other in self.present]
        self.start(host, contacts or near)

    def _restart(self, host: int, seconds: float) -> None:
        self._lose(host)
        self._later(seconds, lambda: self._join(host, []))

    def _lose(self, host: int) -> None:
        self._hosts.peers[host].kill()
        self.present.discard(host)
        self._frozen.discard(host)

    def _leave(self, host: int) -> None:
        self._hosts.peers[host].ask_to_leave()
        self.present.discard(host)
        self.left.add(host)

    def _freeze(self, host: int, seconds: float) -> None:
        self._hosts.peers[host].freeze(True)
        self._frozen.add(host)
        self._later(seconds, lambda: self._wake(host))

    def _wake(self, host: int) -> None:
        if host not in self._frozen:
            return
        self._frozen.discard(host)
        try:
            self._hosts.peers[host].freeze(False)
        except psutil.NoSuchProcess as error:
            raise ChaosError(f"{self._hosts.name(host)} ended while it was frozen") from error


ON_PEERS = ("restart", "crash", "kill_worker", "lose_host", "leave", "freeze", "disconnect", "connect")
"""Verbs whose peers have to be there."""
