"""What can happen to a node: the inputs of `Node.handle`."""

from __future__ import annotations

from collections.abc import Mapping

from chaos.core.messages import PeerMessage, Sealed
from chaos.core.types import PeerInfo, Record
from chaos.core.worker_messages import FromWorker


class Event(Record, frozen=True):
    """Base of all events."""


class Tick(Event, frozen=True):
    """Time has passed. At least every `NodeConfig.tick_s`."""


class LinkUp(Event, frozen=True):
    """A link to this peer stands; `info` is what its certificate and hello said."""

    info: PeerInfo
    run: str
    """The run it takes part in; a joiner learns it so."""


class LinkDown(Event, frozen=True):
    peer: str
    reason: str


class DialRefused(Event, frozen=True):
    """First contact failed for good (not admitted, another run, another version)."""

    address: str
    reason: str


class Received(Event, frozen=True):
    src: str
    message: PeerMessage


class WorkerSaid(Event, frozen=True):
    message: FromWorker


class WorkerDied(Event, frozen=True):
    """The worker's socket closed before it said `Finished`."""

    reason: str


class ResultMemory(Event, frozen=True):
    """There is memory for so many results. Comes before the `Register` of the first worker.

    `on_disk`: so many more may lie on disk. Comes again where that changes, as the disk is full or broken.
    """

    slots: int
    on_disk: int = 0


class ResultComes(Event, frozen=True):
    """Something of the result of `step`, the next one to be finished, has arrived; said once a second at most."""

    step: int


class ResultDropped(Event, frozen=True):
    """This learner has no room for the result of `step`, in memory or on disk: what came of it was not kept."""

    step: int
    reason: str


class ResultUnsent(Event, frozen=True):
    """`dst` asked for the result of `step`, which was let go before all of it was sent."""

    dst: str
    step: int


class WordsFound(Event, frozen=True):
    """Somebody on this host holds the lock on a dead peer's words."""

    sealed: Sealed


class RoundComplete(Event, frozen=True):
    """All result bytes of `step` under view `view_id` are here."""

    view_id: int
    step: int
    digest: bytes
    nonfinite: tuple[str, ...]
    """Members whose gradient was not finite; empty if the result is finite."""


class ShardStored(Event, frozen=True):
    """A shard of the snapshot of `step` arrived; `ok` says that its hash is the manifest's."""

    step: int
    shard: int
    donor: str
    ok: bool


class ShardsHeld(Event, frozen=True):
    """Answer to `ReceiveSnapshot`: these shards of the snapshot of `step` were found on this host, and verified."""

    step: int
    shards: tuple[int, ...]


class SnapshotHashed(Event, frozen=True):
    """The snapshot that the own worker took lies in memory with these hashes, one per shard."""

    step: int
    shard_bytes: int
    hashes: tuple[bytes, ...]


class SnapshotFreed(Event, frozen=True):
    """Nobody reads the snapshot memory any more (a checkpoint was written)."""

    step: int


class LinksMeasured(Event, frozen=True):
    """Peer to (bytes per second, round-trip seconds), measured passively; a rate of 0 is not known yet."""

    links: Mapping[str, tuple[float, float]]


class LeaveRequested(Event, frozen=True):
    """SIGTERM, or `chaos leave`."""

    reason: str


class ForceRequested(Event, frozen=True):
    """`chaos force-view`: an operator who was shown view `view_id` confirms. `lineage`: a new id, drawn at random."""

    lineage: str
    view_id: int


class LinkWanted(Event, frozen=True):
    """`chaos link connect` or `disconnect`: the operator's word on the link to a peer."""

    peer: str
    connect: bool


class PathChanged(Event, frozen=True):
    """What is sent to this peer takes another way from now on; what was under way may be lost."""

    peer: str


AnyEvent = (
    Tick
    | LinkUp
    | LinkDown
    | DialRefused
    | Received
    | WorkerSaid
    | WorkerDied
    | ResultMemory
    | ResultComes
    | ResultDropped
    | ResultUnsent
    | WordsFound
    | RoundComplete
    | ShardStored
    | ShardsHeld
    | SnapshotHashed
    | SnapshotFreed
    | LinksMeasured
    | LeaveRequested
    | ForceRequested
    | LinkWanted
    | PathChanged
)
