"""What a worker and its own agent say to each other over their Unix socket.

The worker speaks at step boundaries only: inside `Session.step` it sends `Boundary` and then obeys the
agent's commands in order until `Proceed`. In between (forward, backward) it may send `BucketReady`, and
its background threads may send `SnapshotPrepared` and `SnapshotTaken`. Gradients, results and snapshots
lie in memory that both have mapped (anonymous, passed as file descriptors); messages only name them.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from chaos.core.types import (
    Count,
    DataState,
    Fingerprint,
    Layout,
    Name,
    PeerIdField,
    Record,
    SampleRange,
    StateManifest,
    Text,
)


class ToAgent(Record, frozen=True, tag=True):
    """Base of all messages from worker to agent."""


class ToWorker(Record, frozen=True, tag=True):
    """Base of all messages from agent to worker."""


# --- worker to agent --------------------------------------------------------------------------------


class Register(ToAgent, frozen=True):
    """First message: what this worker trains. The agent answers `Welcome` or `Declined`."""

    pid: Count
    fingerprint: Fingerprint
    layout: Layout
    listens: bool = False
    """The script wants to be told of events: `Told` comes before `Proceed`."""


class DeclareData(ToAgent, frozen=True):
    """The script called `run.shard` or `run.private`. `want` is how many samples a lease should hold."""

    kind: Annotated[str, Meta(pattern=r"^(shard|private)\Z")]
    samples: Count
    want: Count


class Contribution(Record, frozen=True):
    """One worker's part in one step, apart from the gradient bytes, which lie in the contribution buffer."""

    weight: Annotated[float, Meta(ge=0.0)]
    """Number of samples by default; 0 with `empty`."""
    empty: bool
    """No gradient: the contribution buffer is not read for this step."""
    loss: float | None
    """Mean loss over the contribution's samples."""
    ranges: Annotated[tuple[SampleRange, ...], Meta(max_length=4096)]
    """Samples consumed; given back to the pool if this contribution is not in the commit."""
    touched: Annotated[bytes, Meta(max_length=65536)]
    """Bitmap over trainable parameters in layout order: bit i of byte i // 8 says parameter i got a gradient."""
    scalars: Annotated[bytes, Meta(max_length=65536)]
    """msgpack: the optimizer's param-group scalars this worker would apply; the lowest rank's win."""
    want: Count
    """Samples this worker would like to hold a lease on after this step (its stock, not an increment)."""
    pass_done: bool
    """Private data: this worker has gone through its dataset at least once in this epoch."""
    declares: tuple[Annotated[str, Meta(pattern=r"^(shard|private)\Z")], Count] | None = None
    """Kind and length of the dataset, filled in by the agent from `DeclareData`; the first commit with one counts."""
    compute_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    """Seconds that the worker computed for this step, filled in by the agent; for a late one: so far. 0: unknown."""
    late: bool = False
    """The worker was left out, as it was late. Its samples go back to the pool."""


class BucketReady(ToAgent, frozen=True):
    """Segment `segment` of the contribution buffer for `step` is complete and may be sent (overlap)."""

    step: Count
    segment: Count
    weight: float


class Boundary(ToAgent, frozen=True):
    """The worker stands between two steps: it has applied `applied`, and contributes to `applied + 1` or not.

    `contribution` is None while the worker is a learner (its forward and backward were a warm-up).
    """

    applied: Count
    contribution: Contribution | None
    compute_s: float
    """Seconds since the last `Proceed`, i.e. what the user's code took."""
    by_hand: bool = False
    """The script took the reduced gradients by `run.sync()` and may change them: nobody else can replay its updates."""
    update_s: Annotated[float, Meta(ge=0.0, le=1e9)] = 0.0
    """Seconds that the update before took: reading the result, clipping, the optimizer."""


class Applied(ToAgent, frozen=True):
    """A worker that catches up, which may wait at its boundary for long, has read and applied the result of `step`."""

    step: Count


class StateLoaded(ToAgent, frozen=True):
    """The worker's model and optimizer now hold the snapshot of `step`."""

    step: Count


class StateRefused(ToAgent, frozen=True):
    """The snapshot does not fit this worker's model or optimizer; `reason` names the tensor."""

    reason: Text


class SnapshotPrepared(ToAgent, frozen=True):
    """Snapshot memory of `nbytes` exists and is pre-faulted; the file descriptor comes with the message."""

    nbytes: Count


