"""Lists of links in heartbeats of a large view: said when new or asked for, and right whatever was lost on the way."""

from __future__ import annotations

from random import Random

import pytest

from chaos.core import watch
from chaos.core.codec import encode
from chaos.core.links_said import LinksSaid, complete, has, name_of
from chaos.core.messages import AskLinks, Heartbeat, PeerMessage
from chaos.core.watch import watchers
from chaos.sim.crowd import Crowd
from chaos.sim.faults import Faults
from chaos.sim.mix import random_run
from chaos.sim.network import Pair
from chaos.sim.runs import DrawnRun
from chaos.sim.symbols import peer_id
from chaos.sim.world import World

BEATS_S = 0.7
"""A heartbeat that names the list, the question, and the next heartbeat, with their ways and the clocks' rates."""


class Lossy(Crowd):
    """Loses so many of the messages that are about links, and counts lists and bytes."""

    loss = 0.0
    lists = nbytes = 0

    def control(self, src: str, dst: str, said: PeerMessage) -> None:
        if isinstance(said, Heartbeat | AskLinks) and self.random.random() < self.loss:
            return
        if isinstance(said, Heartbeat):
            self.lists += said.links is not None
            self.nbytes = max(self.nbytes, len(encode(said)))
        super().control(src, dst, said)


def mistaken(world: World) -> list[Pair]:
    """(who, about whom): watchers that don't hold the list of a peer that they watch."""
    alive = {p.id: p for p in world.peers.values() if p.alive and p.node.ctx.views and p.node.stopped is None}
    return [
        (other, p.id)
        for p in alive.values()
        for other in watchers(p.node.ctx.view, p.id)
        if other in alive and alive[other].node.ctx.view.id == p.node.ctx.view.id
        if alive[other].node.liveness.neighbours.get(p.id) != tuple(sorted(p.node.ctx.linked))
    ]


def test_where_nothing_changes_no_list_is_said() -> None:
    world = Lossy(40)
    world.run(world.now + 1.0)
    assert not mistaken(world)
    world.lists = world.nbytes = 0
    world.run(world.now + 2.0)
    assert (world.lists, world.said["AskLinks"]) == (0, 0)
    assert world.nbytes < 40


def test_a_lost_link_is_told_at_once() -> None:
    world = Lossy(40)
    world.run(world.now + 1.0)
    world.cut_link(3, 4)
    world.run(world.now + 0.1)
    assert peer_id(4) not in world.peers[peer_id(5)].node.liveness.neighbours[peer_id(3)]
    assert not mistaken(world)
    assert world.said["AskLinks"] == 0, "nobody had to ask"


@pytest.mark.parametrize("seed", range(4))
def test_lists_are_right_again_whatever_was_lost(seed: int) -> None:
    """Links break and return, a peer restarts with another set of links: all while half of the messages are lost."""
    world, random = Lossy(24, seed), Random(seed)
    faults = Faults(world)
    world.run(world.now + 0.5)
    world.loss = 0.5
    for _ in range(8):
        faults.cut([random.choice(sorted(world.network.links))], random.choice([0.1, 0.5, 4.0]))
        world.run(world.now + random.uniform(0.0, 0.3))
    faults.restart(world.peers[peer_id(7)], 0, 0.1)
    world.run(world.now + 8.0)
    assert world.said["AskLinks"]
    world.loss = 0.0
    world.run(world.now + BEATS_S)
    assert mistaken(world) == []


@pytest.mark.parametrize("seed", range(0, 24, 2))
def test_lists_are_right_after_random_faults(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SMALL", 3)
    run = random_run(seed, 6)
    assert isinstance(run, DrawnRun)
    going_on = run.calm._go_on

    def look_and_go_on() -> None:
        """All members have one view, and faults have ceased."""
        run.world.reaches(lambda: not mistaken(run.world), BEATS_S)
        assert mistaken(run.world) == []
        going_on()

    monkeypatch.setattr(run.calm, "_go_on", look_and_go_on)
    run.run()


def test_asking_often_gains_nothing() -> None:
    """One list for each heartbeat, however often it was asked for."""
    world = Lossy(24)
    world.run(world.now + 1.0)
    world.lists = 0
    other = watchers(world.members()[0].node.ctx.view, peer_id(5))[0]
    for _ in range(1000):
        world.control(other, peer_id(5), AskLinks())
    world.run(world.now + 1.0)
    assert world.lists == 1


def beat(links: tuple[str, ...] | None, name: bytes) -> Heartbeat:
    return Heartbeat("one", 1, 0, False, name, links)


def test_a_name_stands_for_the_list_that_came_with_it() -> None:
    mine = LinksSaid()
    first, links, news = mine.update(["c", "a"])
    assert (links, news) == (("a", "c"), True)
    assert mine.update(["a", "c"]) == (first, links, False)
    assert mine.update(["a"])[2]
    assert mine.update(["c", "a"]) == (first, links, True)
    held = beat(links, first)
    assert complete(beat(None, first), held).links == links
    for before in (None, beat(None, first), beat(("a",), name_of(("a",)))):
        assert complete(beat(None, first), before).links is None
    assert name_of(("ab", "c")) != name_of(("a", "bc"))


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_who_is_on_a_list(size: int) -> None:
    links = tuple(f"{2 * i:02}" for i in range(size))
    assert [peer for peer in (f"{i:02}" for i in range(16)) if has(links, peer)] == list(links)
