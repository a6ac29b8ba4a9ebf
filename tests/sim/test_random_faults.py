"""Random faults under virtual time: the promises hold at every event, and all heals once faults cease.

A failure names its seed; `chaos sim --random --seeds SEED` shows the shortest schedule that breaks the promise.
"""

import pytest

from chaos.sim.mix import random_run


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_promises_hold_and_everything_heals(first: int) -> None:
    for seed in range(first, first + 10):
        random_run(seed).run()
