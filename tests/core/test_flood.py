"""Thousands of messages from one malicious member or learner: nothing of a node grows with their number."""

from __future__ import annotations

import sys
from collections import deque
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from chaos.core import admission, donor, steps
from chaos.core import events as ev
from chaos.core import messages as msg
from chaos.core.errors import RemoteProtocolError
from chaos.core.learner import Phase
from chaos.core.node import Node
from chaos.core.types import DataState, PeerInfo, StateManifest
from chaos.core.worker_messages import Contribution, Register
from chaos.sim.symbols import FINGERPRINT, LAYOUT, info, peer_id
from tests.core.random_messages import MESSAGES, message
from tests.core.test_access import fresh
from tests.core.test_outcomes import start

SENDERS = [("member", 1), ("member", 3), ("learner", 1)]
"""(role of who hears it, number of who says it): 1 is a member, 3 a learner."""
ROUND, GROWTH = 150, 12_000
"""Messages between two looks, and the bytes by which a node may differ then: lengths and times vary, no more."""


def nbytes(value: Any, seen: set[int]) -> int:
    """Memory of a value and all that it holds."""
    if id(value) in seen or callable(value):
        return 0
    seen.add(id(value))
    match value:
        case dict():
            inner = [*value, *value.values()]
        case list() | tuple() | set() | frozenset() | deque():
            inner = list(value)
        case _:
            fields = getattr(value, "__struct_fields__", ())
            inner = [getattr(value, name) for name in fields] or [*getattr(value, "__dict__", {}).values()]
    return sys.getsizeof(value) + sum(nbytes(item, seen) for item in inner)


def tell(node: Node, src: int, said: Any, now: float) -> None:
    try:
        node.handle(ev.Received(peer_id(src), said), now)
    except RemoteProtocolError:
        node.ctx.out.clear()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so low that a short test gets to them."""
    monkeypatch.setattr(steps, "AHEAD", 40)
    monkeypatch.setattr(donor, "AHEAD", 10**9)
    monkeypatch.setattr(admission, "MAX_SEATS", 40)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("tp", MESSAGES, ids=lambda tp: tp.__name__)
def test_nothing_grows_with_the_number_of_messages(tp: type) -> None:
    for role, src in SENDERS:
        random, node, sizes = Random(tp.__name__), fresh(role), []
        for _ in range(3):
            for number in range(ROUND):
                if node.stopped or not node.ctx.views:  # it was told that its place is taken, or that the run ended
                    node = fresh(role)
                tell(node, src, message(tp, random), node.ctx.now + 0.001)
                if number % 10 == 0:
                    node.handle(ev.Tick(), node.ctx.now)
            sizes.append(nbytes(node, set()))
        assert max(sizes[1:]) - sizes[0] < GROWTH, f"{tp.__name__} from peer {src} to a {role}: {sizes}"


def test_all_that_one_member_can_say_at_once_has_a_bound() -> None:
    """Each of the largest size, as often as is taken."""
    node = fresh("learner")
    empty = nbytes(node, set())
    part = Contribution(1.0, False, 1.0, (), b"t" * 65536, b"s" * 65536, 0, False)
    view = node.ctx.view
    for step in range(node.steps.finished + 1, node.steps.finished + 1000):
        own = replace(part, touched=bytes(65536 - step % 7), scalars=bytes(65536 - step % 5))
        tell(node, 1, msg.StepContribution(view.id, step, b"", own), node.ctx.now)
    kept = nbytes(node, set()) - empty
    assert kept < 2 * steps.NEAR * 131072, f"{kept / 2**20:.0f} MiB"
    assert max(node.steps.rounds) <= node.steps.finished + steps.NEAR


def test_more_peers_than_a_view_can_name_are_not_admitted() -> None:
    """A view with more would be refused by all who read it: the run would stand still for good."""
    node = fresh("member")
    for index in range(100, 100 + 2 * admission.MAX_SEATS):
        node.handle(ev.Received(peer_id(1), msg.Admit(info(index))), node.ctx.now)
        node.views.proposal = None
    assert len(node.ctx.wishes.admit) + len(node.ctx.view.everybody()) == admission.MAX_SEATS
    node.handle(ev.LinkUp(info(99), "run"), node.ctx.now)
    actions = node.handle(ev.Received(peer_id(99), msg.JoinRequest(info(99), FINGERPRINT, LAYOUT, "run")), node.ctx.now)
    refusals = [a.message for a in actions if isinstance(getattr(a, "message", None), msg.JoinRefused)]
    assert [r.retry for r in refusals] == [True] and "full" in refusals[0].reason


def test_three_lineages_at_one_step_are_no_crash() -> None:
    """All members and another learner claim another head each: there are no two sides."""
    node = fresh("learner")
    step = node.steps.finished
    for number, peer in enumerate([*node.ctx.view.member_ids(), peer_id(4)]):
        node.on_diverged(peer, step, bytes([number]) * 16)
    assert len(node._claims[step]) == len(node.ctx.view.members) + 1


def test_snapshots_that_nobody_waits_for_are_not_remembered() -> None:
    node = fresh("member")
    for step in range(node.steps.finished + 2, node.steps.finished + 200):
        node.handle(ev.Received(peer_id(3), msg.SnapshotAt(step)), node.ctx.now)
    assert len(node.worker._snapshot_at) <= 1
    with pytest.raises(RemoteProtocolError, match="a snapshot of step"):
        node.handle(ev.Received(peer_id(3), msg.SnapshotAt(2**60)), node.ctx.now)


def offering() -> tuple[Node, str]:
    """A learner that waits for the offer of this donor."""
    world, _ = start(2)
    learner = world.join(3, 0)
    node = learner.node
    world.run_until(lambda: node.learner.phase == Phase.OFFER and bool(node.learner._ready), 5)
    return node, sorted(node.learner._ready)[0]


@pytest.mark.parametrize(
    ("nbytes", "hashes", "late", "complaint"),
    [
        (2**40, 1, 0, "with 1 hashes of"),
        (90_000 * 2**30, 90_000, 0, r"for a model of \d+ bytes"),
        (64, 1, 1, "whose manifest is of step"),
    ],
)
def test_no_memory_is_made_for_an_offer_that_cannot_be(nbytes: int, hashes: int, late: int, complaint: str) -> None:
    node, src = offering()
    step = node.learner._target
    manifest = StateManifest(step + late, nbytes, (), b"")
    offer = msg.SnapshotOffer(step, b"h" * 16, DataState(), manifest, 2**30, (b"0" * 32,) * hashes)
    with pytest.raises(RemoteProtocolError, match=complaint):
        node.handle(ev.Received(src, offer), node.ctx.now)
    assert node.learner._offer is None and node.learner.phase == Phase.OFFER


def test_another_layout_is_refused_at_the_door_and_from_a_restarted_worker() -> None:
    other = replace(LAYOUT, nbytes=128)
    node = fresh("member")
    joiner: PeerInfo = info(5)
    actions = node.handle(ev.Received(joiner.id, msg.JoinRequest(joiner, FINGERPRINT, other, "run")), node.ctx.now)
    refused = [a.message for a in actions if isinstance(getattr(a, "message", None), msg.JoinRefused)]
    assert len(refused) == 1 and "buckets" in refused[0].reason and not refused[0].retry
    node.handle(ev.WorkerDied("killed"), node.ctx.now)
    node.handle(ev.WorkerSaid(Register(1, FINGERPRINT, other, "run")), node.ctx.now)
    assert node.stopped is not None and "buckets" in node.stopped.reason
