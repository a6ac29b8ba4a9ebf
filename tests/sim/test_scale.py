"""Large views: what the detector and a decision cost grows as promised, and nothing is missed for it.

Messages are counted, not timed. `benchmarks/scale.py` makes the table of docs/scale.md the same way.
"""

from __future__ import annotations

from math import log2

import pytest

from chaos.core import events as ev
from chaos.core import watch
from chaos.core.context import Role
from chaos.core.types import View
from chaos.core.watch import SMALL, watchers
from chaos.sim.crowd import DECISION, DETECTOR, Crowd
from chaos.sim.mix import random_run
from chaos.sim.runs import finish
from chaos.sim.symbols import info, peer_id

SIZES = (24, 48, 96)
GONE_S = 6.0
"""Seconds by which a silent peer is out of a view: its time-out, questions, and a proposal's patience."""


def gone_by_all(world: Crowd, *indices: int) -> bool:
    lost = [peer_id(index) for index in indices]
    return not any(p.node.ctx.view.knows(peer) for p in world.peers.values() for peer in lost)


@pytest.mark.parametrize("size", [2, SMALL, SMALL + 1, 100, 1000])
def test_to_watch_is_mutual_and_costs_a_logarithm(size: int) -> None:
    view = View("one", 1, tuple(info(i) for i in range(size)), (), 1, False, (), "")
    mine = {peer: watchers(view, peer) for peer in view.member_ids()}
    assert all(peer in mine[other] for peer, others in mine.items() for other in others)
    assert all(peer not in others and len(set(others)) == len(others) for peer, others in mine.items())
    most = size - 1 if size <= SMALL else 2 * log2(size)
    assert all(len(others) <= most for others in mine.values())


@pytest.mark.parametrize("size", SIZES)
def test_messages_grow_as_promised(size: int) -> None:
    """Per peer and second, and per silent peer, twice the logarithm; per decision, six per member."""
    world = Crowd(size)
    beats_per_s = 1 / world.config(True).detector.heartbeat_s
    world.run(world.now + 1.0)
    world.forget_counts()
    world.run(world.now + 2.0)
    assert world.count(DETECTOR) / size / 2.0 <= 2 * log2(size) * beats_per_s
    assert set(world.said) == {"Heartbeat"}, "nothing else is said while nothing happens"

    world.forget_counts()
    world.kill(world.peers[peer_id(size // 2)], dark=True, seal=False)
    world.run_until(lambda: gone_by_all(world, size // 2), GONE_S)
    assert (world.said["Probe"] + world.said["ProbeReply"]) / size <= 6 * log2(size)
    assert world.count(DECISION) <= 6 * size and world.busiest(DECISION) <= 6 * size


def test_the_watched_die_with_all_their_watchers() -> None:
    """Nobody is left to tell of it: the proposer finds out who does not answer."""
    world = Crowd(24)
    victims = [peer_id(12), *watchers(world.members()[0].node.ctx.view, peer_id(12))]
    for victim in victims:
        world.kill(world.peers[victim], dark=True, seal=False)
    world.run_until(lambda: gone_by_all(world, *(int(v, 16) for v in victims)), 4 * GONE_S)


def test_a_frozen_peer_that_wakes_up_is_trusted_by_those_that_do_not_watch_it() -> None:
    """Its watchers told everybody that it is silent, and tell everybody that it is not any more."""
    world = Crowd(24)
    sleeper, others = world.peers[peer_id(12)], [p for i, p in enumerate(world.peers.values()) if i != 12]
    for other in others:  # nobody may propose without it before it wakes up
        other.node.views.needed = lambda: ""  # type: ignore[method-assign]
    sleeper.freeze()
    world.run_until(lambda: all(sleeper.id in p.node.views.suspects for p in others), GONE_S)
    sleeper.wake()
    world.run_until(lambda: not any(p.node.views.suspects for p in others), 2.0)


@pytest.mark.parametrize("orderly", [True, False])
def test_peers_come_and_go_in_a_large_view(orderly: bool) -> None:
    world = Crowd(20, compute=0.2)
    world.run_until(lambda: max(world.promises.stable, default=0) >= 2, 10)
    joiner = world.join(20, 3)
    world.run_until(lambda: joiner.node.ctx.role == Role.MEMBER, 30)
    leaver = world.peers[peer_id(7)]
    if orderly:
        leaver.handle(ev.LeaveRequested("asked to"))
    else:
        world.kill(leaver)
    world.run_until(lambda: gone_by_all(world, 7), 10)
    done = max(world.promises.stable)
    world.run_until(lambda: min(p.node.steps.stable for p in world.members()) >= done + 3, 10)
    world.promises.equal_states()


@pytest.mark.parametrize("seed", range(6))
def test_random_faults_where_few_watch_each(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of large views, in small ones: all faults, all promises."""
    monkeypatch.setattr(watch, "SMALL", 3)
    assert finish(random_run(seed, 6)).violation is None
