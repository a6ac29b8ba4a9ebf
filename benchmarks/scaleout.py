"""How long a joiner waits for the state, over what the links allow: Chaos and seven other ways on the same networks.

Simulated: flows that share uplinks and downlinks fairly, latencies, and on top of it the real `core.fetch` with the
real `planning.replan`, which know nothing of the links beforehand. The other methods that share out know each rate
with an error of 25 %. The limit counts what training leaves over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import median

from benchmarks import baselines
from benchmarks.network import JOINER, Instance, Network, Outcome, draw
from benchmarks.report import Table, progress, spread
from chaos.core.actions import Send
from chaos.core.context import Context, NodeConfig
from chaos.core.events import ShardStored
from chaos.core.fetch import Fetch
from chaos.core.messages import ShardRequest, SnapshotOffer
from chaos.core.types import DataState, PeerInfo, StateManifest
from chaos.planning.shards import shard_size

TICK_S = 0.02
SLOW, FAST = (20.0, 155.0), (100.0, 1000.0)
"""Mbit/s."""
DONORS = (2, 4, 8, 16, 32)
CASES = {10**8: (4, DONORS), 10**9: (2, (2, 8, 32)), 10**10: (1, (8,)), 10**11: (1, (8,))}
"""Bytes of state: how many networks are drawn per number of donors and range of rates; for which numbers of donors."""
DIPPED_STATE, DIPPED_DONORS = 10**9, 8


@dataclass
class Serving:
    """A donor's side, as in the agent: a new request replaces the former, but for what was begun."""

    queue: deque[int] = field(default_factory=deque)
    begun: set[int] = field(default_factory=set)
    busy: bool = False


class Chaos:
    """One join: `core.fetch` on a simulated network."""

    def __init__(self, net: Network) -> None:
        self.net = net
        me = PeerInfo(JOINER, 1, "joiner", "0" * 64, b"\0" * 32, ())
        self.ctx = Context(NodeConfig(verify=lambda *_: True), me)
        size = shard_size(net.state_bytes)
        count = -(-net.state_bytes // size)
        manifest = StateManifest(1, net.state_bytes, (), b"")
        self.fetch = Fetch(self.ctx, SnapshotOffer(1, b"", DataState(), manifest, size, (b"",) * count))
        self.size = size
        self.serving = {donor.name: Serving() for donor in net.donors}
        self.sent = 0

    def run(self) -> Outcome:
        self.fetch.on_held(())
        for donor in self.net.donors:
            self.net.after_request(donor.name, lambda d=donor: self.net.heap.at(d.latency_s, lambda: self._offers(d)))
        self._tick()
        return Outcome(self.net.until(lambda: self.fetch.complete), 0.0)

    def _offers(self, donor: object) -> None:
        self._do(lambda: self.fetch.add(donor.name, (0.0, 2 * donor.latency_s)))

    def _do(self, what: Callable[[], object]) -> None:
        self.ctx.now = self.net.heap.now
        what()
        out, self.ctx.out = self.ctx.out, []
        for action in out:
            if isinstance(action, Send) and isinstance(action.message, ShardRequest):
                request = action.message
                self.net.after_request(action.dst, lambda d=action.dst, r=request: self._asked(d, r))

    def _tick(self) -> None:
        self._do(self.fetch.tick)
        if not self.fetch.complete:
            self.net.heap.at(TICK_S, self._tick)

    def _asked(self, donor: str, request: ShardRequest) -> None:
        serving = self.serving[donor]
        if request.afresh:
            serving.begun.clear()
        serving.queue = deque(shard for shard in request.shards if shard not in serving.begun)
        self._next(donor)

    def _next(self, donor: str) -> None:
        serving = self.serving[donor]
        if serving.busy or not serving.queue:
            return
        shard = serving.queue.popleft()
        serving.begun.add(shard)
        serving.busy = True
        self.sent += 1
        nbytes = min(self.size, self.net.state_bytes - shard * self.size)

        def left() -> None:
            serving.busy = False
            self._next(donor)

        def arrived() -> None:
            self._do(lambda: self.fetch.on_shard(ShardStored(1, shard, donor, True)))

        self.net.send(donor, JOINER, nbytes, left, arrived)


METHODS: dict[str, Callable[[Network], Outcome]] = {
    "Chaos": lambda net: Chaos(net).run(),
    "proportional split": baselines.proportional_split,
    "whole tensors": baselines.whole_tensors,
    "equal split": baselines.equal_split,
    "one source (EDL)": baselines.one_source,
    "nearest neighbour (Elan)": baselines.nearest_neighbour,
    "ring broadcast (Autoscaling)": baselines.all_reduce_broadcast,
    "stop and restart (Pollux)": baselines.stop_and_restart,
}


def measure(instance: Instance) -> dict[str, Outcome]:
    return {name: method(instance.network()) for name, method in METHODS.items()}


@dataclass
class Measured:
    """Of each method, by bytes of state and number of donors: one value per network."""

    ratios: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)
    """Delay over the limit."""
    idle: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)
    """Seconds for which every incumbent stands still."""
    dipped: dict[str, list[float]] = field(default_factory=dict)
    """Delay over the limit, where a donor falls to a tenth after a third of it."""

    def ratio(self, name: str, states: Iterable[int], donors: Iterable[int]) -> list[float]:
        ways = [(name, state, count) for state in states for count in donors]
        return [ratio for way in ways for ratio in self.ratios.get(way, ())]


