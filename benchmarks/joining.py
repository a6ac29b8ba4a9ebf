"""A peer joins over shaped links, with real agents in the lab: what the links allow, what it takes, who feels it.

    python -m benchmarks.joining                                       all cases, as a table
    python -m benchmarks.joining --case 0 --picture docs/images/join.png

Each host's uplink has a rate of its own; gradients, results and shards share it. The limit is the state's size over
what training had left of the donors' uplinks in the seconds before the join, counted on the wire with all headers.
The simulated delay is that of `benchmarks.scaleout` on the same rates.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.cluster import WORKER, python_path
from benchmarks.network import Instance, Site
from benchmarks.report import Table, machine, progress, spread
from benchmarks.scaleout import Chaos
from chaos.core.errors import ChaosError
from chaos.lab.hosts import Hosts
from chaos.lab.network import Network
from chaos.lab.scenario import Host, Scenario
from chaos.lab.wire import missing
from chaos.observe.trace_file import Entry, TraceFiles

LOOK_S = 0.1
QUIET_S = 8.0
"""Of training without a joiner, before and after."""
PATIENCE_S = 400.0


@dataclass(frozen=True)
class Case:
    name: str
    ups: tuple[int, ...]
    """Mbit/s of each donor's uplink; the joiner has as much down as all of them together."""
    frozen: int
    """Millions of parameters without gradients: most of the state."""
    thousands: int
    """Thousands of parameters that are trained, by Adam."""
    compute_ms: int
    latency_ms: float = 10.0


CASES = (
    Case("2 donors, 100 MB", (60, 100), 25, 100, 250),
    Case("3 donors, 200 MB", (40, 80, 120), 50, 100, 250),
    Case("5 donors, 300 MB", (30, 50, 70, 90, 110), 75, 100, 250),
    Case("3 donors, 100 MB, half of the time for gradients", (80, 80, 80), 22, 1000, 500),
    Case("3 donors, 100 MB, bound by gradients", (80, 80, 80), 22, 1000, 0),
)


@dataclass
class Look:
    """Bytes that had been delivered by then, by sender and receiver."""

    t: float
    delivered: dict[tuple[int, int], int]


@dataclass
class Join:
    """One join, measured."""

    case: Case
    looks: list[Look] = field(default_factory=list)
    commits: list[float] = field(default_factory=list)
    """Times of the first donor's commits."""
    started: float = 0.0
    """When its process did."""
    began: float = 0.0
    """When the joiner began to fetch."""
    fetched_s: float = 0.0
    ended: float = 0.0
    """When it was a member."""
    state_bytes: int = 0
    again: int = 0
    late_ms: float = 0.0
    late_steps: bool = False

    @property
    def joiner(self) -> int:
        return len(self.case.ups)

    def sent(self, sender: int, receivers: Sequence[int], start: float, stop: float) -> float:
        """B/s from this host to those, with all headers."""
        inside = [look for look in self.looks if start <= look.t <= stop]
        first, last = inside[0], inside[-1]
        total = sum(last.delivered[sender, other] - first.delivered[sender, other] for other in receivers)
        return total / (last.t - first.t)

    def spare(self) -> list[float]:
        """B/s that training left of each donor's uplink before the join."""
        donors = range(self.joiner)
        quiet = self.looks[0].t, self.began - (self.began - self.looks[0].t) * 0.4
        return [
            up * 1e6 / 8 - self.sent(number, [d for d in donors if d != number], *quiet)
            for number, up in enumerate(self.case.ups)
        ]

    def limit_s(self) -> float:
        return self.state_bytes / sum(max(rate, 1.0) for rate in self.spare())

    def simulated_s(self) -> float:
        sites = [
            Site(f"{number:016x}", max(rate, 1.0), self.case.latency_ms / 1000, rate)
            for number, rate in enumerate(self.spare())
        ]
        return Chaos(Instance(self.state_bytes, sum(self.case.ups) * 1e6 / 8, tuple(sites)).network()).run().delay_s

    def steps(self, start: float, stop: float) -> list[float]:
        """Times from commit to commit."""
        return [b - a for a, b in pairwise(self.commits) if start <= a and b <= stop]

    def before(self) -> list[float]:
        return self.steps(self.looks[0].t, self.began - (self.began - self.looks[0].t) * 0.4)

    def during(self) -> list[float]:
        return self.steps(self.began, self.began + self.fetched_s)


