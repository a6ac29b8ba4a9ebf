"""Values that several messages share. All are frozen, typed and bounded, so that decoding is validation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, NewType

import msgspec
from msgspec import Meta

PeerId = NewType("PeerId", str)
"""Sixteen hexadecimal digits: the first eight bytes of SHA-256 over the peer's public key."""

PeerIdField = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=4096)]
Digest = Annotated[bytes, Meta(max_length=32)]
MAX_SEATS = 1024
"""Members and learners of a view together, at most."""
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]

PROTOCOL_VERSION = 7


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all values that cross a process border: immutable, encoded as a compact array."""


class Ballot(Record, frozen=True, order=True):
    """Orders the attempts to decide one view. Ties are broken by the proposer's id."""

    round: Count
    proposer: PeerIdField


class PeerInfo(Record, frozen=True):
    """What the others need to know to reach a peer, to name it and to check its signature."""

    id: PeerIdField
    incarnation: Count
    name: Name
    party: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """SHA-256 of the party's root certificate (DER)."""
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """Raw Ed25519 public key of the peer's leaf certificate."""
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]
    """HOST:PORT, in the order in which they are tried."""


class Abandoned(Record, frozen=True):
    """A lineage that an operator gave up (`chaos force-view`), and the last of its views that the new one follows."""

    lineage: Annotated[str, Meta(max_length=64)]
    view_id: Count


def pair(a: str, b: str) -> tuple[str, str]:
    """How a link is named: its ends, the lower id first."""
    return (a, b) if a < b else (b, a)


class FirstLease(Record, frozen=True):
    """How many samples a new member is to hold in its first step: no commit can have leased it any."""

    step: Count
    peer: PeerIdField
    want: Count


class View(Record, frozen=True, dict=True):
    """The agreed state of the run. View v+1 is decided by the members of view v.

    It is asked who is in it at every event: what follows from its fields is worked out once, and is no part of it.
    """

    lineage: Annotated[str, Meta(max_length=64)]
    """Changes when a run resumes from a checkpoint or a view is forced, so that two halves can't mix."""
    id: Count
    members: Annotated[tuple[PeerInfo, ...], Meta(max_length=MAX_SEATS)]
    """In rank order. Every one of them contributes to every step from `first_step` on."""
    learners: Annotated[tuple[PeerInfo, ...], Meta(max_length=MAX_SEATS)]
    """Peers that receive every result from `first_step` on, and neither vote nor contribute."""
    first_step: Count
    """The first step whose rounds run under this view."""
    abort: bool
    """True: rounds of the older view are void. False: steps before `first_step` finish under the older view."""
    sources: Annotated[tuple[PeerIdField, ...], Meta(max_length=MAX_SEATS)]
    """With `abort`: members that hold the result of `first_step - 1`, for those who lack it."""
    reason: Text
    start: Count = 1
    """The first step of this lineage: 1, or the one after the checkpoint it resumed from."""
    min_peers: Count = 1
    """Nobody opens the round of `start` before there are so many members."""
    abandoned: Annotated[tuple[Abandoned, ...], Meta(max_length=64)] = ()
    """Lineages that this one took the place of, oldest first."""
    cut: Annotated[tuple[tuple[PeerIdField, PeerIdField], ...], Meta(max_length=4096)] = ()
    """Links that are not to be: pairs in ascending order, the lower id first."""
    shares: Annotated[tuple[Count, ...], Meta(max_length=MAX_SEATS)] = ()
    """The sync plan: how large a share of the chunks each member sums, by rank. Empty: all the same."""
    straggler_limit_s: Annotated[float, Meta(ge=0.0, le=86400.0)] = 0.0
    """So many seconds a step waits at most for a worker that is late; then it is left out. 0: as long as it takes."""
    first_leases: Annotated[tuple[FirstLease, ...], Meta(max_length=MAX_SEATS)] = ()
    """Of steps that not all had finished when the view was decided."""

    @cached_property
    def _members(self) -> dict[str, PeerInfo]:
        return {info.id: info for info in self.members}

    @cached_property
    def _learners(self) -> dict[str, PeerInfo]:
        return {info.id: info for info in self.learners}

    @cached_property
    def _member_ids(self) -> tuple[str, ...]:
        return tuple(info.id for info in self.members)

    @cached_property
    def _everybody(self) -> tuple[PeerInfo, ...]:
        return self.members + self.learners

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {info.id: position for position, info in enumerate(self._everybody)}

    def position(self, peer: str) -> int | None:
        """Place among `everybody()`, from 0."""
        return self._positions.get(peer)

    def member(self, peer: str) -> PeerInfo | None:
        return self._members.get(peer)

    def learner(self, peer: str) -> PeerInfo | None:
        return self._learners.get(peer)

    def replaces(self, lineage: str, view_id: int) -> bool:
        """Whether who follows that view is to come over to this lineage: it never went on after the other was given up.

        False for a peer whose lineage was given up only after a later view of it was decided: those are two runs now.
        """
        return any(old.lineage == lineage and view_id <= old.view_id for old in self.abandoned)

    def everybody(self) -> tuple[PeerInfo, ...]:
        return self._everybody

    def root_shares(self) -> tuple[int, ...]:
        """The share of each rank, also where all are the same."""
        return self.shares or (1,) * len(self.members)

    def knows(self, peer: str) -> bool:
        """Whether this peer is a member or learner."""
        return peer in self._members or peer in self._learners

    def strangers(self, peers: Iterable[str]) -> list[str]:
        """Those of `peers` that are neither, in ascending order."""
        return sorted(set(peers) - self._positions.keys())

    def is_cut(self, a: str, b: str) -> bool:
        """Whether there is to be no link between these two."""
        return pair(a, b) in self.cut

    def member_ids(self) -> tuple[str, ...]:
        """In rank order."""
        return self._member_ids


