"""`chaos force-view` under virtual time: one decision of those that hear each other, and lineages that never mix."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from msgspec.structs import replace

from chaos.core import events as ev
from chaos.core.context import Role
from chaos.core.force import FORCE_S, HOLD_S
from chaos.core.messages import ForceProposal, Prepare
from chaos.core.types import Ballot
from chaos.sim.peer import SimPeer
from chaos.sim.promises import Promises
from chaos.sim.symbols import info, peer_id
from chaos.sim.world import World
from tests.core.test_outcomes import advance, check, start, traces


class Lineages:
    """Promises for a run that was forced apart: each lineage is judged for itself, from the same past."""

    def __init__(self, world: World) -> None:
        self._world, self._past, self._of = world, world.promises, dict[str, Promises]()

    def of(self, peer: SimPeer) -> Promises:
        lineage = peer.node.ctx.view.lineage if peer.node.ctx.views else "none"
        if lineage not in self._of:
            self._past._world = None  # type: ignore[assignment]
            mine = self._of[lineage] = copy.deepcopy(self._past)
            mine._world = self._world
            mine._on_note = {kind: getattr(mine, check.__name__) for kind, check in mine._on_note.items()}
        return self._of[lineage]

    def __getattr__(self, name: str) -> Any:
        if name in ("note", "applied", "stands_at", "after_event", "wrote_checkpoint", "unchanged"):
            return lambda peer, *rest: getattr(self.of(peer), name)(peer, *rest)
        if name == "broken":
            return Promises.broken.__get__(self._any())
        raise AttributeError(name)

    def _any(self) -> Promises:
        return next(iter(self._of.values()))


def force(world: World, peer: SimPeer, lineage: str = "two") -> str:
    """What became of the request; '' if a new lineage began."""
    shown = peer.node.force.preview()
    peer.handle(ev.ForceRequested(lineage, shown.get("view", 0)))
    world.run_until(lambda: lineage in peer.node.force.outcomes, FORCE_S + 1)
    return peer.node.force.outcomes[lineage]


def part(world: World, left: list[SimPeer], right: list[SimPeer]) -> None:
    for a in left:
        for b in right:
            world.cut_link(a.index, b.index)


def mend(world: World, left: list[SimPeer], right: list[SimPeer]) -> None:
    for a in left:
        for b in right:
            world.restore_link(a.index, b.index)


def paused(world: World, *peers: SimPeer) -> None:
    world.run_until(lambda: all(p.node.pause.reason for p in peers), 4)


# --- a paused run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_member_of_a_minority_says_so_within_its_detectors_time(count: int) -> None:
    """Hosts go dark: nobody can prove it. All that are left say why they are paused, and since when."""
    world, peers = start(count)
    lost, rest = (peers[:1], peers[1:]) if count == 2 else (peers[: count // 2 + 1], peers[count // 2 + 1 :])
    began = world.now
    for peer in lost:
        world.kill(peer, seal=False, dark=True)
    paused(world, *rest)
    assert world.now - began < 3.0
    world.run(world.now + 1.0)
    for peer in rest:
        status = peer.node.status()["paused"]
        assert all(dead.info.name in status["reason"] for dead in lost)
        assert status["seconds"] >= 1.0
        assert "force-view" in str(traces(peer, "told")[-1]["text"])


def test_a_paused_member_gives_nothing_away_and_heals_by_itself() -> None:
    world, peers = start(3)
    cut, rest = peers[2], peers[:2]
    part(world, [cut], rest)
    paused(world, cut)
    for other in rest:
        world.cut_link(3, other.index)  # it would find its way to them by itself
    joiner = world.join(3, 2)
    world.run(world.now + 3)
    assert joiner.node.ctx.role == Role.JOINER
    assert "is paused: no quorum without p0, p1" in str(traces(joiner, "refused")[-1]["reason"])
    assert not traces(cut, "admit")
    mend(world, [cut, joiner], rest)
    world.run_until(lambda: len(world.members()) == 4 and not cut.node.status()["paused"], 20)
    assert traces(cut, "unpaused")
    for peer in peers:
        advance(world, peer, 3)
    check(world)


def test_a_learner_gets_no_state_from_a_minority() -> None:
    """It was fetching when its donor's side lost the quorum: it waits, and finishes when the network is back."""
    world, peers = start(3)
    world.shard_s = 0.3
    joiner = world.join(3, 2)
    world.run_until(lambda: str(joiner.node.learner.phase) == "fetch", 5)
    part(world, [peers[2], joiner], peers[:2])
    paused(world, peers[2])
    world.run(world.now + 1)
    got, sent = world.shards_sent, world.network.sent
    world.run(world.now + 4)
    assert world.shards_sent == got, "its donor sends nothing more"
    assert not joiner.node.learner._ready, "no donor says that it is ready"
    assert world.network.sent - sent < 4 * 400, "nobody asks in a loop"
    mend(world, [peers[2], joiner], peers[:2])
    world.run_until(lambda: len(world.members()) == 4, 30)
    check(world)