class SnapshotDeclined(ToAgent, frozen=True):
    """There is no memory for a snapshot on this host; the training goes on without."""

    reason: Text


class SnapshotTaken(ToAgent, frozen=True):
    """The state of `manifest.step` lies in snapshot memory. `stall_s`: how long the step had to wait for it."""

    manifest: StateManifest
    stall_s: float


class SnapshotMissed(ToAgent, frozen=True):
    """The worker had already gone past `step`."""

    step: Count
    applied: Count


class Finished(ToAgent, frozen=True):
    """The script left the `with chaos.Session(...)` block in the normal way after `applied`."""

    applied: Count
    state: Annotated[bytes, Meta(max_length=32)] = b""
    """Digest of the worker's whole training state, equal on two peers exactly if every byte is."""


class Failed(ToAgent, frozen=True):
    """The script raised; `traceback` is its text. The process ends after this message."""

    traceback: Annotated[str, Meta(max_length=65536)]


# --- agent to worker --------------------------------------------------------------------------------


class Welcome(ToWorker, frozen=True):
    """Answer to `Register`. Descriptors come with it: the contribution buffer, the result ring, its rest on disk.

    Contribution buffer: `layout.nbytes`, writable. Result ring: `slots` times `slot_stride` bytes, of
    which a slot's first `layout.nbytes` are a result; the worker maps it read-only. The slots from number `slots`
    on lie in the third, `disk_slots` of them; where there are none it does not come.
    """

    peer: PeerIdField
    name: Name
    run: Annotated[str, Meta(max_length=64)]
    seed: Count
    slots: Count
    slot_stride: Count
    founder: bool
    """This worker's own initial state is the run's state at step `step` (0 unless resumed)."""
    step: Count
    data: DataState
    disk_slots: Count = 0


class Declined(ToWorker, frozen=True):
    """The peer cannot take part; the worker raises `Refused(reason)`."""

    reason: Text


class LoadState(ToWorker, frozen=True):
    """Overwrite model, optimizer, scheduler and scaler with this snapshot; its descriptor comes along.

    Answer: `StateLoaded` or `StateRefused`. `applied` becomes `manifest.step`.
    """

    manifest: StateManifest


class Commit(ToWorker, frozen=True):
    """Step `step` is final. Apply it: result bytes lie in ring slot `slot`, which the agent fills in."""

    step: Count
    weight: float
    """Total weight. Zero means `skip` is set."""
    loss: float | None
    """Weighted mean loss over the contributors that gave one."""
    touched: bytes
    """Union of the contributors' bitmaps: an untouched parameter's gradient stays None."""
    scalars: bytes
    """Param-group scalars to apply before the optimizer's step; empty: keep one's own."""
    skip: Annotated[str, Meta(max_length=4096)]
    """Empty, or why no update is made (non-finite gradient from peer X; no samples). The step still counts."""
    stop: bool
    """With `skip`: the run's options say that a non-finite gradient ends it."""
    slot: Count = 0


class PrepareSnapshot(ToWorker, frozen=True):
    """Allocate and pre-fault snapshot memory in the background, then send `SnapshotPrepared`."""


class TakeSnapshot(ToWorker, frozen=True):
    """When `step` is applied and before the next update, copy the state in the background: `SnapshotTaken`."""

    step: Count


class Proceed(ToWorker, frozen=True):
    """End of the boundary: the user's code goes on and computes its contribution for `step`."""

    step: Count
    role: Annotated[str, Meta(pattern=r"^(learner|member|solo)\Z")]
    members: Count
    data: DataState
    """After commit `step - 1`; a worker finds its leases in it."""
    stable: Count
    """The last stable step."""
    leaving: bool
    """The peer is asked to leave (SIGTERM, `chaos leave`): iterators end, the script runs to its end."""


class Told(ToWorker, frozen=True):
    """What happened since the last boundary, at any peer: lines of traces, as JSON."""

    lines: Annotated[tuple[Annotated[bytes, Meta(max_length=4096)], ...], Meta(max_length=64)]


FromWorker = (
    Register
    | DeclareData
    | BucketReady
    | Boundary
    | Applied
    | StateLoaded
    | StateRefused
    | SnapshotPrepared
    | SnapshotDeclined
    | SnapshotTaken
    | SnapshotMissed
    | Finished
    | Failed
)
FromAgent = Welcome | Declined | LoadState | Commit | PrepareSnapshot | TakeSnapshot | Told | Proceed
