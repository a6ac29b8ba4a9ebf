"""The result of a step that others have finished: it is waited for while it comes, and fetched if it does not."""

from __future__ import annotations

from functools import partial

from chaos.core.events import ResultComes
from chaos.core.learner import Phase
from chaos.core.results import STILL_COMING
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_scenarios import check, traces


def stuck(world: World, peer: SimPeer, step: int) -> None:
    """Let the bytes of `step` from others not come to `peer`, though it knows that all have contributed."""
    world.disturb()
    receive = peer.reducer.receive

    def lossy(kind: str, src: str, view: int, at: int, parts: object) -> None:
        if not (kind == "final" and at == step and src != peer.id):
            receive(kind, src, view, at, parts)  # type: ignore[arg-type]

    peer.reducer.receive = lossy  # type: ignore[method-assign]
    world.run_until(lambda: world.peers["0" * 16].node.steps.finished == step, 10)


def pair() -> tuple[World, SimPeer, int]:
    world = World(1)
    founder = world.found(0)
    world.run_until(lambda: founder.node.steps.finished >= 3)
    second = world.join(1, 0)
    world.run_until(lambda: len(world.members()) == 2, 10)
    return world, second, founder.node.steps.finished + 3


def say(peer: SimPeer, step: int) -> None:
    peer.post(partial(peer.handle, ResultComes(step)))


def test_bytes_that_come_slowly_are_not_fetched_anew() -> None:
    """A fetch takes all of them from one member; it cost a run over slow links ten seconds in every second step."""
    world, second, step = pair()
    stuck(world, second, step)
    began = world.now
    while world.now < began + 3 * STILL_COMING:
        say(second, step)
        world.run(world.now + STILL_COMING / 2)
    assert second.node.steps.finished == step - 1 and not traces(second, "fetched")
    world.run_until(lambda: bool(traces(second, "fetched")), 1.1 * STILL_COMING)
    world.run_until(lambda: second.node.steps.finished > step, 5)
    check(world)


def test_bytes_of_other_steps_are_no_reason_to_wait() -> None:
    world, second, step = pair()
    stuck(world, second, step)
    began = world.now
    while not traces(second, "fetched"):
        assert world.now < began + 1.5 * STILL_COMING
        say(second, step + 1)
        world.run(world.now + STILL_COMING / 2)
    check(world)


def test_a_learner_fetches_no_result_while_its_shards_come() -> None:
    """Results queue behind them, so nothing of a result comes meanwhile."""
    world = World(2)
    world.found(0)
    world.run_until(lambda: world.peers["0" * 16].node.steps.finished >= 3)
    world.shard_s = 4.0
    joiner = world.join(1, 0)
    world.run_until(lambda: joiner.node.learner.phase == Phase.FETCH, 10)
    stuck(world, joiner, joiner.node.learner.base_step + 1)
    world.run_until(lambda: joiner.node.learner.phase != Phase.FETCH, 60)
    assert world.now > 2 * STILL_COMING and not traces(joiner, "fetched")