def test_who_leaves_while_paused_says_so() -> None:
    world, peers = start(2)
    part(world, peers[:1], peers[1:])
    paused(world, peers[1])
    peers[1].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: peers[1].stopped is not None, 12)
    assert peers[1].stopped is not None and peers[1].stopped.code == 7
    assert "it was paused: no quorum without p0" in peers[1].stopped.reason


# --- forcing -----------------------------------------------------------------------------------------------------


def test_the_half_without_the_extra_weight_goes_on_when_forced() -> None:
    world, peers = start(2)
    before = peers[1].node.steps.finished
    world.kill(peers[0], seal=False, dark=True)
    paused(world, peers[1])
    shown = peers[1].node.force.preview()
    assert (shown["members"], shown["left_out"]) == (["p1"], ["p0"])
    assert force(world, peers[1]) == ""
    advance(world, peers[1], 5)
    view = peers[1].node.ctx.view
    assert view.lineage == "two" and view.abandoned[-1].lineage == "one"
    assert view.id > 1_000_000, "frames name their view by its id only: the old lineage must never use these"
    assert peers[1].node.steps.finished > before
    check(world)


@pytest.mark.parametrize("seed", range(6))
def test_all_that_hear_each_other_go_on_together(seed: int) -> None:
    """Three of five hosts are lost. A retried step keeps its contributions, and what one had finished is fetched."""
    world, peers = start(5, seed)
    world.samples = 10_000
    lost, rest = peers[:3], peers[3:]
    world.run(world.now + world.random.uniform(0.0, 0.1))
    for peer in lost:
        world.kill(peer, seal=False, dark=True)
    paused(world, *rest)
    assert force(world, rest[seed % 2]) == ""
    for peer in rest:
        advance(world, peer, 5)
        assert peer.node.ctx.view.lineage == "two"
        assert [m.name for m in peer.node.ctx.view.members] == ["p3", "p4"]
    joiner = world.join(7, 3)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 10)
    check(world)


def test_samples_of_those_left_out_are_used_all_the_same() -> None:
    world = World(3)
    world.samples = 60
    peers = [world.found(0), world.join(1, 0), world.join(2, 0)]
    world.run_until(lambda: len(world.members()) == 3, 10)
    advance(world, peers[2], 3)
    for peer in peers[:2]:
        world.kill(peer, seal=False, dark=True)
    paused(world, peers[2])
    assert force(world, peers[2]) == ""
    epoch = world.epoch()
    world.run_until(lambda: world.epoch() >= epoch + 2, 60)  # each epoch: every sample exactly once
    check(world)