class TensorSpec(Record, frozen=True):
    """Name, dtype (numpy's or torch's short name, e.g. 'float32', 'bfloat16') and shape of one tensor."""

    name: Annotated[str, Meta(max_length=512)]
    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)]


class Fingerprint(Record, frozen=True):
    """What must be equal for two peers to train one model together."""

    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=100_000)]
    """Parameters and buffers in the model's order; tied parameters once."""
    tied: Annotated[tuple[tuple[str, str], ...], Meta(max_length=10_000)]
    optimizer: Text
    """Class and flags, e.g. 'torch.optim.adamw.AdamW(foreach=None, fused=None, ...)'."""
    torch: Annotated[str, Meta(max_length=64)]
    options: Text
    """Session options that change results: accumulate, max_grad_norm, wire dtype, on_nonfinite."""
    extras: Annotated[tuple[TensorSpec, ...], Meta(max_length=100_000)] = ()
    """The session's extras, each with an entry of no shape for itself and one for each of its tensors."""


class Segment(Record, frozen=True):
    """A part of the flat contribution and result buffers with one dtype and one way of being reduced."""

    offset: Count
    """In bytes from the start of the buffer; a multiple of 64."""
    nbytes: Count
    dtype: Annotated[str, Meta(max_length=16)]
    """Dtype in the buffer: float64, float32, bfloat16, float16 or int64."""
    op: Annotated[str, Meta(pattern=r"^(mean|max)\Z")]
    """'mean': weighted mean over contributors (floating point). 'max': maximum (integer buffers)."""


class Layout(Record, frozen=True):
    """How gradients and buffers lie in the flat buffers. Equal on all peers, as it follows from the fingerprint."""

    nbytes: Count
    segments: Annotated[tuple[Segment, ...], Meta(max_length=100_000)]
    """In buffer order. A gradient bucket is one segment; the model's buffers come last."""
    wire_bf16: bool
    """Float32 segments travel as bfloat16."""


class SampleRange(Record, frozen=True):
    """Positions [start, stop) in the permuted order of one pass over the data."""

    epoch: Count
    start: Count
    stop: Count


class Lease(Record, frozen=True):
    """Sample positions that one peer, and nobody else, is to use in this epoch."""

    peer: PeerIdField
    start: Count
    stop: Count


class DataState(Record, frozen=True):
    """Where the run stands in its data. Changes only by commits and views, the same way everywhere."""

    kind: Annotated[str, Meta(pattern=r"^(none|shard|private)\Z")] = "none"
    samples: Count = 0
    """Length of the sharded dataset; 0 until somebody declared it."""
    epoch: Count = 0
    free: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=100_000)] = ()
    """Positions [start, stop) that nobody has leased or used in this epoch, in ascending order."""
    leases: Annotated[tuple[Lease, ...], Meta(max_length=100_000)] = ()
    passes: Annotated[tuple[PeerIdField, ...], Meta(max_length=MAX_SEATS)] = ()
    """Private data: members that have gone once through theirs in this epoch."""


class TensorEntry(Record, frozen=True):
    """Where one tensor of the training state lies in a snapshot."""

    name: Annotated[str, Meta(max_length=512)]
    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Count, ...], Meta(max_length=16)]
    offset: Count
    nbytes: Count


class StateManifest(Record, frozen=True):
    """Describes a snapshot: every tensor's place, and all scalar state (optimizer, scheduler, scaler, seed)."""

    step: Count
    nbytes: Count
    tensors: Annotated[tuple[TensorEntry, ...], Meta(max_length=400_000)]
    scalars: Annotated[bytes, Meta(max_length=8 * 2**20)]
    """msgpack of plain values only; see chaos.train.state."""
