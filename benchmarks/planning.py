"""`python -m benchmarks.planning`: how long plans take, against dealing shards out one by one in the same run.

The yardstick is the plain heap, which gives the next shard to whoever would finish it first, in floats: K log N.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable

from benchmarks.report import Table, machine, milliseconds
from chaos.planning import flow, shards, together
from chaos.planning.replan import Source, replan
from chaos.planning.shards import Donor, ShardRequest
from chaos.planning.shards_oracle import mixed_integer

ROUNDS = 15
SIZE = 2**20
DONORS = 64


def donors(number: int = DONORS, overhead_s: float = 0.0) -> tuple[Donor, ...]:
    """20 to 1000 Mbit/s, 1 to 100 ms, drawn with a fixed seed."""
    chance = random.Random(1)
    return tuple(
        Donor(
            name=f"d{index}",
            bandwidth=chance.uniform(2.5e6, 125e6),
            latency_s=chance.uniform(0.001, 0.1),
            overhead_s=overhead_s * chance.random(),
        )
        for index in range(number)
    )


def one_by_one(request: ShardRequest) -> list[int]:
    size = request.chain[0]
    each = [donor.shard_s(size) for donor in request.donors]
    heap = [(donor.latency_s + each[index], index) for index, donor in enumerate(request.donors)]
    heapq.heapify(heap)
    counts = [0] * len(each)
    for _ in range(-(-request.state_bytes // size)):
        end, index = heap[0]
        counts[index] += 1
        heapq.heapreplace(heap, (end + each[index], index))
    return counts


def times(job: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each of `rounds` calls."""
    measured = []
    for _ in range(rounds):
        begun = time.perf_counter()
        job()
        measured.append(time.perf_counter() - begun)
    return measured


def against_the_heap() -> Table:
    table = Table(
        f"Shard plans for {DONORS} donors (ms)", ("shards", "plan", "one by one", "ratio of the fastest", "same counts")
    )
    times(lambda: shards.plan(ShardRequest(state_bytes=SIZE, chain=(SIZE,), donors=donors())))  # warms up
    for number in (10_000, 100_000, 1_000_000):
        request = ShardRequest(state_bytes=number * SIZE, chain=(SIZE,), donors=donors())
        fast = times(lambda request=request: shards.plan(request))
        slow = times(lambda request=request: one_by_one(request), 3)
        apart = [abs(a - b) for a, b in zip(shards.plan(request).counts.values(), one_by_one(request), strict=True)]
        same = "yes" if not any(apart) else f"{sum(apart) // 2} shards elsewhere: the heap's floats add up"
        ratio = f"1 / {min(slow) / min(fast):.0f}"
        table.rows.append((f"{number}", milliseconds(fast, 2), milliseconds(slow, 1), ratio, same))
    return table


def of_all_kinds() -> Table:
    table = Table("Other plans (ms)", ("plan", "time"))
    number = 1_000_000
    chain = tuple(SIZE * 2**k for k in range(8))
    costly = ShardRequest(state_bytes=number * SIZE, chain=chain, donors=donors(overhead_s=1e-4))
    table.rows.append(
        (f"{number} shards, 8 sizes, costs per shard", milliseconds(times(lambda: shards.plan(costly)), 2))
    )
    links = [flow.Link(source=f"d{i}", target=f"g{i % 8}", bandwidth=125e6, latency_s=0.01) for i in range(DONORS)]
    links += [flow.Link(source=f"g{i}", target="j", bandwidth=500e6, latency_s=0.001 * i) for i in range(8)]
    plain = ShardRequest(state_bytes=number * SIZE, chain=(SIZE,), donors=donors())
    table.rows.append(("the same behind 8 gateways", milliseconds(times(lambda: flow.plan(plain, links, "j"), 5), 1)))
    missing = range(10_000)
    queues = [tuple(missing[at::DONORS]) for at in range(DONORS)]
    sources = [Source(donor=d, queue=q, on_wire=2) for d, q in zip(donors(), queues, strict=True)]
    took = times(lambda: replan(missing, SIZE, sources))
    table.rows.append(("10000 missing shards re-planned", milliseconds(took, 1)))
    joiners = [together.Joiner(name=f"j{i}", uplink=50e6) for i in range(8)]
    took = times(lambda: together.plan(10_000, SIZE, donors(8), joiners), 5)
    table.rows.append(("10000 shards from 8 donors to 8 joiners", milliseconds(took, 1)))
    small = ShardRequest(state_bytes=60 * SIZE, chain=(SIZE,), donors=donors(6))
    table.rows.append(("60 shards from 6 donors", milliseconds(times(lambda: shards.plan(small)), 2)))
    table.rows.append(("the same by mixed-integer program", milliseconds(times(lambda: mixed_integer(small), 5), 1)))
    return table


def main() -> None:
    print(machine(), flush=True)
    for run in (against_the_heap, of_all_kinds):
        print(run().text(), flush=True)


if __name__ == "__main__":
    main()
