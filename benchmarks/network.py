"""A simulated network of donors and one joiner, on which `benchmarks.scaleout` compares ways of moving a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from chaos.sim.bandwidth import Pipes
from chaos.sim.heap import EventHeap

JOINER = "f" * 16
FOREVER = 1e9
"""Seconds: no transfer takes so long."""
ERROR = 0.25
"""Standard deviation of the logarithm of (estimated / real rate): what is known of a link before it is used."""


@dataclass(frozen=True)
class Site:
    """A donor: what its link can do, up and down, and what was believed of it before."""

    name: str
    rate: float
    """B/s that training leaves over."""
    latency_s: float
    """One way, to the joiner."""
    estimate: float


@dataclass(frozen=True)
class Outcome:
    delay_s: float
    """Until the joiner has the state."""
    idle_s: float
    """For which every incumbent stands still."""


@dataclass(frozen=True)
class Instance:
    """One drawn network. Every method gets a fresh simulation of it."""

    state_bytes: int
    downlink: float
    donors: tuple[Site, ...]
    dip: tuple[float, int, float] | None = None
    """(second, donor, factor): from then on this donor has so much less."""

    @property
    def limit_s(self) -> float:
        """No method is faster on links that stay as they are."""
        return max(self.state_bytes / self.downlink, self.state_bytes / sum(donor.rate for donor in self.donors))

    def network(self) -> Network:
        return Network(self)


def draw(seed: int, state_bytes: int, donors: int, mbits: tuple[float, float]) -> Instance:
    """Rates are uniform on a logarithmic scale, as latencies from 1 to 100 ms are; the joiner is well connected."""
    random = Random(f"{seed}/{state_bytes}/{donors}/{mbits}")
    sites = []
    for number in range(donors):
        rate = mbits[0] * (mbits[1] / mbits[0]) ** random.random() * 1e6 / 8
        latency = 0.001 * 100 ** random.random()
        sites.append(Site(f"{number:016x}", rate, latency, rate * random.lognormvariate(0.0, ERROR)))
    return Instance(state_bytes, 4 * mbits[1] * 1e6 / 8, tuple(sites))


class Network:
    """One simulation."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.state_bytes = instance.state_bytes
        self.donors = instance.donors
        self.heap = EventHeap()
        self._rates = {donor.name: donor.rate for donor in instance.donors}
        self._pipes = Pipes(self.heap, instance.downlink, self._rates)
        self._latency = {donor.name: donor.latency_s for donor in instance.donors} | {JOINER: 0.0}
        if instance.dip is not None:
            when, which, factor = instance.dip
            self.heap.at(when, lambda: self._slow(instance.donors[which].name, factor))

    def _slow(self, name: str, factor: float) -> None:
        self._rates[name] *= factor

    def send(self, src: str, dst: str, nbytes: float, left: Callable[[], None], arrived: Callable[[], None]) -> None:
        """Call `left` when the last byte has left, `arrived` when it is there."""

        def done() -> None:
            left()
            self.heap.at(max(self._latency[src], self._latency[dst]), arrived)

        self._pipes.start(src, dst, nbytes, done)

    def after_request(self, donor: str, do: Callable[[], None]) -> None:
        """Call `do` when a message of the joiner has reached the donor."""
        self.heap.at(self._latency[donor], do)

    def pull(self, parts: Mapping[str, float]) -> float:
        """The joiner asks each donor for so many bytes at once; seconds until the last has arrived."""
        missing = set(parts)
        for name, nbytes in parts.items():
            self.after_request(name, lambda n=name, b=nbytes: self._one(n, JOINER, b, missing, n))
        return self.until(lambda: not missing)

    def copy(self, flows: Sequence[tuple[str, str, float]]) -> float:
        """All these flows from now on; seconds until the last is done."""
        missing = set(range(len(flows)))
        for number, (src, dst, nbytes) in enumerate(flows):
            self._one(src, dst, nbytes, missing, number)
        return self.until(lambda: not missing)

    def _one(self, src: str, dst: str, nbytes: float, missing: set, key: object) -> None:
        self.send(src, dst, nbytes, lambda: None, lambda: missing.discard(key))

    def until(self, condition: Callable[[], bool]) -> float:
        """Seconds of the simulation at which the condition holds. RuntimeError if it never does."""
        if not self.heap.reaches(condition, FOREVER):
            raise RuntimeError("the transfer never ended")
        return self.heap.now
