"""What a node wants done: the outputs of `Node.handle`, carried out in order by a driver or a simulator."""

from __future__ import annotations

from typing import Any

from chaos.core.messages import LastWords, PeerMessage, Sealed
from chaos.core.types import DataState, PeerInfo, Record, View
from chaos.core.worker_messages import Contribution, FromAgent


class Action(Record, frozen=True):
    """Base of all actions."""


class Persist(Action, frozen=True):
    """Sign these words and write them where a survivor finds them. Must be done before the actions behind it."""

    words: LastWords


class Send(Action, frozen=True):
    dst: str
    message: PeerMessage


class Connect(Action, frozen=True):
    """Keep a link to this peer."""

    info: PeerInfo


class Disconnect(Action, frozen=True):
    peer: str
    reason: str


class TrySeal(Action, frozen=True):
    """Look for this peer's words on this host and try their lock, until found or `StopSeal`; `WordsFound` answers."""

    peer: PeerInfo


class StopSeal(Action, frozen=True):
    peer: str


class ToWorker(Action, frozen=True):
    message: FromAgent


class SetViews(Action, frozen=True):
    """The views under which rounds may run, oldest first; rounds that fit none of them are void.

    A round of step s runs under the last view whose `first_step` is not above s. A fetch of s ends where that
    view is another one than when it began.
    """

    views: tuple[View, ...]
    finished: int


class OpenRound(Action, frozen=True):
    """From now on this peer's contribution to `step` may be sent, under view `view_id`."""

    view_id: int
    step: int


class SendContribution(Action, frozen=True):
    """The own contribution is complete: send what has not been sent of it. `empty`: there are no bytes to send."""

    view_id: int
    step: int
    weight: float
    empty: bool


class ContributionKnown(Action, frozen=True):
    """`peer` takes part in this attempt with this weight; `empty`: no bytes come from it."""

    view_id: int
    step: int
    peer: str
    weight: float
    empty: bool


class Finish(Action, frozen=True):
    """Step is final: its result is immutable from now on."""

    step: int


class FetchRound(Action, frozen=True):
    """Result bytes of `step` are asked from a member that finished it: accept them whoever sends them."""

    view_id: int
    step: int


class ServeResult(Action, frozen=True):
    """Send the finished result of `step` to `dst`, marked as of view `view_id`."""

    dst: str
    view_id: int
    step: int


class ReleaseResults(Action, frozen=True):
    """Results up to and including `step` are needed no more."""

    step: int


class MoveResults(Action, frozen=True):
    """Results up to and including `step` are needed by nobody but learners: they go to disk, their memory is free.

    A lower step than before: the own worker is going to read those after it, so they stay where they are.
    """

    step: int


class HashSnapshot(Action, frozen=True):
    """Hash the snapshot the worker took, a hash per shard: `SnapshotHashed` answers."""

    step: int
    shard_bytes: int


class ReceiveSnapshot(Action, frozen=True):
    """Make room for a snapshot that will come in shards, and check each against its hash.

    What of it lies on this host already, by its hashes, is taken from there: `ShardsHeld` answers.
    """

    step: int
    nbytes: int
    shard_bytes: int
    hashes: tuple[bytes, ...]


class ServeShards(Action, frozen=True):
    """Send these shards of the own snapshot to `dst`; replaces what was still to be sent to it.

    Those that were begun for it before are not sent again, unless `afresh`. With `received`, they are of the snapshot
    that this peer itself is pulling, and each is sent once it is here.
    """

    dst: str
    step: int
    shards: tuple[int, ...]
    afresh: bool = False
    received: bool = False


class ReleaseSnapshot(Action, frozen=True):
    """The received (`received`) or the own snapshot's memory may be reused."""

    received: bool


class WriteCheckpoint(Action, frozen=True):
    """Write the own snapshot of this stable step to disk in the background: `SnapshotFreed` answers."""

    step: int
    view: View
    head: bytes
    data: DataState
    manifest: Any


class Trace(Action, frozen=True):
    """One line of the trace: an event or a decision, with its reason."""

    kind: str
    fields: dict[str, Any]


class Tell(Action, frozen=True):
    """One line for the person at this peer's terminal."""

    text: str


class Stop(Action, frozen=True):
    """This agent is done. `sealed_goodbye` tells the driver to send `Goodbye` with its words first."""

    code: int
    reason: str


class SendGoodbye(Action, frozen=True):
    """Sign the present words, send them to these peers as `Goodbye`."""

    peers: tuple[str, ...]
    reason: str
    complete: bool


AnyAction = (
    Persist
    | Send
    | Connect
    | Disconnect
    | TrySeal
    | StopSeal
    | ToWorker
    | SetViews
    | OpenRound
    | SendContribution
    | ContributionKnown
    | Finish
    | FetchRound
    | ServeResult
    | ReleaseResults
    | MoveResults
    | HashSnapshot
    | ReceiveSnapshot
    | ServeShards
    | ReleaseSnapshot
    | WriteCheckpoint
    | Trace
    | Tell
    | Stop
    | SendGoodbye
)

__all__ = ["AnyAction", "Contribution", "Sealed"]
