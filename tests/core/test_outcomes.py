"""Who goes on when something dies: the table of outcomes, and the death of everybody in every phase of a join."""

from __future__ import annotations

import pytest

from chaos.core.context import Role
from chaos.core.learner import Phase
from chaos.sim.peer import SimPeer
from chaos.sim.world import World

PEERS = (2, 3, 4)


def start(count: int, seed: int = 0) -> tuple[World, list[SimPeer]]:
    """A run of `count` members in which the founder has rank 0, and steps go on."""
    world = World(seed)
    peers = [world.found(0)]
    for index in range(1, count):
        peers.append(world.join(index, 0))
        world.run_until(lambda n=index: len(world.members()) == n + 1, 10)
    advance(world, peers[0], 3)
    return world, peers


def advance(world: World, peer: SimPeer, steps: int, limit: float = 10.0) -> None:
    target = peer.node.steps.stable + steps
    world.run_until(lambda: peer.node.steps.stable >= target, limit)


def stops(world: World) -> dict[str, int]:
    """Exit code by name, of those that have stopped."""
    everybody = [*world.peers.values(), *world.dead]
    return {p.info.name: p.stopped.code for p in everybody if p.stopped is not None}


def check(world: World) -> None:
    world.promises.equal_states()


def traces(peer: SimPeer, kind: str) -> list[dict[str, object]]:
    return [fields for _, k, fields in peer.trace if k == kind]


@pytest.mark.parametrize("count", PEERS)
@pytest.mark.parametrize("victim", ["first", "last"])
def test_killed_worker_is_announced_retried_without_and_heals(count: int, victim: str) -> None:
    world, peers = start(count)
    hurt = peers[0] if victim == "first" else peers[-1]
    rest = [p for p in peers if p is not hurt]
    world.kill_worker(hurt)
    killed = world.now
    world.run_until(lambda: all(hurt.info not in p.node.ctx.view.members for p in rest), 1)
    assert world.now - killed < 0.05
    advance(world, rest[0], 2)
    world.run_until(lambda: len(world.members()) == count, 10)
    assert not traces(hurt, "rejoin"), "its agent never lost its place"
    advance(world, hurt, 3)
    check(world)


@pytest.mark.parametrize("count", PEERS)
@pytest.mark.parametrize("victim", ["first", "last"])
@pytest.mark.parametrize("later", [None, 1.0])
def test_killed_agent_is_sealed_and_the_rest_go_on(count: int, victim: str, later: float | None) -> None:
    """With `later`, its words can be sealed only after it is long suspected: even a single survivor then goes on."""
    world, peers = start(count)
    dead = peers[0] if victim == "first" else peers[-1]
    rest = [p for p in peers if p is not dead]
    world.kill(dead, later=later)
    killed = world.now
    advance(world, rest[0], 3)
    assert world.now - killed < 0.3 + (later or 0.0) + 0.5
    assert all(p.node.ctx.role == Role.MEMBER for p in rest)
    assert all(dead.info not in p.node.ctx.view.members for p in rest)
    check(world)


@pytest.mark.parametrize("count", PEERS)
def test_agent_and_worker_of_one_peer(count: int) -> None:
    world, peers = start(count)
    world.kill_worker(peers[-1], restart=None)
    world.kill(peers[-1])
    advance(world, peers[0], 3)
    assert len(world.members()) == count - 1
    check(world)


@pytest.mark.parametrize("count", [3, 4])
def test_agent_of_one_peer_and_worker_of_another(count: int) -> None:
    world, peers = start(count)
    world.kill_worker(peers[1])
    world.kill(peers[-1])
    advance(world, peers[0], 3)
    world.run_until(lambda: len(world.members()) == count - 1, 10)
    check(world)


@pytest.mark.parametrize("count", [3, 4])
def test_all_but_one_agent_killed_at_once(count: int) -> None:
    """Killed processes never block a run, however few are left."""
    world, peers = start(count)
    for peer in peers[1:]:
        world.kill(peer)
    advance(world, peers[0], 3)
    assert [p.info.name for p in world.members()] == ["p0"]
    check(world)


