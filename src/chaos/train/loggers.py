"""Adapters for `Session(..., on_event=...)`: a run's figures in TensorBoard or Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from chaos.core.errors import ChaosError
from chaos.train.options import OnEvent

Event = dict[str, Any]


def log_to_tensorboard(where: Any) -> OnEvent:
    """Scalars per step, and views as text.

    Args:
        where: a directory, or a `SummaryWriter` of your own.

    Raises:
        ChaosError: it is a directory, and TensorBoard is not installed.
    """
    writer = where if hasattr(where, "add_scalar") else _writer(where)

    def log(event: Event) -> None:
        step = int(event.get("at_step") or 0)
        for name, value in scalars(event):
            writer.add_scalar(f"chaos/{name}", value, step)
        if event["kind"] == "view":
            writer.add_text("chaos/views", str(event.get("reason", "")), step)

    return log


def log_to_wandb(run: Any = None) -> OnEvent:
    """The same figures in the run that `wandb.init` began, or in the one that is given.

    Raises:
        ChaosError: Weights & Biases is not installed, or no run has begun.
    """
    if run is None:
        run = _import("wandb", "pip install wandb").run
    if run is None:
        raise ChaosError("no run of Weights & Biases has begun: call wandb.init() first")

    def log(event: Event) -> None:
        # Their steps must not go back, and events of other peers may be a step behind: ours is a value of its own.
        found = {f"chaos/{name}": value for name, value in scalars(event)}
        if found:
            run.log({**found, "chaos/step": int(event.get("at_step") or 0)})

    return log


def scalars(event: Event) -> Iterator[tuple[str, float]]:
    """Names and values that are worth a curve."""
    match event["kind"]:
        case "commit":
            if event["loss"] is not None:
                yield "loss", float(event["loss"])
            yield "samples", float(event["weight"])
            yield "contributors", float(len(event["contributors"]))
            yield "left_out", float(len(event["late"]))
        case "view":
            yield "members", float(len(event["members"]))
        case "handled":
            yield f"handling_ms/{event['peer']}", float(event["handling_ms"])
        case "sample":
            for part in ("compute_s", "waiting_s", "sync_s", "update_s", "samples_per_s"):
                if event["worker"].get(part) is not None:
                    yield f"{part}/{event['peer']}", float(event["worker"][part])


def _writer(directory: Any) -> Any:
    make: Callable[[str], Any] = _import("torch.utils.tensorboard", "pip install tensorboard").SummaryWriter
    return make(str(directory))


def _import(module: str, remedy: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ChaosError(f"{module} is not installed: {remedy}") from error