def measure_all() -> Measured:
    found = Measured()
    began = time.monotonic()
    for state_bytes, (number, several) in CASES.items():
        for donors in several:
            for mbits in (SLOW, FAST):
                for seed in range(number):
                    instance = draw(seed, state_bytes, donors, mbits)
                    for name, outcome in measure(instance).items():
                        way = name, state_bytes, donors
                        found.ratios.setdefault(way, []).append(outcome.delay_s / instance.limit_s)
                        found.idle.setdefault(way, []).append(outcome.idle_s)
                    if state_bytes == DIPPED_STATE and donors == DIPPED_DONORS:
                        dip = replace(instance, dip=(instance.limit_s / 3, seed % donors, 0.1))
                        for name, outcome in measure(dip).items():
                            found.dipped.setdefault(name, []).append(outcome.delay_s / instance.limit_s)
            progress(f"{state_bytes:.0e} bytes, {donors} donors: {time.monotonic() - began:.0f} s")
    return found


def run() -> list[Table]:
    found = measure_all()
    by_donors = Table(
        "Simulated joins: delay over the limit, by donors (all states; median, lowest, highest)",
        ("method", *map(str, DONORS)),
        axes=("donors", "delay / what the links allow (median)"),
    )
    by_state = Table("Simulated joins: delay over the limit, by state", ("method", *(f"{s / 1e9:g} GB" for s in CASES)))
    waits = Table(
        "Simulated joins: seconds for which every incumbent stands still, 100 MB (median)",
        ("method", *map(str, DONORS)),
    )
    dips = Table(
        "Simulated joins: delay over the limit, 1 GB from 8 donors, of which one falls to a tenth after a third",
        ("method", "ratio"),
    )
    for name in METHODS:
        several = {count: found.ratio(name, CASES, [count]) for count in DONORS}
        by_donors.rows.append((name, *(spread(ratios, digits=2) for ratios in several.values())))
        by_donors.lines[name] = {count: median(ratios) for count, ratios in several.items()}
        by_state.rows.append((name, *(spread(found.ratio(name, [s], DONORS), digits=2) for s in CASES)))
        waits.rows.append((name, *(f"{median(found.idle[name, 10**8, d]):.1f}" for d in DONORS)))
        waits.bars[f"{name}, 8 donors"] = median(found.idle[name, 10**8, 8])
        dips.rows.append((name, spread(found.dipped[name], digits=2)))
    return [by_donors, by_state, waits, dips]
