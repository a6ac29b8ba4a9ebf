"""What each message between peers is handed to, once its sender may say it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.core.access import allowed
from chaos.core.context import Role
from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import (
    Accept,
    Ack,
    Admit,
    AskLinks,
    Decide,
    DonorReady,
    FetchResult,
    FinishedStep,
    ForceAnswer,
    ForceProposal,
    Goodbye,
    Heartbeat,
    Holding,
    JoinRefused,
    JoinRequest,
    Leaving,
    LinkWish,
    Nack,
    Pause,
    PeerMessage,
    Prepare,
    Probe,
    ProbeReply,
    Promise,
    Ready,
    ResultMissing,
    Seal,
    ShardRequest,
    SnapshotAt,
    SnapshotMissing,
    SnapshotOffer,
    SnapshotPrepare,
    SnapshotRelease,
    StepContribution,
    Vote,
    WorkerDown,
)

if TYPE_CHECKING:
    from chaos.core.node import Node


def receive(node: Node, src: str, message: PeerMessage) -> None:
    """Hand a message to the part that it concerns; what its sender may not say is dropped without a word.

    Raises:
        RemoteProtocolError: it is no message between peers.
    """
    if not allowed(node.ctx, src, message):
        return
    match message:
        case StepContribution():
            node.steps.on_contribution(src, message)
        case Ack():
            node.steps.on_ack(src, message)
        case Heartbeat():
            node.liveness.on_heartbeat(src, message)
        case AskLinks():
            node.liveness.links_said.ask(src)
        case Prepare():
            node.views.on_prepare(src, message)
        case Promise():
            node.views.on_promise(src, message)
        case Nack():
            node.views.on_nack(src, message)
        case Accept():
            node.views.on_accept(src, message)
        case Vote():
            node.views.on_vote(src, message)
        case Decide(view):
            node.decided(view)
        case ForceProposal():
            node.force.on_proposal(src, message)
        case ForceAnswer():
            node.force.on_answer(src, message)
        case Seal(sealed):
            node.on_sealed(sealed, announce=False)
        case Goodbye():
            node.departure.on_goodbye(src, message)
        case Probe():
            node.liveness.on_probe(src, message)
        case ProbeReply():
            node.liveness.on_probe_reply(src, message)
        case FetchResult():
            node.results.on_fetch(src, message)
        case FinishedStep():
            node.results.on_finished_step(src, message)
        case ResultMissing():
            node.results.on_result_missing(src, message)
        case _:
            _receive_membership(node, src, message)


def _receive_membership(node: Node, src: str, message: PeerMessage) -> None:
    wishes = node.ctx.wishes
    match message:
        case JoinRequest():
            node.admission.on_request(src, message)
        case JoinRefused():
            node.admission.on_refused(src, message)
        case Admit():
            node.admission.on_admit(message)
        case Ready(peer, want):
            wishes.ready[peer] = want
        case Leaving(step, done):
            wishes.leaving[src] = step
            if done:
                wishes.done.add(src)
        case WorkerDown():
            if node.ctx.views and node.ctx.view.member(src):
                wishes.worker_down.add(src)
            wishes.ready.pop(src, None)
        case LinkWish(peer, connect):
            node.overlay.on_wish(src, peer, connect)
        case Pause(seconds):
            node.steps.pause(src, seconds)
        case SnapshotPrepare():
            node.donor.on_prepare(src, message)
        case DonorReady():
            node.learner.on_donor_ready(src, message)
        case SnapshotAt():
            node.donor.on_snapshot_at(src, message)
        case SnapshotMissing():
            node.learner.on_missing(src, message)
        case SnapshotOffer():
            node.learner.on_offer(src, message)
        case ShardRequest():
            if node.ctx.role == Role.LEARNER:
                node.learner.sharing.on_shard_request(src, message)
            else:
                node.donor.on_shard_request(src, message)
        case Holding():
            node.learner.sharing.on_holding(src, message)
        case SnapshotRelease(step):
            node.donor.release(src, step)
        case _:
            raise RemoteProtocolError(f"{type(message).__name__} is not a message between peers")
