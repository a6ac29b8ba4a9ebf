"""Who may say what: a message counts only from a peer that has a part in what it speaks about.

A link proves who speaks, and that its party was admitted; a seat in the view gives a voice. What a stranger
says is dropped without a word: a peer that was left behind is one too, until it hears of the newer view.
"""

from __future__ import annotations

from chaos.core.context import Context
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


def allowed(ctx: Context, src: str, message: PeerMessage) -> bool:
    """Whether `src` may say this to me now."""
    if src == ctx.id:
        return True
    match message:
        case Seal() | Goodbye() | Heartbeat() | JoinRequest():
            return True  # signed by the dead; answered, but not believed; or how a stranger comes in
        case StepContribution():
            return not ctx.views or ctx.takes_part(src)
        case (
            Ack() | FetchResult() | FinishedStep() | ResultMissing() | Probe() | ProbeReply() | WorkerDown()
            | AskLinks() | LinkWish() | DonorReady() | SnapshotMissing() | SnapshotOffer()
        ):  # fmt: skip
            return ctx.takes_part(src)
        case JoinRefused():
            return not ctx.views
        case Decide(view):
            return ctx.takes_part(src) if ctx.views else view.knows(src)
        case Prepare(base, ballot):
            newer = bool(ctx.views) and base.id > ctx.view.id and base.member(src) is not None
            return ballot.proposer == src and (ctx.is_member(src) or (newer and ctx.takes_part(src)))
        case Accept(_, ballot):
            return ballot.proposer == src and ctx.is_member(src)
        case ForceProposal(base):
            return ctx.is_member(src) and base.member(src) is not None
        case ForceAnswer() | Promise() | Vote() | Nack() | Admit() | Leaving():
            return ctx.is_member(src)
        case Ready(peer):
            return peer == src and ctx.takes_part(src)
        case Holding():
            return bool(ctx.views) and ctx.view.learner(src) is not None and ctx.takes_part(src)
        case Pause() | SnapshotPrepare() | SnapshotAt() | ShardRequest() | SnapshotRelease():
            return _may_catch_up(ctx, src)
    return False


def _may_catch_up(ctx: Context, src: str) -> bool:
    """Learners; joiners and members without a worker too, as the view that makes them learners may reach them first."""
    if not ctx.views or not ctx.is_present(src, ctx.linked.get(src)):
        return False
    return ctx.view.learner(src) is not None or src in ctx.wishes.admit or src in ctx.wishes.worker_down
