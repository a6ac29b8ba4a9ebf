"""Control messages between agents. They name steps, chunks and shards; tensors travel elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from chaos.core.types import (
    Ballot,
    Count,
    DataState,
    Digest,
    Fingerprint,
    Layout,
    PeerIdField,
    PeerInfo,
    Record,
    Signature,
    StateManifest,
    Text,
    View,
)
from chaos.core.worker_messages import Contribution

MOST_VIEWS = 64
"""Views since a step that a member names: who was away for more has to take a newer snapshot."""
MOST_SEATS = 10_000
"""In all views of a message together: of 180 bytes each, with names of a usual length, they fill less than half."""


class Message(Record, frozen=True, tag=True):
    """Base of all control messages."""


def newest_views(views: Sequence[View]) -> tuple[View, ...]:
    """Of these views, oldest first, the newest: as many as one message holds, large ones included."""
    room, fitting = MOST_SEATS, 0
    for view in reversed(views[-MOST_VIEWS:]):
        room -= len(view.everybody())
        if room < 0:
            break
        fitting += 1
    return tuple(views[len(views) - fitting :])


# --- agreement --------------------------------------------------------------------------------------


class Accepted(Record, frozen=True):
    """A vote that was cast: this value at this ballot."""

    ballot: Ballot
    view: View


class LastWords(Record, frozen=True):
    """A peer's whole agreement state. Written before any vote leaves; final once its process is gone."""

    run: Annotated[str, Meta(max_length=64)]
    peer: PeerIdField
    incarnation: Count
    view: View
    """The installed view; `promised` and `accepted` are about the decision of the next one."""
    promised: Ballot | None
    accepted: Accepted | None


class Sealed(Record, frozen=True):
    """Last words as bytes with the dead peer's own signature, made while it lived."""

    words: Annotated[bytes, Meta(max_length=2 * 2**20)]
    signature: Signature


class Report(Record, frozen=True):
    """Where a member stands when it promises."""

    finished: Count
    opened: Count
    """`finished`, or `finished + 1` once the round of that step may have received its contribution."""
    grounded: bool
    """It holds all that was stable when it became a member: a learner may be promoted a step behind."""


class Prepare(Message, frozen=True):
    """Phase 1. `base` lets a member that missed the last decision install it first."""

    base: View
    ballot: Ballot
    freeze: bool
    """True (a failure is at hand): the promise also forbids to finish a step until the decision."""
    gone: Annotated[tuple[Sealed, ...], Meta(max_length=64)]


class Promise(Message, frozen=True):
    decree: Count
    ballot: Ballot
    report: Report
    accepted: Accepted | None


class Nack(Message, frozen=True):
    """`promised` is higher than the ballot it answers."""

    decree: Count
    promised: Ballot


class Accept(Message, frozen=True):
    """Phase 2."""

    decree: Count
    ballot: Ballot
    view: View


class Vote(Message, frozen=True):
    """`Accept` was accepted."""

    decree: Count
    ballot: Ballot


class Decide(Message, frozen=True):
    """A decided view. Also the answer to anybody who is behind."""

    view: View


class Seal(Message, frozen=True):
    """Proof that a peer's process is gone."""

    sealed: Sealed


class Goodbye(Message, frozen=True):
    """The last message of a peer that stops; its words come with it."""

    sealed: Sealed
    reason: Text
    complete: bool = False
    """All members' scripts have ended and their last step is stable: no further step will come from anybody."""


class ForceProposal(Message, frozen=True):
    """An operator asked the sender, which is paused, to go on without a quorum, under a new lineage."""

    base: View
    lineage: Annotated[str, Meta(max_length=64)]


class ForceAnswer(Message, frozen=True):
    """`report`: the sender agrees, and finishes nothing more under the old lineage. None: it refuses."""

    lineage: Annotated[str, Meta(max_length=64)]
    report: Report | None
    reason: Text


# --- membership -------------------------------------------------------------------------------------


class Heartbeat(Message, frozen=True):
    lineage: Annotated[str, Meta(max_length=64)]
    view_id: Count
    finished: Count
    running: bool
    """The round of `finished + 1` is open."""
    listed: Annotated[bytes, Meta(min_length=8, max_length=8)]
    """Names the sender's list of links: XXH3-64 of it, see `core.links_said`."""
    links: Annotated[tuple[PeerIdField, ...], Meta(max_length=1024)] | None
    """Peers this one has a direct link with, in ascending order: the overlay, as others route through it. None: those
    that were said before under this name; who does not know them says `AskLinks`."""


class AskLinks(Message, frozen=True):
    """The sender lacks the list of links that the receiver's heartbeats name: the next one is to have it in full."""


class Probe(Message, frozen=True):
    """Do you hear `target`? Asked before a silent or unlinked peer is suspected."""

    target: PeerIdField


class ProbeReply(Message, frozen=True):
    target: PeerIdField
    alive: bool


class JoinRequest(Message, frozen=True):
    """A joiner asks any member to be admitted as learner."""

    info: PeerInfo
    fingerprint: Fingerprint
    layout: Layout
    run: Annotated[str, Meta(max_length=64)]
    """The run that it wants to join; empty if whom it is linked with knew of none yet when the link was made."""


class JoinRefused(Message, frozen=True):
    reason: Text
    retry: bool
    """True: the cause may pass by itself (an older incarnation is not yet known to be dead)."""
    wait_s: Annotated[float, Meta(ge=0.0, le=300.0)] = 0.0
    """Seconds after which asking again makes sense: the joiner was lost too often lately."""
    run: Annotated[str, Meta(max_length=64)] = ""
    """The run, for who asked without naming one."""


