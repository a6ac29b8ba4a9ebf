"""The training script of the end-to-end tests, and the pieces of it that a replay needs.

Peers run it as `job.py JSON`, with the fields of `Job`. It goes on until the file `stop-epoch` in its folder names
an epoch, ends with that epoch, and leaves its parameters in `final-NAME.npz`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import chaos

FEATURES = 8


@dataclass(frozen=True)
class Job:
    """What is trained, and how."""

    folder: str
    samples: int = 240
    batch: int = 8
    sleep_s: float = 0.005
    """Per step, so that a run has time for events."""
    dozer: str = ""
    """The peer whose script sleeps `doze_s` seconds more in every `doze_every`-th step. Empty: none."""
    doze_every: int = 20
    doze_s: float = 0.0
    dtype: str = "float64"
    optimizer: str = "sgd"
    width: int = 16
    batch_norm: bool = False
    frozen_mb: int = 0
    """Size of a parameter that takes no gradient: a large state with small steps."""
    clip: float = 0.0
    """Norm to which the script clips the reduced gradients itself. 0: it leaves them alone."""
    scaler: bool = False
    accumulate: int = 1
    """Micro-batches of `batch` samples per step."""
    compiled: bool = False
    wire: str = "native"
    on_nonfinite: str = "skip"
    dump_every: int = 0
    """Steps between dumps of the parameters to `step-NAME-STEP.npz`. 0: none."""

    def argument(self) -> str:
        """What the script gets as its only argument."""
        return json.dumps(asdict(self))


def make_model(job: Job) -> nn.Module:
    """The initial model, the same in every process."""
    torch.manual_seed(0)
    dtype = getattr(torch, job.dtype)
    middle: list[nn.Module] = [nn.BatchNorm1d(job.width)] if job.batch_norm else []
    model = nn.Sequential(nn.Linear(FEATURES, job.width), *middle, nn.Tanh(), nn.Linear(job.width, 1)).to(dtype)
    if job.frozen_mb:
        filled = torch.arange(job.frozen_mb * 2**17, dtype=torch.float64)
        model.register_parameter("frozen", nn.Parameter(filled, requires_grad=False))
    return model


def make_data(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of shape (samples, 8) and targets of shape (samples, 1)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(job.samples, FEATURES, generator=generator, dtype=torch.float64)
    y = x[:, :3].sum(dim=1, keepdim=True).sin()
    dtype = getattr(torch, job.dtype)
    return x.to(dtype), y.to(dtype)


def make_optimizer(job: Job, model: nn.Module) -> torch.optim.Optimizer:
    """Over the parameters that take a gradient."""
    params = [p for p in model.parameters() if p.requires_grad]
    if job.optimizer == "adam":
        return torch.optim.Adam(params, lr=1e-3)
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def loss_of(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the batch."""
    return ((model(x) - y) ** 2).mean()


def arrays(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    """The training state as named arrays; `steps` is how many were applied."""
    found = {name: value.detach().numpy().copy() for name, value in model.state_dict().items() if name != "frozen"}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                found[f"optimizer.{index}.{key}"] = value.numpy().copy()
    if (frozen := getattr(model, "frozen", None)) is not None:
        found["frozen_sum"] = frozen.detach().sum().numpy().copy()
    return found | {"steps": np.asarray(steps)}


def save(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **content)
    partial.rename(path)


def last_epoch(folder: Path) -> float:
    """The epoch before which to end."""
    file = folder / "stop-epoch"
    return int(file.read_text()) if file.exists() else float("inf")


def poisoned(folder: Path, name: str) -> bool:
    """Whether this peer's next gradient is to be no number. True once."""
    try:
        (folder / f"poison-{name}").unlink()
    except FileNotFoundError:
        return False
    return True


def main(job: Job) -> None:
    folder = Path(job.folder)
    model = make_model(job)
    forward = torch.compile(model, backend="eager") if job.compiled else model
    optimizer = make_optimizer(job, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if job.scaler else None
    session = chaos.Session(
        model, optimizer, scaler=scaler, wire=job.wire, on_nonfinite=job.on_nonfinite, accumulate=job.accumulate
    )
    dataset = TensorDataset(*make_data(job))
    with session as run:
        for epoch in run.epochs(10**9):
            if epoch >= last_epoch(folder):
                break
            for x, y in run.shard(dataset, batch_size=job.batch):
                loss = loss_of(forward, x, y) / job.accumulate
                if run.role == "member" and poisoned(folder, run.name):
                    loss = loss * torch.nan
                (scaler.scale(loss) if scaler else loss).backward()
                time.sleep(job.sleep_s)
                if run.name == job.dozer and run.role == "member" and run.steps % job.doze_every == 0:
                    time.sleep(job.doze_s)
                if job.clip:
                    run.sync(loss)
                    nn.utils.clip_grad_norm_(model.parameters(), job.clip)
                run.step(loss)
                if job.dump_every and run.steps % job.dump_every == 0:
                    save(folder / f"step-{run.name}-{run.steps}.npz", arrays(model, optimizer, run.steps))
    save(folder / f"final-{run.name}.npz", arrays(model, optimizer, run.steps))


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
