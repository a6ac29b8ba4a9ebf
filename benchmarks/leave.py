"""How long it takes to handle a leave, with 4 peers: in the protocol's own code, on the wire, and as people see it.

Each time one peer of four gets SIGTERM; afterwards a new one joins, until there are four again.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from benchmarks.cluster import Peers
from benchmarks.report import Table, milliseconds, progress
from chaos.cli.demo_costs import Event, find_window
from chaos.cli.demo_peers import name_of

PEERS = 4
QUIET_STEPS = 10


@dataclass
class Measured:
    """Seconds, one value per leave."""

    thinking: list[float] = field(default_factory=list)
    """In `Node.handle` of all four peers together: the request, and all messages of the agreement on the next view."""
    busiest: list[float] = field(default_factory=list)
    """The same, of the peer that had most of it."""
    deciding: list[float] = field(default_factory=list)
    """From the proposal to the decision at the peer that proposed: two rounds of messages, encryption included."""
    done: list[float] = field(default_factory=list)
    """From the request until all others had installed the view without the leaver."""


def measure(leaves: int) -> Measured:
    measured = Measured()
    with Peers(["--millions", "1", "--compute-ms", "20"], instrument=True) as peers:
        peers.found(PEERS)
        present, newest = set(range(1, PEERS + 1)), PEERS
        for _ in range(leaves):
            stayer, leaver = min(present), max(present) if len(measured.done) % 2 else sorted(present)[1]
            peers.wait_members(present, stayer)
            peers.wait_steps(stayer, QUIET_STEPS)
            observe(peers, present, leaver, measured)
            newest += 1
            present = (present - {leaver}) | {newest}
            peers.join(newest, contact=stayer)
        peers.look()
    return measured


def observe(peers: Peers, present: set[int], leaver: int, measured: Measured) -> None:
    """One leave, from the request to the end of the leaver."""
    name, start = name_of(leaver), time.monotonic()
    peers.peer(leaver).ask_to_leave()
    event = Event("scale-in", name, start)
    ids = {name_of(number): peers.peer_id(number) for number in present}
    peers.wait(lambda: find_window(peers.look(), event, ids) is not None, f"{name} to leave")
    window = find_window(peers.look(), event, ids)
    assert window is not None
    decision = next(e for e in peers.entries if e.kind == "decide" and e.t > start)
    by_agent = handling(peers, start, window.end)
    measured.thinking.append(sum(by_agent))
    measured.busiest.append(max(by_agent))
    measured.deciding.append(decision["handling_ms"] / 1000)
    measured.done.append(window.end - start)
    progress(
        f"{name} left: protocol {max(by_agent) * 1000:.2f} ms at the busiest, {sum(by_agent) * 1000:.2f} at all, "
        f"decided in {decision['handling_ms']:.1f}, installed in {(window.end - start) * 1000:.1f}"
    )
    peers.wait(lambda: peers.peer(leaver).exit_code() is not None, f"{name} to end")


def handling(peers: Peers, start: float, end: float) -> list[float]:
    """Seconds in `Node.handle` between these times, by agent."""
    found = []
    for path in (peers.directory / "runtime").glob("handling-*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found.append(sum(took for at, _, took in lines if start <= at <= end))
    return found


def run(leaves: int = 10) -> Table:
    measured = measure(leaves)
    table = Table(
        "Leave with 4 peers (ms)",
        (
            "leaves",
            "in the protocol, busiest peer",
            "all 4 peers",
            "proposal to decision",
            "SIGTERM to new view",
            "aim",
        ),
    )
    table.rows.append((
        str(leaves),
        milliseconds(measured.busiest, 2),
        milliseconds(measured.thinking, 2),
        milliseconds(measured.deciding, 1),
        milliseconds(measured.done, 1),
        "1 ms in the protocol at the median",
    ))  # fmt: skip
    return table