def run(case: Case) -> Join:
    join = Join(case)
    args = ["--millions", "0", "--thousands", str(case.thousands), "--frozen-millions", str(case.frozen)]
    args += ["--optimizer", "adam", "--compute-ms", str(case.compute_ms)]
    hosts_of = [Host(name=f"donor{n}", up=f"{up}mbit", down="1gbit") for n, up in enumerate(case.ups)]
    hosts_of.append(Host(name="joiner", up="100mbit", down=f"{sum(case.ups)}mbit"))
    scenario = Scenario(host=tuple(hosts_of), latency_ms=case.latency_ms, script=str(WORKER), args=tuple(args))
    with TemporaryDirectory(prefix="chaos-bench-") as folder, Hosts(scenario, Path(folder), Path(folder)) as hosts:
        Network(hosts.wire, scenario)
        donors = len(case.ups)
        hosts.start(0, [], "--min-peers", str(donors))
        hosts.peers[0].address()
        for number in range(1, donors):
            hosts.start(number, [0])
        trace = Traces(hosts, range(donors))
        trace.wait(lambda: len(trace.of(0, "commit")) >= 5, "the first steps")
        look_for(join, hosts, QUIET_S)
        join.started = hosts.start(donors, [0]).started
        trace.add(donors)
        deadline = time.monotonic() + PATIENCE_S
        while not trace.is_member(donors):
            look_for(join, hosts, LOOK_S)
            if time.monotonic() > deadline:
                raise ChaosError(f"{case.name}: the joiner was no member after {PATIENCE_S:.0f} s")
        look_for(join, hosts, QUIET_S / 2)
        note(join, trace)
        join.late_ms = hosts.wire.traffic()[1] * 1000
    return join