@pytest.mark.parametrize("count", PEERS)
@pytest.mark.parametrize("victim", ["first", "last"])
def test_lost_host(count: int, victim: str) -> None:
    """Nobody can prove it gone: those with a quorum go on; of two peers, the one with the extra weight."""
    world, peers = start(count)
    dead = peers[0] if victim == "first" else peers[-1]
    rest = [p for p in peers if p is not dead]
    world.kill(dead, seal=False)
    world.run(world.now + 5)
    stable = rest[0].node.steps.stable
    world.run(world.now + 5)
    blocked = count == 2 and victim == "first"
    assert (rest[0].node.steps.stable == stable) == blocked
    assert bool(rest[0].node.pause.reason) == blocked
    if blocked:
        assert "no quorum without p0" in str(traces(rest[0], "paused")[-1]["reason"])
    check(world)


def test_of_two_halves_one_goes_on_and_the_other_comes_back() -> None:
    """The half with more weight trains; the other pauses, and returns as a learner when the network does."""
    world, peers = start(4)
    for a in (0, 1):
        for b in (2, 3):
            world.cut_link(a, b)
    world.run(world.now + 5)
    stood, went = peers[2].node.steps.stable, peers[0].node.steps.stable
    world.run(world.now + 2)
    assert peers[2].node.steps.stable == stood and peers[0].node.steps.stable > went
    assert peers[2].node.pause.reason and peers[3].node.pause.reason
    for a in (0, 1):
        for b in (2, 3):
            world.restore_link(a, b)
    world.run_until(lambda: {len(p.node.ctx.view.members) for p in peers if p.node.ctx.views} == {4}, 20)
    for peer in peers:
        advance(world, peer, 3)
    check(world)


# --- phases of a join x deaths ----------------------------------------------------------------------------------

PHASES = [Phase.PREPARE, Phase.OFFER, Phase.FETCH, Phase.LOAD, Phase.VERIFY, Phase.READY]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("who", ["joiner", "founder", "donor", "bystander", "proposer"])
@pytest.mark.parametrize("what", ["agent", "worker"])
def test_death_in_each_phase_of_a_join(phase: Phase, who: str, what: str) -> None:
    """Whoever dies while somebody catches up: the others go on, and the joiner (or its next incarnation) gets in."""
    world, peers = start(3, seed=7)
    if who == "proposer":  # the founder has left, so that proposing is another one's turn
        world.kill(peers.pop(0))
        advance(world, peers[0], 3)
        peers.append(world.join(4, 1))
        world.run_until(lambda: len(world.members()) == 3, 10)
    joiner = world.join(5, peers[-1].index)
    world.run_until(lambda: joiner.node.learner.phase == phase, 10)
    donors = joiner.node.learner._donors or [peers[-1].info.id]
    chosen = {
        "joiner": joiner,
        "founder": peers[0],
        "proposer": peers[0],
        "donor": world.peers[donors[-1]],
        "bystander": peers[1],
    }[who]
    if what == "worker":
        world.kill_worker(chosen)
    else:
        world.kill(chosen)
        if chosen is joiner:
            joiner = world.restart(joiner, peers[0].index)
    left = [p for p in peers if p.alive]
    count = len(left) + 1
    world.run_until(lambda: len(world.members()) == count and joiner in world.members(), 20)
    for peer in [*left, joiner]:
        advance(world, peer, 2)
    check(world)


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01])
@pytest.mark.parametrize("next_too", [False, True])
def test_proposer_dies_while_it_handles_a_failure(after: float, next_too: bool) -> None:
    """Another one takes over wherever the first one stopped: before promises, between the phases, after the votes."""
    world, peers = start(4, seed=3)
    world.kill_worker(peers[3])
    world.run_until(lambda: peers[0].node.views.proposal is not None, 1)
    world.run(world.now + after)
    world.kill(peers[0])
    if next_too:
        world.run(world.now + 0.002)
        world.kill(peers[1])
    left = [p for p in peers if p.alive]
    world.run_until(lambda: len(world.members()) == len(left), 20)
    for peer in left:
        advance(world, peer, 2)
    check(world)


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.001, 0.0015, 0.002, 0.003])
def test_proposer_dies_while_it_plans_a_view(after: float) -> None:
    """A promotion half decided is finished, or dropped and made again, by the others."""
    world, peers = start(3, seed=5)
    joiner = world.join(4, 1)
    world.run_until(lambda: joiner.node.learner.phase == Phase.READY, 10)
    world.run_until(lambda: peers[0].node.views.proposal is not None, 1)
    world.run(world.now + after)
    world.kill(peers[0])
    world.run_until(lambda: len(world.members()) == 3, 20)
    for peer in (peers[1], peers[2], joiner):
        advance(world, peer, 2)
    check(world)
