"""What real nodes decide under faults is a run of docs/spec/agreement.pml, and what broken ones decide is not.

Each promise, proposal, vote and installed view of a simulated run, with its ballot, its gone members and its value, is
replayed by spin through the transitions of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from chaos.sim.mix import random_run
from chaos.sim.promises import PromiseBroken
from tests.sim.stories import Story, voters_die
from tests.spec.contests import Contest
from tests.spec.mutants import MUTANTS, words_unread
from tests.spec.recorder import Record, recording
from tests.spec.replay import NotARun, missing_tools, replay

pytestmark = pytest.mark.skipif(
    bool(missing_tools()), reason=f"{' and '.join(missing_tools())} missing: apt-get install spin gcc"
)

SEEDS = 12
SOME = 40
"""Seeds within which a broken node has to be found out."""


class Runs(Protocol):
    def run(self) -> None: ...


def run(make: Callable[[int], Runs], seed: int) -> list[Record]:
    with recording() as records:
        make(seed).run()
    return records


@pytest.mark.parametrize("make", [Contest, random_run])
def test_what_nodes_decide_is_a_run_of_the_model(make: Callable[[int], Runs], tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    for seed in range(SEEDS):
        try:
            total.update(replay(run(make, seed), tmp_path))
        except NotARun as error:
            pytest.fail(f"{make.__name__} of seed {seed}: {error}")
    assert total["too large"] == 0
    assert total["decrees"] > 5 * SEEDS, total
    if make is Contest:
        assert total["contested"] > SEEDS, total


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_what_a_broken_node_decides_is_not(
    mutant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows that the replay can fail. Few dead members leave a vote that only their words know of: that is told."""
    mutant(monkeypatch)
    for seed in range(SOME):
        contest = Story(voters_die, seed) if mutant is words_unread else Contest(seed)
        with recording() as records, suppress(PromiseBroken):  # the model has to notice by itself
            contest.run()
        try:
            replay(records, tmp_path)
        except NotARun:
            return
    pytest.fail(f"{mutant.__name__} looks like a run of the model with seeds 0 to {SOME - 1}")