def test_who_may_lack_a_stable_step_cannot_be_forced_alone() -> None:
    """It was promoted a step behind, and those that hold that step are gone."""
    world = World(1)
    world.network.bulk_delay = 0.1
    founder, joiner = world.found(0), world.join(1, 0)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 20)
    assert joiner.node.steps.finished < joiner.node.ctx.view.first_step - 1
    world.kill(founder, seal=False, dark=True)
    paused(world, joiner)
    assert "holds the last stable step" in force(world, joiner)
    assert joiner.node.ctx.view.lineage == "one"


def test_a_run_that_is_not_paused_refuses() -> None:
    world, peers = start(3)
    assert "not paused" in force(world, peers[0])
    joiner = world.join(3, 0)
    assert "not a member" in force(world, joiner)
    world.kill(peers[0], seal=False, dark=True)
    world.kill(peers[1], seal=False, dark=True)
    paused(world, peers[2])
    peers[2].handle(ev.ForceRequested("late", 1))
    assert "the view has changed" in peers[2].node.force.outcomes["late"]


def test_one_that_comes_back_with_the_old_lineage_is_told_and_rejoins() -> None:
    """Its host was frozen, so it did not go on: it comes over as a learner, and becomes a member."""
    world, peers = start(2)
    world.disturb()
    peers[0].freeze()
    paused(world, peers[1])
    assert force(world, peers[1]) == ""
    advance(world, peers[1], 5)
    world.disturb()
    peers[0].wake()
    world.run_until(lambda: [len(p.node.ctx.view.members) for p in world.members()] == [2, 2], 20)
    assert {p.node.ctx.view.lineage for p in peers} == {"two"}
    assert traces(peers[0], "rejoin")
    assert any("forced a new lineage two" in str(t["text"]) for t in traces(peers[0], "told"))
    for peer in peers:
        advance(world, peer, 3)
    check(world)


def test_two_that_went_on_apart_never_mix() -> None:
    """One half had the quorum and went on, the other was forced: after the cut both report, and neither gives way."""
    world, peers = start(2)
    part(world, peers[:1], peers[1:])
    paused(world, peers[1])
    world.promises = Lineages(world)  # type: ignore[assignment]
    assert force(world, peers[1]) == ""
    advance(world, peers[0], 3)
    advance(world, peers[1], 3)
    mend(world, peers[:1], peers[1:])
    peers[0].wants.add(peers[1].id)
    world.network.connect(peers[0].id, peers[1].id)
    for peer in peers:
        advance(world, peer, 10)
    assert [p.node.ctx.view.lineage for p in peers] == ["one", "two"]
    assert [len(p.node.ctx.view.members) for p in peers] == [1, 1]
    for peer, other in (peers, peers[::-1]):
        assert peer.node.status()["other_lineages"] == {other.info.name: other.node.ctx.view.lineage}
        assert len(traces(peer, "other_lineage")) == 1
        assert "nothing is exchanged" in str(traces(peer, "told")[-1]["text"])


def test_two_operators_on_two_sides_make_two_lineages() -> None:
    """Four hosts in two halves, and the one with the extra weight lost a member: both are paused, both are forced."""
    world, peers = start(5)
    world.kill(peers[0], seal=False, dark=True)
    world.run_until(lambda: len(peers[1].node.ctx.view.members) == 4, 5)
    world.kill(peers[1], seal=False, dark=True)
    left, right = peers[2:3], peers[3:]
    part(world, left, right)
    world.run(world.now + 4)
    paused(world, *peers[2:])
    world.promises = Lineages(world)  # type: ignore[assignment]
    assert force(world, left[0], "left") == "" and force(world, right[0], "right") == ""
    mend(world, left, right)
    for peer in left + right:
        advance(world, peer, 10)
    assert [p.node.ctx.view.lineage for p in peers[2:]] == ["left", "right", "right"]


