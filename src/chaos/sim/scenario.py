"""Scenarios as files: who is there, what the network is like, and what happens when.

    peers = 3
    steps = 60
    latency_ms = 20
    [[fault]]
    at = 1.0            # seconds after all peers have become members
    do = "partition"
    peers = [2]
    seconds = 4.0

`docs/simulator.md` lists the verbs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from chaos.core.errors import ChaosError
from chaos.sim.calm import Calm
from chaos.sim.faults import Faults
from chaos.sim.network import pair_of
from chaos.sim.peer import SimPeer
from chaos.sim.runs import Run
from chaos.sim.symbols import peer_id
from chaos.sim.world import World

START_S = 60.0
"""By then all initial peers have to be members."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of what happens. Which fields count depends on `do`."""

    at: float
    do: str
    peers: tuple[int, ...] = ()
    seconds: float = 4.0
    actions: int = 1
    times: int = 5
    extra_ms: float = 300.0
    factor: float = 4.0
    count: int = 1


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    peers: int = 3
    steps: int = 0
    """At least so many become stable."""
    latency_ms: float = 1.0
    compute_ms: float = 20.0
    samples: int = 10_000
    fault: tuple[Fault, ...] = ()


def load(path: Path) -> Scenario:
    """Raises ChaosError: it can't be read, or says what no scenario may say."""
    try:
        scenario = msgspec.convert(tomllib.loads(path.read_text()), Scenario)
    except OSError as error:
        raise ChaosError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ChaosError(f"{path} is no scenario: {error}; see docs/simulator.md") from error
    for fault in scenario.fault:
        if fault.do not in VERBS:
            raise ChaosError(f"{path}: '{fault.do}' is nothing that can happen; there are {', '.join(VERBS)}")
        if len(fault.peers) < VERBS[fault.do]:
            raise ChaosError(f"{path}: '{fault.do}' needs {VERBS[fault.do]} of 'peers', as numbers from 0 on")
    return scenario


VERBS = {
    "join": 2, "crash": 1, "crash_between": 1, "lose_host": 1, "restart": 2, "kill_worker": 1, "leave": 1,
    "freeze": 1, "slow": 1, "reset": 2, "cut": 2, "link_by_order": 2, "flap": 2, "one_way": 2, "partition": 1,
    "delay": 2, "corrupt_shards": 0, "flip_bit": 1, "stranger": 1,
}  # fmt: skip
"""What can happen, and how many peers it needs."""


class ScenarioRun(Run):
    """One run of a scenario; the seed draws delays and computing times."""

    def __init__(
        self, scenario: Scenario, seed: int, steps: int = 0, omit: Collection[int] = (), limit: int | None = None
    ) -> None:
        self._scenario = scenario
        world = World(seed)
        super().__init__(world)
        world.network.latency = scenario.latency_ms / 1000
        world.compute = scenario.compute_ms / 1000
        world.samples = scenario.samples
        ordered = sorted(scenario.fault, key=lambda f: f.at)
        self._planned = [f for number, f in enumerate(ordered[:limit]) if number not in omit]
        self.calm = Calm(self.faults, Random(f"scenario {seed}"), max(steps, scenario.steps))

    def run(self) -> None:
        world, scenario = self.world, self._scenario
        world.found(0)
        for index in range(1, scenario.peers):
            world.join(index, 0)
        world.run_until(lambda: len(world.members()) == scenario.peers, START_S)
        began = world.now
        for fault in self._planned:
            world.run(max(world.now, began + fault.at))
            if self._do(fault):
                self.tally.note(world.now, fault.do, f"peers {list(fault.peers)}")
        world.run(max([world.now, *(began + fault.at + fault.seconds for fault in self._planned)]))
        self.lost = not self.calm.settle()

    def _peer(self, index: int) -> SimPeer | None:
        peer = self.world.peers.get(peer_id(index))
        return peer if peer is not None and peer.alive and peer.stopped is None else None

    def _do(self, fault: Fault) -> bool:
        """False if the peer that it is about is not there any more."""
        faults, ids = self.faults, [peer_id(index) for index in fault.peers]
        if fault.do == "join":
            faults.join(fault.peers[0], fault.peers[1])
            return True
        if fault.do == "corrupt_shards":
            faults.corrupt_shards(fault.count)
            return True
        if fault.do in ("reset", "cut", "flap", "delay", "one_way"):
            self._do_link(fault, (ids[0], ids[1]))
            return True
        if fault.do == "partition":
            faults.partition(ids, fault.seconds)
            return True
        peer = self._peer(fault.peers[0])
        if peer is None:
            return False
        self._do_peer(fault, peer)
        return True

    def _do_link(self, fault: Fault, direction: tuple[str, str]) -> None:
        faults, pair = self.faults, pair_of(*direction)
        match fault.do:
            case "reset":
                faults.reset([pair])
            case "cut":
                faults.cut([pair], fault.seconds)
            case "flap":
                faults.flap(pair, fault.times, fault.seconds / fault.times)
            case "one_way":
                faults.block([direction], fault.seconds)
            case "delay":
                faults.delay([pair, pair[::-1]], fault.extra_ms / 1000, fault.seconds)

    def _do_peer(self, fault: Fault, peer: SimPeer) -> None:
        faults: Faults = self.faults
        verbs: dict[str, Any] = {
            "crash": lambda: faults.crash(peer),
            "crash_between": lambda: faults.crash_between(peer, fault.actions),
            "lose_host": lambda: faults.lose_host(peer, dark=True),
            "restart": lambda: faults.restart(peer, fault.peers[1], fault.seconds),
            "kill_worker": lambda: faults.kill_worker(peer, fault.seconds),
            "leave": lambda: faults.leave(peer),
            "freeze": lambda: faults.freeze(peer, fault.seconds),
            "slow": lambda: faults.slow(peer, 0.0005, fault.factor, fault.seconds),
            "flip_bit": lambda: faults.flip_bit(peer, fault.count),
            "stranger": lambda: faults.strange(peer, 40),
            "link_by_order": lambda: faults.order_link(peer, peer_id(fault.peers[1]), fault.seconds),
        }
        verbs[fault.do]()
