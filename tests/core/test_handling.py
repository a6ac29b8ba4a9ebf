"""What the trace tells of a change of the view: its cause, and when it was learned of, proposed, decided, installed."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.core import events as ev
from chaos.core.handling import Handling
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_outcomes import advance, start, traces


def last(peer: SimPeer, cause: str) -> dict[str, Any]:
    lines = [line for line in traces(peer, "handled") if line["cause"] == cause]
    assert lines, f"no {cause} at {peer.info.name}"
    return lines[-1]


def check_times(line: dict[str, float]) -> None:
    assert line["learned"] <= line["proposed"] <= line["decided"] <= line["installed"]
    assert line["handling_ms"] == round((line["installed"] - line["learned"]) * 1000, 3)


def idle(peer: SimPeer) -> None:
    handling = peer.node.views.handling
    assert handling == Handling(done=handling.done)


def test_a_leave_is_learned_by_the_leaver_first_and_installed_everywhere() -> None:
    world, peers = start(4)
    asked = world.now
    peers[2].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: all(len(p.node.ctx.view.members) == 3 for p in peers), 2)
    lines = [last(peer, "scale-in") for peer in peers]
    for line in lines:
        check_times(line)
        assert line["causes"] == [("scale-in", peers[2].info.name)]
    assert lines[2]["learned"] == asked
    assert all(line["learned"] > asked for line in (lines[0], lines[1], lines[3]))
    assert [line["proposer"] for line in lines] == [True, False, False, False]
    assert 0 < lines[0]["handling_ms"] < 100


@pytest.mark.parametrize("connect", [False, True])
def test_a_link_that_is_cut_or_made_again(connect: bool) -> None:
    world, peers = start(3)
    peers[0].handle(ev.LinkWanted(peers[1].info.id, False))
    advance(world, peers[0], 5)
    if connect:
        peers[1].handle(ev.LinkWanted(peers[0].info.id, True))
        advance(world, peers[0], 5)
    for peer in peers:
        line = last(peer, "connect-link" if connect else "disconnect-link")
        check_times(line)
        assert line["causes"] == [(line["cause"], f"{peers[0].info.name} - {peers[1].info.name}")]


def test_a_failure_counts_from_its_first_sign() -> None:
    """Doubt comes before suspicion, and before anybody proposes."""
    world, peers = start(3)
    world.kill(peers[2])
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 2, 5)
    advance(world, peers[0], 3)
    for peer in peers[:2]:
        line = last(peer, "failure")
        doubt = next(t for t, kind, fields in peer.trace if kind == "doubt" and fields["peer"] == peers[2].info.name)
        assert line["learned"] == doubt < line["proposed"]
        check_times(line)


def test_a_join_is_an_admission_and_a_promotion() -> None:
    world, peers = start(2)
    joiner = world.join(2, 0)
    world.run_until(lambda: joiner in world.members(), 20)
    advance(world, peers[0], 3)
    assert last(peers[0], "admit")["causes"] == [("admit", joiner.info.name)]
    assert last(peers[0], "scale-out")["causes"] == [("scale-out", joiner.info.name)]
    assert not traces(joiner, "handled"), "it was no member when these views were decided"


def test_what_comes_up_during_another_change_keeps_the_time_when_it_did() -> None:
    world, peers = start(3)
    peers[0].handle(ev.LinkWanted(peers[1].info.id, False))
    world.run_until(lambda: peers[0].node.views.proposal is not None and peers[0].node.views.proposal.value, 1)
    asked = world.now
    peers[0].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: all(len(p.node.ctx.view.members) == 2 for p in peers), 2)
    assert last(peers[0], "scale-in")["learned"] == asked < last(peers[0], "disconnect-link")["installed"]


def test_a_doubt_that_passed_is_forgotten() -> None:
    world, peers = start(3)
    world.cut_link(0, 1)
    world.run(world.now + 3)
    world.restore_link(0, 1)
    world.run(world.now + 3)
    for peer in peers:
        idle(peer)
    world.kill(peers[1])
    killed = world.now
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 2, 5)
    assert last(peers[0], "failure")["learned"] >= killed


def test_a_change_leaves_nothing_behind() -> None:
    world = World(seed=3)
    peers = [world.found(0)]
    world.run_until(lambda: peers[0].node.steps.finished >= 3)
    peers += [world.join(1, 0), world.join(2, 0)]
    world.run_until(lambda: len(world.members()) == 3, 20)
    world.kill(peers[1])
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 2, 5)
    advance(world, peers[0], 5)
    idle(peers[0])
