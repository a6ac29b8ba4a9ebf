"""The simulator notices when a rule of the core is broken: planted bugs, each caught within a few seeds.

`make mutants` plants them all and takes its time; these are those that a few runs suffice for.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.sim.runs import finish
from tests.sim.mutants import MUTANTS, QUICK, Patch, hunt
from tests.sim.stories import STORIES, Story, Teller

SEEDS = 8


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if m.__name__ in QUICK], ids=lambda m: m.__name__)
def test_a_planted_bug_is_caught(mutant: Callable[[Patch], None]) -> None:
    caught = hunt(mutant, SEEDS)
    assert caught is not None, f"{mutant.__name__} survived {SEEDS} seeds: a check is too weak"
    assert caught.violation.promise in QUICK[mutant.__name__]


def test_the_list_names_mutants() -> None:
    assert set(QUICK) <= {m.__name__ for m in MUTANTS}


@pytest.mark.parametrize("teller", STORIES, ids=lambda t: t.__name__)
def test_the_stories_end_well_where_nothing_is_planted(teller: Teller) -> None:
    assert finish(Story(teller, 0)).violation is None
