"""The options of a session, validated once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chaos.core.errors import ChaosError

OnEvent = Callable[[dict[str, Any]], None]
"""A script's function that is called with each event of the run."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `Session` takes besides model, optimizer, scheduler and scaler. Raises `ChaosError` if out of range."""

    max_grad_norm: float | None = None
    """Clip the reduced gradient to this 2-norm, as `torch.nn.utils.clip_grad_norm_` does. None: no clipping."""
    accumulate: int = 1
    """Micro-batches per step."""
    seed: int = 0
    """Orders the samples and seeds torch before every step. All peers must give the same."""
    wire: str = "native"
    """'native': gradients travel in their own dtype. 'bf16': float32 gradients travel as bfloat16."""
    overlap: bool = True
    """Send gradient buckets while backward still computes others, where that is safe."""
    on_nonfinite: str = "skip"
    """What a non-finite gradient does to the run: 'skip' the update everywhere, or 'stop' every peer."""

    def __post_init__(self) -> None:
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise ChaosError(f"max_grad_norm must be a positive number or None, not {self.max_grad_norm!r}")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ChaosError(f"accumulate must be a whole number from 1, not {self.accumulate!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**62:
            raise ChaosError(f"seed must be a whole number from 0 to 2**62 - 1, not {self.seed!r}")
        if self.wire not in ("native", "bf16"):
            raise ChaosError(f"wire must be 'native' or 'bf16', not {self.wire!r}")
        if self.on_nonfinite not in ("skip", "stop"):
            raise ChaosError(f"on_nonfinite must be 'skip' or 'stop', not {self.on_nonfinite!r}")

    def text(self) -> str:
        """The options that change results, as peers compare them."""
        return (
            f"accumulate={self.accumulate} max_grad_norm={self.max_grad_norm} seed={self.seed} "
            f"wire={self.wire} on_nonfinite={self.on_nonfinite}"
        )
