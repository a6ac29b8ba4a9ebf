"""Who may say what: any message at any time raises nothing but RemoteProtocolError, and a stranger changes nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.core import events as ev
from chaos.core.context import Role
from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import JoinRequest
from chaos.core.node import Node
from chaos.sim.symbols import FINGERPRINT, LAYOUT, info, peer_id
from chaos.sim.world import World
from tests.core.random_messages import ANY_MESSAGE, MESSAGES
from tests.core.test_outcomes import start

STRANGER = 5


def nodes() -> dict[str, Node]:
    """A member and a learner of one run of three members, a joiner, and a leaver; all linked with a stranger."""
    world, peers = start(3)
    learner = world.join(3, 0)
    world.run_until(lambda: learner.node.ctx.role == Role.LEARNER, 5)
    peers[2].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: peers[2].node.ctx.role == Role.LEAVER, 5)
    joiner = World(1).join(4, 0)
    found = {"member": peers[0].node, "learner": learner.node, "joiner": joiner.node, "leaver": peers[2].node}
    for node in found.values():
        node.handle(ev.LinkUp(info(STRANGER), "run"), node.ctx.now)
    return found


NODES = nodes()


def fresh(role: str) -> Node:
    return copy.deepcopy(NODES[role])


def essence(node: Node) -> Any:
    """What agreement, steps and membership rest on."""
    steps, views, wishes = node.steps, node.views, node.ctx.wishes
    acceptor = views.acceptor and (views.acceptor.view, views.acceptor.promised, views.acceptor.accepted)
    return copy.deepcopy((
        node.ctx.views, node.ctx.role, acceptor, views.gone, views.suspects, views.proposal, wishes,
        steps.finished, steps.opened, steps.head, steps.data, steps.stable, steps.history, steps.rounds,
        steps._acks, steps._early, steps._stash, node.stopped, node.liveness.progress, node.donor._snapshot,
        node.learner.phase, node.learner._ready, node.learner._offer,
    ))  # fmt: skip


def feed(node: Node, src: str, message: Any, now: float) -> list[Any]:
    try:
        return node.handle(ev.Received(src, message), now)
    except RemoteProtocolError:
        return []


QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("role", ["member", "learner", "leaver"])
@QUICK
@given(st.lists(ANY_MESSAGE, min_size=1, max_size=6))
def test_a_stranger_changes_nothing(role: str, messages: list[Any]) -> None:
    node = fresh(role)
    node.handle(ev.Tick(), node.ctx.now)
    before = essence(node)
    for message in messages:
        if not isinstance(message, JoinRequest):
            feed(node, peer_id(STRANGER), message, node.ctx.now)
    assert essence(node) == before


@pytest.mark.parametrize("role", list(NODES))
@pytest.mark.parametrize("src", [0, 1, 2, 3, STRANGER])
@QUICK
@given(st.lists(ANY_MESSAGE, min_size=1, max_size=8))
def test_anything_from_anybody_raises_nothing_else(role: str, src: int, messages: list[Any]) -> None:
    node = fresh(role)
    now = node.ctx.now
    for message in messages:
        now += 0.01
        feed(node, peer_id(src), message, now)
        node.handle(ev.Tick(), now)


@pytest.mark.parametrize("tp", MESSAGES, ids=lambda tp: tp.__name__)
def test_each_type_has_a_rule(tp: type) -> None:
    """A type that the rules forgot would be refused even from members."""
    source = (Path(__file__).parents[2] / "src/chaos/core/access.py").read_text()
    assert f"{tp.__name__}(" in source


def test_a_stranger_may_ask_to_join_for_itself_only() -> None:
    node = fresh("member")
    request = JoinRequest(info(STRANGER), FINGERPRINT, LAYOUT, "run")
    assert "admit" in [a.kind for a in feed(node, peer_id(STRANGER), request, node.ctx.now) if hasattr(a, "kind")]
    node = fresh("member")
    with pytest.raises(RemoteProtocolError, match="over the link of"):
        node.handle(ev.Received(peer_id(STRANGER), JoinRequest(info(4), FINGERPRINT, LAYOUT, "run")), node.ctx.now)
    assert not node.ctx.wishes.admit


def test_a_new_incarnation_does_not_speak_for_the_old_one() -> None:
    """It is linked under the id of a member, but it is not that member."""
    node = fresh("member")
    node.handle(ev.LinkUp(info(1, 2), "run"), node.ctx.now)
    assert not node.ctx.is_member(peer_id(1))
    assert node.ctx.view.member(peer_id(1)) is None, "of two, the lower rank decides at once"
