"""A fourth peer joins three that train with Adam; the state is 300 MB.

Once all 25 million parameters are trained, so that every step also carries 100 MB of gradients over loopback; and once
one million is, beside 72 million frozen ones, so that the links and processors have room. Each time a new peer joins,
stays for a while, and leaves again. Between backward passes the workers leave the processor alone for `COMPUTE_MS`, as
if they computed on a device of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from benchmarks.cluster import Peers
from benchmarks.report import Table, milliseconds, progress
from chaos.cli.demo_costs import Event, Window, costs, find_window
from chaos.cli.demo_peers import name_of
from chaos.observe.trace_file import Entry

PEERS, COMPUTE_MS = 3, 500
JOBS = {"all trained": (25, 0), "1 in 73 trained": (1, 72)}
"""Name -> millions of parameters that are trained with Adam (12 bytes each), and that are frozen (4 bytes each)."""
QUIET_STEPS = 12


@dataclass
class Measured:
    """Seconds; `delays` and `stalls` one value per join, steps one value per step."""

    delays: list[float] = field(default_factory=list)
    """From the joiner's registration to the first commit with its contribution."""
    stalls: list[float] = field(default_factory=list)
    """Waiting beyond the usual, summed over the join, of the incumbent that waited most."""
    copying: list[float] = field(default_factory=list)
    """How long a donor's update had to wait for the copy of its state."""
    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)


def measure(joins: int, millions: int, frozen: int) -> Measured:
    measured = Measured()
    args = ["--millions", str(millions), "--frozen-millions", str(frozen)]
    args += ["--optimizer", "adam", "--compute-ms", str(COMPUTE_MS)]
    with Peers(args) as peers:
        peers.found(PEERS)
        present = set(range(1, PEERS + 1))
        for joiner in range(PEERS + 1, PEERS + 1 + joins):
            peers.wait_members(present, 1)
            peers.wait_steps(1, QUIET_STEPS)
            started = peers.join(joiner, contact=2).started
            peers.wait_members(present | {joiner}, 1)
            peers.wait_steps(1, QUIET_STEPS)
            note(peers, Event("scale-out", name_of(joiner), started), joiner, measured)
            peers.peer(joiner).ask_to_leave()
    return measured


def note(peers: Peers, event: Event, joiner: int, measured: Measured) -> None:
    ids = {event.peer: peers.peer_id(joiner)}
    (cost,) = costs(peers.entries, [event], ids)
    window = find_window(peers.entries, event, ids)
    assert window is not None
    measured.delays.append(cost.delay_s)
    measured.stalls.append(cost.stall_s)
    progress(f"{event.peer} joined: delay {cost.delay_s * 1000:.0f} ms, stall {cost.stall_s * 1000:.0f}")
    stalls = [e["stall_ms"] / 1000 for e in peers.entries if e.kind == "snapshot" and e.t > window.start]
    measured.copying.append(max(stalls, default=0.0))
    for number in range(1, PEERS + 1):
        sort_steps(peers.entries, name_of(number), event, window, measured)


def sort_steps(entries: Sequence[Entry], peer: str, event: Event, window: Window, measured: Measured) -> None:
    """An incumbent's times between commits: before the joiner's process started, during the join, after it."""
    times = [e.t for e in entries if e.kind == "commit" and e.peer == peer]
    steps = list(pairwise(times))
    measured.before += [b - a for a, b in steps if b < event.at][-QUIET_STEPS:]
    measured.during += [b - a for a, b in steps if window.touches(a, b)]
    measured.after += [b - a for a, b in steps if a > window.end][:QUIET_STEPS]


def run(joins: int = 3) -> Table:
    table = Table(
        "Join with a state of 300 MB, 3 peers train (ms)",
        (
            "job",
            "joins",
            "delay",
            "stall of the worst incumbent",
            "of it the copy",
            "step before",
            "during",
            "after",
            "aim",
        ),
    )
    for job, (millions, frozen) in JOBS.items():
        measured = measure(joins, millions, frozen)
        for name, values in (("delay", measured.delays), ("stall", measured.stalls), ("a step", measured.before)):
            table.bars[f"{job}: {name}"] = 1000 * median(values)
        table.rows.append((
            job,
            str(joins),
            milliseconds(measured.delays),
            milliseconds(measured.stalls),
            milliseconds(measured.copying, 1),
            milliseconds(measured.before),
            milliseconds(measured.during),
            milliseconds(measured.after),
            "stall below 50",
        ))  # fmt: skip
    return table
