"""Slow, obvious answers to the questions `quickest` and `flow` answer fast. Tests compare them. Needs scipy.

Neither function knows the theorem that `quickest` rests on: the first lets rates change at every tick, the second
gives each way a whole number of shards and asks a mixed-integer program whether they fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.planning.quickest import Arc


def delivered(nodes: int, arcs: Sequence[Arc], source: int, sink: int, horizon: int) -> float:
    """The most that can arrive by `horizon` ticks, as a linear program over the time-expanded network.

    Latencies are ticks and rates amounts per tick here. Variable (a, t) is what enters arc a at tick t. What has
    arrived at a node may wait there.
    """
    import numpy as np
    from scipy.optimize import linprog

    entries = [(a, t) for a, arc in enumerate(arcs) for t in range(horizon - arc.latency) if arc.rate]
    if not entries:
        return 0.0
    gain = np.zeros(len(entries))
    rows, limits = [], []
    for at, (a, _) in enumerate(entries):
        gain[at] = (arcs[a].head == sink) - (arcs[a].tail == sink)
    for node in range(nodes):
        for tick in range(horizon):
            if node != source:  # What has left the node up to a tick has come to it before.
                left = np.array([arcs[a].tail == node and t <= tick for a, t in entries], float)
                come = np.array([arcs[a].head == node and t + arcs[a].latency <= tick for a, t in entries], float)
                rows.append(left - come)
                limits.append(0.0)
    bounds = [(0, arcs[a].rate) for a, _ in entries]
    return float(-linprog(-gain, A_ub=np.array(rows), b_ub=limits, bounds=bounds).fun)


def whole_shards(arcs: Sequence[Arc], source: int, sink: int, shard: int, count: int) -> float:
    """The least seconds in which `count` shards arrive, each way sending whole ones at a constant rate.

    Ways p with latency l_p and c_p shards need  c_p shard / (T - l_p)  B/s each; whether such c exist for a T is
    a mixed-integer program. Bisected to a relative 1e-6, from above.
    """
    ways = list(_ways(arcs, source, sink, (source,)))
    high = 1.0
    while _most(arcs, ways, shard, high) < count:
        high *= 2
    low = 0.0
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if _most(arcs, ways, shard, middle) >= count:
            high = middle
        else:
            low = middle
    return high


def _most(arcs: Sequence[Arc], ways: Sequence[tuple[int, ...]], shard: int, seconds: float) -> int:
    """The most whole shards that arrive within `seconds`."""
    import numpy as np
    from scipy.optimize import LinearConstraint, milp

    times = [seconds - sum(arcs[a].latency for a in way) / 1e9 for way in ways]
    usable = [(way, time) for way, time in zip(ways, times, strict=True) if time > 0]
    if not usable:
        return 0
    share = np.zeros((len(arcs), len(usable)))
    for at, (way, time) in enumerate(usable):
        for a in way:
            share[a, at] = shard / time / max(arcs[a].rate, 1e-9)
    fits = LinearConstraint(share, -np.inf, 1.0)
    answer = milp(-np.ones(len(usable)), constraints=[fits], integrality=np.ones(len(usable)))
    most: int = round(-answer.fun)
    return most


def _ways(arcs: Sequence[Arc], node: int, sink: int, seen: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All ways to the sink without a node twice, as arcs."""
    if node == sink:
        yield ()
        return
    for index, arc in enumerate(arcs):
        if arc.tail == node and arc.head not in seen:
            for rest in _ways(arcs, arc.head, sink, (*seen, arc.head)):
                yield (index, *rest)
