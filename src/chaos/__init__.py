"""Train one PyTorch model together, on machines of different parties that come and go, with nobody in charge.

`chaos.Session` is what a training script uses. Importing `chaos` does not import torch, so that the
command line and the agent start quickly; torch comes with the first use of `Session`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from chaos.core.errors import ChaosError, Refused, RemoteProtocolError, RunLost

if TYPE_CHECKING:
    from chaos.train.loggers import log_to_tensorboard, log_to_wandb
    from chaos.train.session import Session

__all__ = [
    "ChaosError",
    "Refused",
    "RemoteProtocolError",
    "RunLost",
    "Session",
    "log_to_tensorboard",
    "log_to_wandb",
]
_LATER = {
    "Session": "chaos.train.session",
    "log_to_tensorboard": "chaos.train.loggers",
    "log_to_wandb": "chaos.train.loggers",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'chaos' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
