"""What a learner believes of a snapshot that a donor offers, before it makes memory for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from chaos.core.messages import SnapshotOffer

if TYPE_CHECKING:
    from chaos.core.worker_desk import Worker

STATE_FACTOR, STATE_SLACK = 64, 64 * 2**20
"""An offered state is at most so many times as large as this worker's tensors, plus so many bytes. Adam's is 3 to 7
times. Frozen tensors count too: what is trained may be a thousandth of the model."""
WIDEST = 8
"""Bytes of the widest dtype."""


def own_bytes(worker: Worker) -> int:
    """Bytes of this worker's model and extras, at most."""
    tensors = (*worker.fingerprint.tensors, *worker.fingerprint.extras)
    return WIDEST * sum(math.prod(tensor.shape) for tensor in tensors) + worker.layout.nbytes


def flaw(offer: SnapshotOffer, worker: Worker | None) -> str:
    """Why an offer can't be that of an honest donor, so that no memory is made for it; '' if it can.

    `worker` is this peer's own, whose model the state belongs to; None if there was none yet.
    """
    model_bytes = own_bytes(worker) if worker is not None else 0
    nbytes = offer.manifest.nbytes
    if offer.manifest.step != offer.step:
        return f"a snapshot of step {offer.step} whose manifest is of step {offer.manifest.step}"
    if nbytes > len(offer.hashes) * offer.shard_bytes:
        return f"a snapshot of {nbytes} bytes with {len(offer.hashes)} hashes of {offer.shard_bytes} bytes each"
    if nbytes > STATE_FACTOR * model_bytes + STATE_SLACK:
        return f"a snapshot of {nbytes} bytes for a model of {model_bytes} bytes"
    return ""