def test_one_of_two_requests_wins_where_the_lists_meet() -> None:
    """Two operators ask two members that hear the same third one: it agrees to the first only."""
    world, peers = start(7)
    for peer in peers[:4]:
        world.kill(peer, seal=False, dark=True)
    a, b, c = peers[4:]
    paused(world, a, b, c)
    part(world, [a], [b])
    a.node.views.suspects.add(b.id)
    b.node.views.suspects.add(a.id)
    for peer, name in ((a, "by-a"), (b, "by-b")):
        peer.handle(ev.ForceRequested(name, peer.node.ctx.view.id))
    world.run_until(lambda: "by-a" in a.node.force.outcomes and "by-b" in b.node.force.outcomes, FORCE_S + 1)
    assert sorted([a.node.force.outcomes["by-a"] == "", b.node.force.outcomes["by-b"] == ""]) == [False, True]
    lost = a.node.force.outcomes["by-a"] or b.node.force.outcomes["by-b"]
    assert "too few" in lost
    mend(world, [a], [b])
    world.run_until(lambda: [len(p.node.ctx.view.members) for p in world.members()] == [3, 3, 3], 20)
    assert len({p.node.ctx.view.lineage for p in (a, b, c)}) == 1


def test_who_agreed_takes_no_part_in_the_old_lineage_for_a_while() -> None:
    world, peers = start(3)
    part(world, peers[2:], peers[:2])
    paused(world, peers[2])
    node, view = peers[2].node, peers[2].node.ctx.view
    peers[2].handle(ev.Received(peer_id(2), ForceProposal(view, "two")))
    promised = node.views.acceptor.promised
    later = Prepare(view, Ballot(99, peer_id(1)), True, ())
    node.handle(ev.Received(peer_id(1), later), peers[2].now)
    assert node.views.acceptor.promised == promised
    node.handle(ev.Received(peer_id(1), later), peers[2].now + HOLD_S + 0.01)
    assert node.views.acceptor.promised >= Ballot(99, peer_id(1))


def forced_beside_a_frozen_one() -> list[SimPeer]:
    """Two hosts: the first is frozen and knows nothing, the second was forced to go on."""
    world, peers = start(2)
    world.disturb()
    peers[0].freeze()
    paused(world, peers[1])
    assert force(world, peers[1]) == ""
    return peers


def test_the_words_of_one_that_went_over_prove_nothing_in_the_old_lineage() -> None:
    """They hold its votes in the new lineage only: the old one's would be lost, and with them perhaps a decision."""
    stale, dead = forced_beside_a_frozen_one()
    views, words = stale.node.ctx.views, dead.node.views.words()
    views.append(replace(views[-1], id=views[-1].id + 1))  # a later view of the old lineage, which it went on with
    assert words is not None and not stale.node.views.add_gone(dead.sealed(), words)
    assert dead.id not in stale.node.views.gone and stale.node.ctx.view.lineage == "one"


def test_the_words_of_one_that_went_over_tell_of_the_new_lineage() -> None:
    stale, dead = forced_beside_a_frozen_one()
    words = dead.node.views.words()
    assert words is not None and not stale.node.views.add_gone(dead.sealed(), words)
    assert stale.node.ctx.role == Role.JOINER, "it is not in that view, so it has to come in anew"


def test_a_member_that_hears_a_quorum_agrees_to_nothing() -> None:
    world, peers = start(3)
    peers[0].handle(ev.Received(peer_id(2), ForceProposal(peers[0].node.ctx.view, "two")))
    assert not peers[0].node.steps.frozen and not peers[0].node.force.holds("one")
    advance(world, peers[0], 3)


def test_a_stranger_forces_nothing() -> None:
    world, peers = start(2)
    world.kill(peers[0], seal=False, dark=True)
    paused(world, peers[1])
    view = peers[1].node.ctx.view
    peers[1].handle(ev.LinkUp(info(5), "run"))
    world.stranger_says(peers[1], ForceProposal(view, "evil"), peer_id(5))
    assert peers[1].node.ctx.view == view
