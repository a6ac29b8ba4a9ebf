"""Random faults under virtual time: what the run promises must hold in each of these schedules, and all must heal.

A failure names its seed; `FaultRun(seed, verbose=True).run()` replays it and prints what every peer did.
"""

import pytest

from chaos.sim.faults import FaultRun


@pytest.mark.parametrize("first", range(0, 150, 10))
def test_promises_hold_and_everything_heals(first: int) -> None:
    for seed in range(first, first + 10):
        FaultRun(seed).run()
