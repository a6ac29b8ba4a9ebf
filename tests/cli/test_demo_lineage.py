"""The demo's judgement of a run, on traces of runs that kept their promises and of runs that did not."""

from __future__ import annotations

import random

import pytest

from chaos.cli.demo_lineage import (
    digests_equal,
    losses,
    lost_updates,
    read_lineage,
    samples_counted_twice,
)
from chaos.observe.trace_file import Entry
from tests.cli.traces import commit, entry, final, run_of, stable, view

AB = ("a", "b")


def without(entries: list[Entry], peer: str, kind: str, step: int) -> list[Entry]:
    kept = [e for e in entries if not (e.peer == peer and e.kind == kind and e["step"] == step)]
    assert len(kept) == len(entries) - 1
    return kept


def test_a_run_without_faults() -> None:
    lineage = read_lineage(run_of(AB, 3))
    assert (lineage.last_stable, lineage.members, sorted(lineage.commits)) == (3, AB, [1, 2, 3])
    assert (lost_updates(lineage), samples_counted_twice(lineage), digests_equal(lineage)) == (0, 0, True)
    assert losses(lineage) == pytest.approx([4.9, 4.8, 4.7])


def test_no_step_at_all() -> None:
    lineage = read_lineage([view("a", 0, 1, ["a"])])
    assert (lineage.last_stable, lineage.members, losses(lineage)) == (0, (), [])
    assert not digests_equal(lineage)


def test_steps_that_never_became_stable_do_not_count() -> None:
    lineage = read_lineage([*run_of(AB, 2), commit("a", 9, 3)])
    assert (lineage.last_stable, sorted(lineage.commits)) == (2, [1, 2])
    assert digests_equal(lineage)


# --- lost updates -------------------------------------------------------------------------------------


def test_a_stable_step_with_another_head_is_lost() -> None:
    """A peer that died had called step 2 stable, with a head that the others do not have."""
    dead = [commit("c", 1, 1), commit("c", 2, 2, head="other"), stable("c", 2.2, 2)]
    assert lost_updates(read_lineage(run_of(AB, 3) + dead)) == 1


def test_a_stable_step_beyond_the_end_of_the_others_is_lost() -> None:
    """The dead peer called step 4 stable; the others went on from 3 to another step 4 and 5."""
    others = [e for e in run_of(AB, 5) if e.kind != "commit" or e["step"] < 4]
    others += [commit(peer, step, step, head=f"new{step}") for peer in AB for step in (4, 5)]
    dead = [commit("c", step, step) for step in (1, 2, 3, 4)] + [stable("c", 4.2, 4)]
    lineage = read_lineage(sorted(others + dead, key=lambda e: e.t))
    assert lost_updates(lineage) == 1
    assert lineage.commits[4]["head"] == "new4"


def test_an_unstable_step_may_be_rolled_back() -> None:
    dead = [commit("c", 1, 1), stable("c", 1.2, 1), commit("c", 2, 2, head="other")]
    assert lost_updates(read_lineage(run_of(AB, 3) + dead)) == 0


def test_an_update_that_a_last_member_lacks_is_lost() -> None:
    assert lost_updates(read_lineage(without(run_of(AB, 4), "b", "commit", 2))) == 1


def test_a_joiner_has_the_updates_of_its_snapshot() -> None:
    late = [e for e in run_of(AB, 4) if not (e.peer == "b" and e.kind in ("commit", "stable") and e["step"] <= 2)]
    assert lost_updates(read_lineage(late)) == 2
    loaded = entry("b", 2.2, "state_loaded", step=2)
    assert lost_updates(read_lineage(sorted([*late, loaded], key=lambda e: e.t))) == 0
    too_early = entry("b", 2.2, "state_loaded", step=1)
    assert lost_updates(read_lineage(sorted([*late, too_early], key=lambda e: e.t))) == 1


def test_a_step_from_before_all_last_members_came_is_told_by_others() -> None:
    """`a` did steps 1 and 2 alone and died; `b` joined with the state of step 2."""
    gone = [view("a", 0, 1, ["a"]), commit("a", 1, 1), commit("a", 2, 2), stable("a", 2.1, 2)]
    rest = [entry("b", 2.2, "state_loaded", step=2), view("b", 2.3, 2, ["b"])]
    rest += [commit("b", 3, 3, view=2), stable("b", 3.1, 3), final("b", 4, 3)]
    lineage = read_lineage(gone + rest)
    assert (lineage.members, sorted(lineage.commits), lost_updates(lineage)) == (("b",), [1, 2, 3], 0)
    assert losses(lineage)[0] == pytest.approx(4.9)


def test_a_retried_step_counts_as_it_was_committed_in_the_end() -> None:
    """A peer that was cut off committed step 2 in another way, healed, and committed it again."""
    entries = [commit("b", 1.9, 2, head="cut off"), *run_of(AB, 3)]
    assert lost_updates(read_lineage(sorted(entries, key=lambda e: e.t))) == 0


# --- samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "twice"),
    [
        ([("a", 0, 0, 8), ("b", 0, 8, 16)], 0),
        ([("a", 0, 0, 8), ("b", 0, 0, 8)], 8),
        ([("a", 0, 0, 8), ("b", 0, 6, 16)], 2),
        ([("a", 0, 0, 10), ("b", 0, 2, 4), ("c", 0, 3, 5)], 4),
        ([("a", 0, 0, 8), ("b", 1, 0, 8)], 0),
        ([("a", 0, 4, 4)], 0),
    ],
)
def test_overlaps_within_an_epoch(samples: list[tuple[str, int, int, int]], twice: int) -> None:
    assert samples_counted_twice(read_lineage(run_of(AB, 1, samples=samples))) == twice


def test_overlaps_between_steps() -> None:
    entries = run_of(AB, 1, samples=[("a", 0, 0, 8)])
    entries += [commit(peer, 2, 2, samples=[("b", 0, 4, 12)]) for peer in AB]
    assert samples_counted_twice(read_lineage(entries)) == 0, "step 2 is not stable"
    entries += [stable(peer, 2.5, 2) for peer in AB]
    assert samples_counted_twice(read_lineage(entries)) == 4


def test_overlaps_agree_with_counting_every_position() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(200):
        samples = [("a", 0, start, start + chance.randrange(6)) for start in chance.choices(range(20), k=5)]
        positions = [p for _, _, start, stop in samples for p in range(start, stop)]
        expected = len(positions) - len(set(positions))
        found = samples_counted_twice(read_lineage(run_of(["a"], 1, samples=samples)))
        assert found == expected, f"seed {seed}: {samples}"


# --- digests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        commit("b", 3.1, 3, head="other"),
        commit("b", 3.1, 3, digest="other"),
        final("b", 4.1, 3, state="other"),
        final("b", 4.1, 2),
    ],
)
def test_unequal_last_members(change: Entry) -> None:
    entries = run_of(AB, 3)
    assert digests_equal(read_lineage(entries))
    assert not digests_equal(read_lineage([*entries, change]))


def test_a_state_that_nobody_measured_is_not_equal() -> None:
    entries = run_of(AB, 3)
    assert not digests_equal(read_lineage(without(entries, "b", "final", 3)))
    assert not digests_equal(read_lineage([*entries, final("a", 5, 3, ""), final("b", 5, 3, "")]))


def test_a_peer_that_left_may_have_another_state() -> None:
    entries = [view("c", 0, 1, "abc"), final("c", 2, 1, "older"), *run_of(AB, 3)]
    assert digests_equal(read_lineage(entries))
