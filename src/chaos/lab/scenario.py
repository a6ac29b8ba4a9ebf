"""A lab's scenario as a file: hosts, links, and what happens when. `docs/lab.md` explains every field.

A scenario of the simulator is one of the lab too, as far as real processes can do what it says.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from chaos.core.errors import ChaosError
from chaos.lab.carrier import MAX_HOSTS, Quality, mesh

UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
RATE = re.compile(r"(\d+(?:\.\d+)?)(?:\.\.(\d+(?:\.\d+)?))?\s*([kmg]?)bit", re.IGNORECASE)


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One machine. Left out: named p0, p1 ... and without limits."""

    name: str = ""
    party: str = "lab"
    up: str = ""
    """Rate that all its links share in this direction; empty: no limit."""
    down: str = ""
    cores: float = 0.0
    memory_mb: int = 0
    late: bool = False
    """Not there at the beginning: a fault 'join' starts it."""
    stranger: bool = False
    """Its party is admitted by a fault 'admit' only."""


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What differs between two hosts from the scenario's own values."""

    between: tuple[int | str, int | str]
    rate: str | None = None
    latency_ms: float | None = None
    jitter_ms: float | None = None
    loss: float | None = None
    queue_ms: float | None = None


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of what happens. Which fields count depends on `do`."""

    do: str
    at: float = 0.0
    """Seconds after all initial hosts are members."""
    step: int = 0
    """Instead of `at`: once this step is committed somewhere."""
    peers: tuple[int | str, ...] = ()
    seconds: float = 4.0
    times: int = 5
    extra_ms: float = 300.0
    rate: str | None = None
    latency_ms: float | None = None
    jitter_ms: float | None = None
    loss: float | None = None


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    peers: int = 3
    """Hosts, where the tables [[host]] do not list them."""
    steps: int = 0
    """At least so many become stable."""
    latency_ms: float = 1.0
    jitter_ms: float = 0.0
    rate: str = ""
    """As '50mbit'; empty: no limit. '20..155mbit': each link draws its own."""
    redraw_s: float = 0.0
    """Draw all rates anew so often; 0: never."""
    loss: float = 0.0
    queue_ms: float = 100.0
    mtu: int = 1500
    listed_only: bool = False
    """Only the links of the tables [[link]] are there."""
    seed: int = 0
    compute_ms: float = 20.0
    samples: int = 10_000
    state_mb: float = 4.0
    """Parameters; as much again is momentum."""
    script: str = ""
    """Instead of the lab's own job, relative to the scenario's file. It has to end by itself, everywhere alike."""
    args: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Further options of the founder's `chaos run`."""
    host: tuple[Host, ...] = ()
    link: tuple[Link, ...] = ()
    fault: tuple[Fault, ...] = ()
    one_by_one: bool = False
    """A fault waits until all are members again that are to be."""

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All of them, with their names."""
        given = self.host or (Host(),) * self.peers
        return tuple(h if h.name else msgspec.structs.replace(h, name=f"p{n}") for n, h in enumerate(given))

    def loses_packets(self) -> bool:
        """Whether some link has a loss at some time."""
        losses = [self.loss, *(link.loss for link in self.link), *(fault.loss for fault in self.fault)]
        return any(losses)

    def number(self, who: int | str) -> int:
        """A host's number. Raises ChaosError if there is none."""
        names = [host.name for host in self.hosts]
        if isinstance(who, int) and 0 <= who < len(names):
            return who
        if who in names:
            return names.index(str(who))
        raise ChaosError(f"there is no host {who!r}; there are {', '.join(names)}")

    def pairs(self) -> list[tuple[int, int]]:
        """The links that there are, lower number first."""
        if not self.listed_only:
            return list(mesh(len(self.hosts)))
        return sorted({self._ends(link) for link in self.link})

    def quality(self, pair: tuple[int, int], random: Random) -> Quality:
        """Of a link, lower number first; draws the rate where it is a range."""
        values: dict[str, Any] = {
            name: getattr(self, name) for name in ("rate", "latency_ms", "jitter_ms", "loss", "queue_ms")
        }
        for link in self.link:
            if self._ends(link) == pair:
                values |= {name: value for name in values if (value := getattr(link, name)) is not None}
        return Quality(**values | {"rate": draw(values["rate"], random)})

    def _ends(self, link: Link) -> tuple[int, int]:
        a, b = (self.number(end) for end in link.between)
        return min(a, b), max(a, b)


VERBS = {
    "join": 1, "restart": 1, "crash": 1, "kill_worker": 1, "lose_host": 1, "leave": 1, "freeze": 1,
    "cut": 2, "one_way": 2, "flap": 2, "partition": 1, "delay": 2, "link": 2, "disconnect": 2, "connect": 2, "admit": 1,
}  # fmt: skip
"""What can happen, and how many peers it needs."""
SIMULATED = ("crash_between", "corrupt_shards", "flip_bit", "stranger", "reset", "slow")
"""What only the simulator can do."""


def load(path: Path) -> Scenario:
    """Raises ChaosError: it can't be read, or says what no scenario may say."""
    try:
        scenario = msgspec.convert(tomllib.loads(path.read_text()), Scenario)
    except OSError as error:
        raise ChaosError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ChaosError(f"{path} is no scenario: {error}; see docs/lab.md") from error
    try:
        check(scenario)
    except ChaosError as error:
        raise ChaosError(f"{path}: {error}") from error
    return scenario


def check(scenario: Scenario) -> None:
    """Raises ChaosError naming what makes no sense."""
    hosts = scenario.hosts
    if not 1 <= len(hosts) <= MAX_HOSTS:
        raise ChaosError(f"a lab has 1 to {MAX_HOSTS} hosts, not {len(hosts)}")
    if len({host.name for host in hosts}) < len(hosts):
        raise ChaosError("two hosts have one name")
    if hosts[0].late:
        raise ChaosError(f"{hosts[0].name} founds the run, so it can't be late; put another host first")
    for host in hosts:
        parse_rate(host.up), parse_rate(host.down)
    for pair in scenario.pairs():
        scenario.quality(pair, Random(0))
    for fault in scenario.fault:
        if fault.do in SIMULATED:
            raise ChaosError(f"'{fault.do}' is for the simulator only; use `chaos sim --scenario`")
        if fault.do not in VERBS:
            raise ChaosError(f"'{fault.do}' is nothing that can happen; there are {', '.join(VERBS)}")
        if len(fault.peers) < VERBS[fault.do]:
            raise ChaosError(f"'{fault.do}' needs {VERBS[fault.do]} of 'peers', as numbers from 0 on, or names")
        for who in fault.peers:
            scenario.number(who)
        parse_rate(fault.rate or "")


def parse_rate(text: str) -> tuple[float, float]:
    """'20mbit' or '20..155mbit' in bits per second, lowest and highest; (0, 0), no limit, for the empty text."""
    if not text:
        return 0.0, 0.0
    found = RATE.fullmatch(text.strip())
    if found is None:
        raise ChaosError(f"'{text}' is no rate; write it as 500kbit, 20mbit, 1gbit or 20..155mbit")
    unit = UNITS[found.group(3).lower()]
    low, high = float(found.group(1)) * unit, float(found.group(2) or found.group(1)) * unit
    if not 0 < low <= high:
        raise ChaosError(f"'{text}' is no rate; it has to be above 0, and the lower bound first")
    return low, high


def draw(text: str, random: Random) -> float:
    """A rate within the range."""
    low, high = parse_rate(text)
    return random.uniform(low, high) if low < high else low