def look_for(join: Join, hosts: Hosts, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        traffic, _ = hosts.wire.traffic()
        join.looks.append(Look(time.monotonic(), {way: found.nbytes for way, found in traffic.items()}))
        time.sleep(LOOK_S)


def note(join: Join, trace: Traces) -> None:
    join.commits = [entry.t for entry in trace.of(0, "commit")]
    (fetched,) = trace.of(join.joiner, "fetched_state")[-1:]  # of several, if results ran away from the first
    join.began = next(entry.t for entry in trace.of(join.joiner, "learner") if entry["phase"] == "fetch")
    join.fetched_s, join.state_bytes, join.again = fetched.t - join.began, fetched["bytes"], fetched["again"]
    join.ended = trace.became_member(join.joiner)
    join.late_steps = bool(trace.of(join.joiner, "catch_up_mode"))


class Traces:
    """What the agents wrote, read again whenever somebody asks."""

    def __init__(self, hosts: Hosts, numbers: Sequence[int]) -> None:
        self._hosts = hosts
        self._files: dict[int, TraceFiles] = {}
        self._entries: dict[int, list[Entry]] = {}
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> None:
        name = self._hosts.name(number)
        self._files[number] = TraceFiles({name: self._hosts.trace(number)})
        self._entries[number] = []

    def of(self, number: int, kind: str) -> list[Entry]:
        self._entries[number] += self._files[number].read()
        return [entry for entry in self._entries[number] if entry.kind == kind]

    def is_member(self, number: int) -> bool:
        return any(entry["role"] == "member" for entry in self.of(number, "view"))

    def became_member(self, number: int) -> float:
        return next(entry.t for entry in self.of(number, "view") if entry["role"] == "member")

    def wait(self, until: object, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            for peer in self._hosts.peers.values():
                peer.check()
            if time.monotonic() > deadline:
                last = {self._hosts.name(n): self._entries[n][-1:] for n in self._files}
                raise ChaosError(f"waited {PATIENCE_S:.0f} s for {what}; the last lines are {last}")
            time.sleep(0.1)


def row(join: Join) -> tuple[str, ...]:
    before, during = median(join.before()), median(join.during() or [float("nan")])
    limit, simulated = join.limit_s(), join.simulated_s()
    return (
        join.case.name,
        "/".join(map(str, join.case.ups)),
        f"{limit:.2f}",
        f"{join.fetched_s:.2f}",
        f"{join.fetched_s / limit:.2f}",
        f"{simulated / limit:.2f}",
        f"{join.fetched_s / simulated:.2f}",
        spread(join.before(), 1000),
        spread(join.during(), 1000),
        f"{during / before:.2f}",
        f"{join.late_ms:.1f}",
    )


COLUMNS = (
    "state",
    "uplinks (Mbit/s)",
    "limit (s)",
    "fetched in (s)",
    "over the limit",
    "simulated",
    "real / simulated",
    "step before (ms)",
    "step meanwhile (ms)",
    "ratio",
    "latest packet (ms)",
)


def picture(join: Join, path: Path) -> None:
    """Above, what came from each donor; below, how long the first donor's steps took. Time 0: the joiner's process."""
    from matplotlib.figure import Figure  # only who draws has to have it

    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    start = join.started
    for donor, up in enumerate(join.case.ups):
        ways = [(look.t - start, look.delivered.get((donor, join.joiner), 0)) for look in join.looks]
        rates = [((b[0] + a[0]) / 2, (b[1] - a[1]) / (b[0] - a[0]) / 1e6) for a, b in zip(ways, ways[5:], strict=False)]
        above.plot(*zip(*rates, strict=True), label=f"donor {donor + 1}, uplink {up} Mbit/s")
    above.set_ylabel("to the joiner (MB/s)")
    above.legend(fontsize=8, loc="upper right")
    above.set_title(f"A peer joins: {join.state_bytes / 1e6:.0f} MB of state", fontsize=10)
    steps = [(b - start, (b - a) * 1000) for a, b in pairwise(join.commits)]
    below.plot(*zip(*steps, strict=True), marker=".", linewidth=0.8, color="#333333")
    below.set_ylabel("an incumbent's\nsteps (ms)")
    below.set_ylim(0, 1.1 * max(ms for t, ms in steps if t > join.looks[0].t - start))
    below.set_xlabel("seconds")
    below.set_xlim(join.looks[0].t - start, join.looks[-1].t - start)
    for axes in (above, below):
        axes.axvspan(join.began - start, join.began + join.fetched_s - start, color="#0072b2", alpha=0.12)
        axes.axvline(join.ended - start, color="black", linestyle=":", linewidth=1)
        axes.grid(alpha=0.3)
    below.text(join.ended - start, 0, " member", fontsize=8, va="bottom")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, action="append", help="number of a case, from 0; else all")
    parser.add_argument("--picture", type=Path, help="draw the first of them")
    options = parser.parse_args()
    if (reason := missing()) is not None:
        sys.exit(f"no lab here: {reason}")
    os.environ["PYTHONPATH"] = python_path()
    chosen = [CASES[number] for number in options.case] if options.case else CASES
    table = Table("A join over shaped links, real agents", COLUMNS)
    joins = []
    for case in chosen:
        joins.append(run(case))
        table.rows.append(row(joins[-1]))
        progress(" | ".join(table.rows[-1]))
        if options.picture and len(joins) == 1:
            picture(joins[0], options.picture)
    sys.stdout.write(table.text() + machine() + "\n")


if __name__ == "__main__":
    main()
