"""`python -m benchmarks.scale [N]...`: what many peers cost, in the simulator: the table of docs/scale.md.

`python -m benchmarks.scale --churn N SECONDS` lets 1 % of N peers a minute come or go while they train, and checks the
promises at every event.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from itertools import cycle

from chaos.core import events as ev
from chaos.core.messages import PeerMessage
from chaos.sim.crowd import DECISION, DETECTOR, STEP, Crowd
from chaos.sim.promises import PromiseBroken
from chaos.sim.symbols import peer_id

SIZES = (4, 8, 16, 32, 64, 128, 256, 512, 1000)
WARM_S, WATCHED_S = 0.4, 1.0
STEPS_UP_TO = 64
"""With more members the messages of a step, which grow with their square, take hours to simulate."""
COMPUTE_S = 0.2
HEAD = (
    "peers", "detector messages per peer and s", "questions per peer and failure", "s to detect",
    "s until gone for all",
    "messages per decision", "at the busiest peer", "control messages per peer and step", "frames per peer and step",
    "MiB of the simulator",
)  # fmt: skip


class Timed(Crowd):
    """Notes when the first watcher suspects somebody."""

    suspected_at: float | None = None

    def control(self, src: str, dst: str, said: PeerMessage) -> None:
        if type(said).__name__ == "Prepare" and self.suspected_at is None:
            self.suspected_at = self.now
        super().control(src, dst, said)


def measure(size: int) -> list[float]:
    """One row of the table."""
    world = Timed(size)
    world.run(world.now + WARM_S)
    world.forget_counts()
    world.run(world.now + WATCHED_S)
    beats = world.count(DETECTOR) / size / WATCHED_S
    world.forget_counts()
    victim, since = peer_id(size // 2), world.now
    world.kill(world.peers[victim], dark=True, seal=False)
    world.run_until(lambda: not any(p.node.ctx.view.knows(victim) for p in world.peers.values()), 20)
    assert world.suspected_at is not None
    questions = (world.said["Probe"] + world.said["ProbeReply"]) / size
    row = [beats, questions, world.suspected_at - since, world.now - since]
    row += [world.count(DECISION), world.busiest(DECISION), *per_step(size)]
    return [size, *row, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]


def per_step(size: int) -> tuple[float, float]:
    """Control messages and data frames per peer and step; not measured (nan) where it takes too long."""
    if size > STEPS_UP_TO:
        return float("nan"), float("nan")
    world = Crowd(size, compute=COMPUTE_S)
    world.run_until(lambda: max(world.promises.stable, default=0) >= 3, 30)
    before = max(world.promises.stable)
    world.forget_counts()
    world.run_until(lambda: max(world.promises.stable) >= before + 4, 30)
    return world.count(STEP) / size / 4, world.frames / size / 4


def churn(size: int, seconds: float) -> str:
    """Raises PromiseBroken."""
    world = Crowd(size, compute=seconds)
    kinds = cycle(("crash", "leave", "join", "host lost"))
    gap, done, joined = 60.0 / (size / 100), [], size
    end = world.now + seconds
    alive = [peer_id(index) for index in range(1, size, 7)]
    while world.now < end:
        kind, victim = next(kinds), alive.pop(0)
        if kind == "join":
            world.join(joined, 0)
            joined += 1
        elif kind == "leave":
            world.peers[victim].handle(ev.LeaveRequested("asked to"))
        else:
            world.kill(world.peers[victim], dark=kind == "host lost", seal=kind == "crash")
        done.append(kind)
        world.run(min(end, world.now + gap))
        members, view = len(world.members()), max(p.node.ctx.view.id for p in world.members())
        print(f"{world.now:6.1f} s  {kind:10} {members} members, view {view}, {world.events} events", flush=True)
    world.run(world.now + 10.0)
    views = {p.node.ctx.view.id for p in world.members()}
    if len(views) > 1:
        world.promises.broken("I4", f"10 s after the last change the members' views are {sorted(views)}")
    steps = max(world.promises.stable, default=0)
    return f"{len(done)} changes, {max(views)} views, {steps} stable steps, {world.events} events: the promises hold"


def shown(value: float) -> str:
    return "" if value != value else f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, metavar="N", default=list(SIZES))
    parser.add_argument("--churn", nargs=2, type=int, metavar=("N", "SECONDS"))
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(measure(asked.row)))
        return 0
    if asked.churn:
        try:
            print(churn(*asked.churn))
        except PromiseBroken as broken:
            print(broken)
            return 1
        return 0
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    for size in asked.sizes:  # each in a process of its own: memory is the process's
        row = subprocess.run(
            [sys.executable, "-m", "benchmarks.scale", "--row", str(size)], check=True, capture_output=True, text=True
        )
        print(f"| {' | '.join(shown(value) for value in json.loads(row.stdout))} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
