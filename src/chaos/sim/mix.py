"""Which kind of random run a seed stands for."""

from __future__ import annotations

from collections.abc import Collection

from chaos.sim.duels import DuelRun
from chaos.sim.runs import RandomRun, Run

DUELS = 4
"""Each so-manieth seed strikes at those who propose views."""


def random_run(
    seed: int,
    peers: int | range | None = None,
    steps: int = 0,
    omit: Collection[int] = (),
    limit: int | None = None,
    verbose: bool = False,
) -> Run:
    """The run of this seed; see `RandomRun`."""
    kind = DuelRun if seed % DUELS == 1 else RandomRun
    return kind(seed, peers, steps, omit, limit, verbose)
