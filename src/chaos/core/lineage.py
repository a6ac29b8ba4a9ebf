"""What a commit is: a pure function of the contributions, and the hash chain that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from blake3 import blake3

from chaos.core.data import advance, with_first_leases
from chaos.core.types import DataState, Record, View
from chaos.core.worker_messages import Contribution

HEAD_BYTES = 16
_encoder = msgspec.msgpack.Encoder()


class CommittedStep(Record, frozen=True):
    """A finished step, as every member of its view computes it from the same contributions."""

    step: int
    view_id: int
    before: bytes
    """Lineage before this step."""
    head: bytes
    """Lineage after this step."""
    digest: bytes
    data: DataState
    contributions: tuple[tuple[str, Contribution], ...]
    """In rank order."""
    weight: float
    loss: float | None
    touched: bytes
    scalars: bytes
    skip: str
    nonfinite: tuple[str, ...]


class OwnState(Record, frozen=True):
    """The state that a worker holds: the run's after `step`, if that has this lineage there."""

    step: int
    head: bytes
    data: DataState


def first_head(run: str, lineage: str) -> bytes:
    """The lineage before the first step."""
    return blake3(f"{run}/{lineage}".encode()).digest(HEAD_BYTES)


def commit(
    head: bytes,
    data: DataState,
    view: View,
    step: int,
    contributions: Mapping[str, Contribution],
    digest: bytes,
    nonfinite: tuple[str, ...],
) -> CommittedStep:
    """Apply one step to the lineage and to the state of the data.

    Args:
        head, data: after step - 1.
        contributions: of every member of `view`, keys in rank order.
        digest: of the result's bytes.
        nonfinite: members whose gradient was not finite.
    """
    real = [c for c in contributions.values() if not c.empty]
    weight = float(sum(c.weight for c in real))
    losses = [(c.loss, c.weight) for c in real if c.loss is not None]
    loss_weight = sum(w for _, w in losses)
    return CommittedStep(
        step=step,
        view_id=view.id,
        before=head,
        head=_next_head(head, view, step, contributions, digest),
        digest=digest,
        data=advance(with_first_leases(data, view, step), contributions),
        contributions=tuple(contributions.items()),
        weight=weight,
        loss=sum(value * w for value, w in losses) / loss_weight if loss_weight else None,
        touched=_union(c.touched for c in real),
        scalars=next((c.scalars for c in real if c.scalars), b""),
        skip=_skip_reason(view, weight, nonfinite),
        nonfinite=nonfinite,
    )


def _skip_reason(view: View, weight: float, nonfinite: tuple[str, ...]) -> str:
    if nonfinite:
        names = [info.name if (info := view.member(peer)) else peer for peer in nonfinite]
        return f"non-finite gradient from {', '.join(names)}"
    return "" if weight > 0 else "no member had samples"


def _union(bitmaps: Iterable[bytes]) -> bytes:
    result = b""
    for bitmap in bitmaps:
        width = max(len(result), len(bitmap))
        merged = int.from_bytes(result.ljust(width, b"\0"), "big") | int.from_bytes(bitmap.ljust(width, b"\0"), "big")
        result = merged.to_bytes(width, "big")
    return result


def _next_head(head: bytes, view: View, step: int, contributions: Mapping[str, Contribution], digest: bytes) -> bytes:
    """h(s) = H(h(s-1), view, step, contributors with weights and sample ranges, result digest)."""
    parts = [(peer, c.weight, c.empty, c.ranges) for peer, c in contributions.items()]
    body = _encoder.encode((head, view.lineage, view.id, step, parts, digest))
    return blake3(body).digest(HEAD_BYTES)
