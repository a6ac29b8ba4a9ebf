"""Handling time of scale-in, connect-link and disconnect-link with 3, 6 and 9 agents: from the moment an agent learns
of the event to the moment it installs the new view, at every member; computing told from waiting.

The round trip it is compared with is the links' own: the lowest of the last ten pings, median of all links.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median, quantiles

from benchmarks.cluster import Peers
from benchmarks.report import Table, progress
from chaos.agent.client import request_link, request_status
from chaos.cli.demo_peers import name_of
from chaos.core.errors import ChaosError
from chaos.observe.trace_file import Entry

SIZES = (3, 6, 9)
EVENTS = ("scale-in", "disconnect-link", "connect-link")
CUTS = 20
LEAVES = 5
COMPUTE_MS = 200
"""Workers that leave the processors alone: what is measured is control, not who gets a core."""


@dataclass
class Measured:
    """Milliseconds, one value per event and member."""

    whole: list[float] = field(default_factory=list)
    computing: list[float] = field(default_factory=list)
    """Processor time in `Node.handle`."""
    acting: list[float] = field(default_factory=list)
    """Processor time for what it wants done: signatures, encoding, encryption, sending."""
    proposer: list[float] = field(default_factory=list)
    """The whole at the proposer, which counts from its own first news to the end of two rounds of messages."""

    def take(self, entry: Entry) -> None:
        self.whole.append(entry["handling_ms"])
        self.computing.append(entry["computing_ms"])
        self.acting.append(entry["acting_ms"])
        if entry["proposer"]:
            self.proposer.append(entry["handling_ms"])


def percentiles(values: list[float], digits: int = 2) -> str:
    """'p50 / p99'."""
    if len(values) < 2:
        return "none"
    return f"{median(values):.{digits}f} / {quantiles(values, n=100, method='inclusive')[98]:.{digits}f}"


def measure(size: int) -> tuple[dict[str, Measured], float]:
    """Figures by event, and the median round trip in milliseconds."""
    measured = {event: Measured() for event in EVENTS}
    with Peers(["--millions", "0", "--thousands", "10", "--compute-ms", str(COMPUTE_MS)]) as peers:
        peers.found(size)
        everybody = set(range(1, size + 1))
        peers.wait_members(everybody, 1)
        peers.wait_steps(1, 10)
        trips = round_trips(peers, everybody)
        for number in range(CUTS):
            one = number % size + 1
            other = one % size + 1
            for connect in (False, True):
                order(peers, one, other, connect)
                peers.wait_steps(1, 3)
        newest = size
        for number in range(LEAVES):
            leaver = max(everybody) if number % 2 else min(everybody - {1})
            peers.dismiss(leaver)
            newest += 1
            everybody = (everybody - {leaver}) | {newest}
            peers.join(newest, contact=1)
            peers.wait_members(everybody, 1)
            peers.wait_steps(1, 5)
        for entry in peers.look():
            if entry.kind == "handled" and entry["cause"] in measured and len(entry["causes"]) == 1:
                measured[entry["cause"]].take(entry)
    return measured, median(trips)


def order(peers: Peers, one: int, other: int, connect: bool) -> None:
    party = peers.directory / peers.peer(one).party
    try:
        request_link(peers.peer(one).address(), name_of(other), connect, party)
    except ChaosError as error:  # an answer may be late on a machine that is full; the trace tells what came of it
        progress(f"{name_of(one)} - {name_of(other)}: {error}")


def round_trips(peers: Peers, numbers: set[int]) -> list[float]:
    found = []
    for number in sorted(numbers):
        status = request_status(peers.peer(number).address(), peers.directory / peers.peer(number).party)
        found += [link["rtt_ms"] for link in status["links"].values() if link["rtt_ms"]]
    return found


def run(sizes: tuple[int, ...] = SIZES) -> Table:
    table = Table(
        "Handling an event (ms, p50 / p99 over all members and events)",
        ("agents", "event", "members x events", "computing", "acting", "the whole", "the whole at the proposer",
         "round trip", "aims: computing below 1 at p99; whole below 1.5 round trips + computing at p50"),
    )  # fmt: skip
    for size in sizes:
        figures, trip = measure(size)
        for event, measured in figures.items():
            bound = 1.5 * trip + median(measured.computing) + median(measured.acting) if measured.computing else 0.0
            met = [
                "met" if float(percentiles(measured.computing).split("/")[1]) < 1 else "missed",
                "met" if measured.whole and median(measured.whole) < bound else f"missed ({bound:.2f})",
            ]
            table.rows.append((
                str(size), event, str(len(measured.whole)), percentiles(measured.computing),
                percentiles(measured.acting), percentiles(measured.whole), percentiles(measured.proposer),
                f"{trip:.2f}", "; ".join(met),
            ))  # fmt: skip
            if measured.whole:
                table.bars[f"{event}, {size} agents: the whole"] = median(measured.whole)
                table.bars[f"{event}, {size} agents: computing"] = median(measured.computing)
            progress(" | ".join(table.rows[-1]))
    return table