class Admit(Message, frozen=True):
    """A member that checked a joiner tells the others, so that whoever proposes next admits it."""

    info: PeerInfo


class Ready(Message, frozen=True):
    """A learner holds the run's exact state (digests compared) and keeps up: promote it."""

    peer: PeerIdField
    want: Count
    """So many samples it would like to hold in its first step."""


class Leaving(Message, frozen=True):
    """A member wants out. `done`: its script came to its end after `step`."""

    step: Count
    done: bool


class LinkWish(Message, frozen=True):
    """The sender's operator wants its link to `peer` cut, or made again."""

    peer: PeerIdField
    connect: bool


class WorkerDown(Message, frozen=True):
    """The sender's worker died: retry the open round without it, go on without it as a member."""

    reason: Text


# --- steps ------------------------------------------------------------------------------------------


class StepContribution(Message, frozen=True):
    """A member's part in an attempt, apart from the gradient bytes. `head` is the lineage it builds on."""

    view_id: Count
    step: Count
    head: Digest
    contribution: Contribution


class Ack(Message, frozen=True):
    """The sender holds the result of `step`; `head` is its lineage there."""

    step: Count
    head: Digest


class FetchResult(Message, frozen=True):
    """Asks a member that finished `step` for its result; the answer is result frames plus `FinishedStep`."""

    step: Count
    view_id: Count
    """The asker's view: the frames are to be marked as of it."""


class FinishedStep(Message, frozen=True):
    """Everything about a finished step but its bytes: answer to `FetchResult`."""

    view_id: Count
    step: Count
    contributions: Annotated[tuple[tuple[PeerIdField, Contribution], ...], Meta(max_length=1024)]
    digest: Digest
    nonfinite: Annotated[tuple[PeerIdField, ...], Meta(max_length=1024)]


class ResultMissing(Message, frozen=True):
    """Answer to `FetchResult`: that result is not kept (any more)."""

    step: Count


# --- replication ------------------------------------------------------------------------------------


class Pause(Message, frozen=True):
    """A learner that can't catch up with a running run asks the members to open no further round for so long."""

    seconds: Annotated[float, Meta(ge=0.0, le=3600.0)]


class SnapshotPrepare(Message, frozen=True):
    """A learner asks a member to be its donor: allocate snapshot memory.

    `step` and `head`: where its worker stood, if it was cut off and its worker still holds that state; else empty.
    """

    step: Count = 0
    head: Digest = b""


class DonorReady(Message, frozen=True):
    """Snapshot memory is there. `finished` and `running` let the learner choose a step for all donors."""

    finished: Count
    running: bool
    replayable: bool = True
    """Whether results alone say what the updates were; not so where scripts change gradients by hand."""
    serves: Count = 0
    """The step of a snapshot that it serves to others, whose results since are kept: it may be had at once. 0: none."""
    state_bytes: Count = 0
    """Of a snapshot, about. 0: not known."""
    since: Annotated[tuple[View, ...], Meta(max_length=MOST_VIEWS)] = ()
    """The learner stood on the run's lineage, and all results since are kept: the views since, oldest first."""


class SnapshotAt(Message, frozen=True):
    """Take (or, if it is the present one, offer) the snapshot of `step`."""

    step: Count
    compares: bool = False
    """It is to compare with only: results before it are needed still."""


class SnapshotMissing(Message, frozen=True):
    """No snapshot of `step` will come from this member. Its worker stands at `applied`."""

    step: Count
    applied: Count
    reason: Text


class SnapshotOffer(Message, frozen=True):
    """A snapshot of a stable step, ready to be served: one atomic manifest of everything that is state."""

    step: Count
    head: Digest
    data: DataState
    manifest: StateManifest
    shard_bytes: Annotated[int, Meta(ge=1, le=2**30)]
    hashes: Annotated[tuple[Digest, ...], Meta(max_length=100_000)]
    views: Annotated[tuple[View, ...], Meta(max_length=MOST_VIEWS)] = ()
    """Views that govern the steps since, oldest first, for a learner that came in after some of these."""


class ShardRequest(Message, frozen=True):
    """Send these shards of the snapshot of `step`, in this order. Replaces any earlier request.

    What the donor has begun to send comes anyway, and is not sent a second time.
    """

    step: Count
    shards: Annotated[tuple[Count, ...], Meta(max_length=100_000)]
    afresh: bool = False
    """What was sent before may be lost: send all of these."""


class Holding(Message, frozen=True):
    """A learner tells the other learners which snapshot it pulls, and what it has of it: they may serve each other."""

    step: Count
    head: Digest
    shards: Annotated[bytes, Meta(max_length=12_500)]
    """Bitmap of those it has verified: bit i of byte i // 8 is shard i."""
    answer: bool
    """The other has said the same of itself before, and knows now of both."""


class SnapshotRelease(Message, frozen=True):
    """The learner needs the snapshot of `step` no more; None: none that the member may hold for it."""

    step: Count | None


PeerMessage = (
    Prepare
    | Promise
    | Nack
    | Accept
    | Vote
    | Decide
    | ForceProposal
    | ForceAnswer
    | Seal
    | Goodbye
    | Heartbeat
    | AskLinks
    | Probe
    | ProbeReply
    | JoinRequest
    | JoinRefused
    | Admit
    | Ready
    | Leaving
    | LinkWish
    | WorkerDown
    | StepContribution
    | Ack
    | FetchResult
    | FinishedStep
    | ResultMissing
    | Pause
    | SnapshotPrepare
    | DonorReady
    | SnapshotAt
    | SnapshotMissing
    | SnapshotOffer
    | ShardRequest
    | Holding
    | SnapshotRelease
)
