"""`python -m benchmarks.returning`: a member that is cut off for a while comes back, in the simulator.

Three members train 100 MB of parameters with Adam, over links of 25 MB/s; one of them is cut off. Written down is how
many bytes come for it before it is a member again, and how many seconds that takes from when the links are back on:
with the rule of `planning.returning`, and always by a snapshot, as it was. Training itself takes nothing of the links.
"""

from __future__ import annotations

from statistics import median

from benchmarks.report import Table
from chaos.core.context import Role
from chaos.sim.bandwidth import Pipes
from chaos.sim.world import World

MB = 10**6
RESULT, STATE, SHARD, RATE = 100 * MB, 300 * MB, 4 * MB, 25e6
STEPS_S = (2.0, 10.0, 30.0)
CUTS_S = (1.0, 5.0, 15.0, 45.0)
SEEDS = range(3)


def come_back(seed: int, step_s: float, cut_s: float, own: bool) -> tuple[float, float]:
    """Bytes that were fetched, and seconds from the mended links until it was a member.

    Args:
        step_s: what a worker computes for a step, on average.
        own: what its worker holds may be used.
    """
    world = World(seed, latency=0.01)
    world.result_bytes, world.state_bytes, world.shard_bytes = RESULT, STATE, SHARD
    peers = [world.found(0)]
    for index in (1, 2):
        peers.append(world.join(index, 0))
        world.run_until(lambda n=index: len(world.members()) == n + 1, 30)
    world.compute, world.pipes = step_s, Pipes(world.heap, RATE)
    alone = peers[2]
    target = alone.node.steps.stable + 2
    world.run_until(lambda: alone.node.steps.stable >= target, 10 * step_s)
    world.run(world.now + world.random.random() * step_s)
    if not own:
        alone.node.returning.own_state = lambda: None  # type: ignore[method-assign]
    alone.trace.clear()
    for other in (0, 1):
        world.cut_link(2, other)
    world.run(world.now + cut_s)
    for other in (0, 1):
        world.restore_link(2, other)
    back = world.now
    world.run_until(lambda: alone.node.ctx.role != Role.MEMBER, 10)
    world.run_until(lambda: alone in world.members(), 600)
    took = world.now - back
    lines = [(kind, fields) for _, kind, fields in alone.trace]
    results = sum(kind == "fetched" for kind, _ in lines)
    shards = sum(sum(fields["sources"].values()) for kind, fields in lines if kind == "fetched_state")
    return results * RESULT + shards, took


def run() -> Table:
    """The table of docs/adr/0060."""
    columns = ("a step", "cut for", "MB by a snapshot", "MB now", "s by a snapshot", "s now")
    table = Table("A member that was cut off", columns)
    for step_s in STEPS_S:
        for cut_s in CUTS_S:
            before, now = ([come_back(seed, step_s, cut_s, own) for seed in SEEDS] for own in (False, True))
            row = [f"{step_s:g} s", f"{cut_s:g} s"]
            for column, unit in ((0, MB), (1, 1)):
                row += [f"{median(found[column] for found in kind) / unit:.3g}" for kind in (before, now)]
            table.rows.append(tuple(row))
    return table


if __name__ == "__main__":
    print(run().text())
