"""Slow, obvious answers to the question `shards.plan` answers fast. Tests compare the two.

Neither function uses an argument of `shards`: every size is tried, and every way of dealing out, or the
mixed-integer program as it is written in the design.
"""

from __future__ import annotations

from collections.abc import Iterator

from chaos.planning.shards import ShardRequest


def brute_force(request: ShardRequest) -> float:
    """The earliest finish in seconds over all sizes and all counts. Exponential: for a few shards only."""
    donors = [donor for donor in request.donors if donor.rate]
    best = min(
        max(d.finish_s(c, size) for d, c in zip(donors, counts, strict=True) if c)
        for size in request.chain
        for counts in _compositions(-(-request.state_bytes // size), len(donors))
    )
    return max(best, _downlink_s(request))


def mixed_integer(request: ShardRequest) -> float:
    """The earliest finish in seconds by one mixed-integer program per size. Needs scipy."""
    best = min(_solve(request, size) for size in request.chain)
    return max(best, _downlink_s(request))


def _solve(request: ShardRequest, size: int) -> float:
    """Variables: count c_n (integer) and use y_n (0 or 1) per donor, then the finish T, which is minimised.

    l_n y_n + t_n c_n <= T    c_n <= K y_n    sum c_n = K
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    donors = [donor for donor in request.donors if donor.rate]
    n, total = len(donors), -(-request.state_bytes // size)
    # In units of the best single donor's finish, as the solver's tolerances are absolute.
    unit = min(donor.finish_s(total, size) for donor in donors)
    latency = np.array([donor.latency_s for donor in donors]) / unit
    shard = np.array([donor.shard_s(size) for donor in donors]) / unit
    finishes = np.hstack([np.diag(shard), np.diag(latency), -np.ones((n, 1))])
    used = np.hstack([np.eye(n), -total * np.eye(n), np.zeros((n, 1))])
    dealt = np.hstack([np.ones(n), np.zeros(n + 1)])
    answer = milp(
        c=np.append(np.zeros(2 * n), 1.0),
        constraints=[
            LinearConstraint(finishes, -np.inf, 0),
            LinearConstraint(used, -np.inf, 0),
            LinearConstraint(dealt, total, total),
        ],
        integrality=np.append(np.ones(2 * n), 0),
        bounds=Bounds(0, np.concatenate([np.full(n, total), np.ones(n), [np.inf]])),
        options={"mip_rel_gap": 0.0},
    )
    counts = [round(count) for count in answer.x[:n]]
    return max(d.finish_s(c, size) for d, c in zip(donors, counts, strict=True) if c)


def _downlink_s(request: ShardRequest) -> float:
    return request.state_bytes / request.downlink if request.downlink else 0.0


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
