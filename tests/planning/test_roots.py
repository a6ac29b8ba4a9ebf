"""Shares of the roots on overlays that are not complete, against a linear program."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from scipy.optimize import linprog

from chaos.planning.roots import _loads, _neighbours, round_load, shares

Links = list[tuple[str, str]]


def optimum(members: list[str], links: Links) -> float:
    """The least that the most loaded link can carry, by shares of any size."""
    load = _loads(members, _neighbours(members, links))
    assert load is not None
    rows, count = load.shape
    above = np.hstack([load, -np.ones((rows, 1))])
    answer = linprog([0.0] * count + [1.0], above, np.zeros(rows), [[1.0] * count + [0.0]], [1.0])
    return float(answer.fun)


def overlay(seed: int) -> tuple[list[str], Links]:
    """A random connected one of 3 to 9 members."""
    source = random.Random(seed)
    members = [f"m{i}" for i in range(source.randint(3, 9))]
    links = [(member, source.choice(members[:i])) for i, member in enumerate(members) if i]
    return members, links + [tuple(source.sample(members, 2)) for _ in range(source.randint(0, 12))]  # type: ignore[misc]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_on_a_complete_overlay_all_are_equal(count: int) -> None:
    members = [f"m{i}" for i in range(count)]
    assert shares(members, itertools.combinations(members, 2)) == ()


def test_the_hub_of_a_star_is_the_root_of_everything() -> None:
    members = ["a", "b", "c", "d"]
    star = [("c", other) for other in "abd"]
    plan = shares(members, star)
    assert [bool(share) for share in plan] == [False, False, True, False]
    assert round_load(members, star, plan) == 1, "each contribution once, each result once"


def test_members_that_meet_at_somebody_who_is_no_member() -> None:
    """A learner may carry what members send each other."""
    assert sum(shares(["a", "b"], [("a", "x"), ("x", "b")])) > 0


def test_nobody_plans_for_an_overlay_that_is_torn() -> None:
    assert shares(["a", "b", "c"], [("a", "b")]) == ()
    assert round_load(["a", "b", "c"], [("a", "b")], [1, 1, 1]) == float("inf")


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_the_most_loaded_link_carries_little_more_than_it_must(first: int) -> None:
    """Whole shares cost up to a fifth on small overlays; they are never worse than equal ones by more than that."""
    for seed in range(first, first + 20):
        members, links = overlay(seed)
        plan = shares(members, links) or (1,) * len(members)
        best = optimum(members, links)
        assert round_load(members, links, plan) <= 1.2 * best + 1e-9, f"seed {seed}"


def test_shares_do_not_depend_on_the_order_of_links() -> None:
    members, links = overlay(7)
    assert shares(members, links) == shares(members, [(b, a) for a, b in reversed(links)])
