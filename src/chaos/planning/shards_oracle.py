"""Slow, obvious answers to the question `shards.plan` answers fast. Tests compare the two.

No function here uses an argument of `shards` or `dealing`: every size is tried and every way of dealing out,
or the programs as docs/planning.md states them (section 1) are given to a solver.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from chaos.planning.shards import Donor, ShardRequest


def brute_force(request: ShardRequest) -> float:
    """The earliest finish in seconds over all sizes and all counts. Exponential: for a few shards only."""
    donors = [donor for donor in request.donors if donor.rate]
    best = min(
        _finish(donors, counts, size)
        for size in request.chain
        for counts in _compositions(-(-request.state_bytes // size), len(donors))
    )
    return max(float(best), _downlink_s(request))


def mixed_integer(request: ShardRequest) -> float:
    """The earliest finish in seconds by one mixed-integer program per size. Needs scipy."""
    best = min(_solve(request, (size,)) for size in request.chain)
    return max(float(best), _downlink_s(request))


def all_sizes_at_once(request: ShardRequest) -> float:
    """The same by the program in which the size is a variable too (its products made linear). Needs scipy."""
    return max(float(_solve(request, request.chain)), _downlink_s(request))


def _solve(request: ShardRequest, sizes: Sequence[int]) -> Fraction:
    """Variables per size k and donor n: count c and use y (0 or 1); per size: its choice z; the finish T.

    l_n y_kn + t_kn c_kn <= T    c_kn <= K_k y_kn    sum_n c_kn = K_k z_k    sum_k z_k = 1    minimise T
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    donors = [donor for donor in request.donors if donor.rate]
    n, m = len(donors), len(sizes)
    totals = np.repeat([-(-request.state_bytes // size) for size in sizes], n).astype(float)
    latency = np.tile([donor.latency_s for donor in donors], m)
    shard = np.array([donor.overhead_s + size / donor.rate for size in sizes for donor in donors])
    unit = float(min(latency + totals * shard))  # The solver's tolerances are absolute: a finish of about 1.
    one, none = np.eye(n * m), np.zeros((n * m, m + 1))
    finishes = np.hstack([np.diag(shard / unit), np.diag(latency / unit), none[:, 1:], -np.ones((n * m, 1))])
    used = np.hstack([one, -np.diag(totals), none])
    per_size = np.kron(np.eye(m), np.ones(n))
    dealt = np.hstack([per_size, 0 * per_size, -np.diag(totals[::n]), np.zeros((m, 1))])
    chosen = np.concatenate([np.zeros(2 * n * m), np.ones(m), [0.0]])
    answer = milp(
        c=np.append(np.zeros(2 * n * m + m), 1.0),
        constraints=[
            LinearConstraint(finishes, -np.inf, 0),
            LinearConstraint(used, -np.inf, 0),
            LinearConstraint(dealt, 0, 0),
            LinearConstraint(chosen[None, :], 1, 1),
        ],
        integrality=np.append(np.ones(2 * n * m + m), 0),
        bounds=Bounds(0, np.concatenate([totals, np.ones(n * m + m), [np.inf]])),
        options={"mip_rel_gap": 0.0},
    )
    k = int(np.argmax(answer.x[2 * n * m : -1]))
    return _finish(donors, [round(count) for count in answer.x[k * n : (k + 1) * n]], sizes[k])


def _finish(donors: Sequence[Donor], counts: Sequence[int], size: int) -> Fraction:
    """The largest of l + c (o + s / b), exactly, over the donors with c > 0."""
    return max(
        Fraction(d.latency_s) + c * (Fraction(d.overhead_s) + size / Fraction(d.rate))
        for d, c in zip(donors, counts, strict=True)
        if c
    )


def _downlink_s(request: ShardRequest) -> float:
    return request.state_bytes / request.downlink if request.downlink else 0.0


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
