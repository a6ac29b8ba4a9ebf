"""`Session(..., on_event=...)`: what a script is told of the run, and the adapters that log it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional as F

import chaos
from chaos.core.errors import ChaosError
from chaos.core.types import DataState
from chaos.core.worker_messages import FromAgent, FromWorker, Proceed, Told, Welcome
from chaos.train.boundary import BoundaryLoop
from tests.train.reference import Points, make_mlp

Event = dict[str, Any]
COMMIT = {"kind": "commit", "at_step": 7, "loss": 2.5, "weight": 8.0, "contributors": ["x"], "late": []}
PROCEED = Proceed(1, "learner", 1, DataState(), 0, False)
WELCOME = Welcome("0" * 16, "me", "run", 0, 4, 64, False, 0, DataState())


class Link:
    """An agent that says this, one message after the other."""

    def __init__(self, *messages: FromAgent) -> None:
        self._messages = list(messages)

    def send(self, message: FromWorker) -> None:
        raise AssertionError(f"nothing was to be sent, but {message} was")

    def receive(self) -> tuple[FromAgent, list[int]]:
        return self._messages.pop(0), []


def loop(link: Link, on_event: Any) -> BoundaryLoop:
    means: Any = SimpleNamespace(gradients=SimpleNamespace(reset=lambda: None))
    return BoundaryLoop(link, means, WELCOME, 0, on_event)


def test_a_script_is_told_at_its_boundaries_in_order() -> None:
    lines = tuple(msgspec.json.encode({"kind": kind}) for kind in ("view", "handled"))
    seen: list[Event] = []
    loop(Link(Told(lines), PROCEED), seen.append).start()
    assert [event["kind"] for event in seen] == ["view", "handled"]
    loop(Link(Told(lines), PROCEED), None).start()


def test_what_the_script_s_function_raises_ends_the_script() -> None:
    def broken(_: Event) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop(Link(Told((b'{"kind": "view"}',)), PROCEED), broken).start()


def test_alone_a_script_is_told_of_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHAOS_AGENT", "CHAOS_JOIN", "CHAOS_LISTEN"):
        monkeypatch.delenv(name, raising=False)
    model, seen = make_mlp(), []
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), on_event=seen.append) as run:
        for _ in run.epochs(1):
            for x, y in run.shard(Points(8), 4):
                loss = F.mse_loss(model(x), y)
                loss.backward()
                run.step(loss)
    assert [(event["kind"], event["step"], event["weight"]) for event in seen] == [
        ("commit", 1, 4.0),
        ("commit", 2, 4.0),
    ]
    assert seen[-1]["loss"] == run.last.loss


class Writer:
    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}
        self.texts: list[str] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name] = value, step

    def add_text(self, _name: str, text: str, _step: int) -> None:
        self.texts.append(text)


def test_tensorboard_gets_curves_and_views() -> None:
    writer = Writer()
    log = chaos.log_to_tensorboard(writer)
    log(COMMIT)
    log({"kind": "view", "at_step": 8, "members": ["a", "b"], "reason": "scale-out: b becomes a member"})
    log({"kind": "handled", "at_step": 8, "peer": "a", "handling_ms": 3.5})
    log({"kind": "sample", "at_step": 8, "peer": "a", "worker": {"compute_s": 0.5, "waiting_s": None}})
    log({"kind": "suspect", "at_step": 8, "peer": "a", "about": "b"})
    assert writer.scalars == {
        "chaos/loss": (2.5, 7), "chaos/samples": (8.0, 7), "chaos/contributors": (1.0, 7), "chaos/left_out": (0.0, 7),
        "chaos/members": (2.0, 8), "chaos/handling_ms/a": (3.5, 8), "chaos/compute_s/a": (0.5, 8),
    }  # fmt: skip
    assert writer.texts == ["scale-out: b becomes a member"]


def test_wandb_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Event] = []
    run = SimpleNamespace(log=logged.append)
    for log in (chaos.log_to_wandb(run), _with_module(monkeypatch, run)):
        log(COMMIT)
        log({"kind": "suspect", "at_step": 8})
        assert logged.pop()["chaos/loss"] == 2.5
        assert not logged
    with pytest.raises(ChaosError, match=r"wandb\.init"):
        _with_module(monkeypatch, None)


def _with_module(monkeypatch: pytest.MonkeyPatch, run: Any) -> Any:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    return chaos.log_to_wandb()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ChaosError, match="pip install wandb"):
        chaos.log_to_wandb()
    with pytest.raises(ChaosError, match="pip install tensorboard"):
        chaos.log_to_tensorboard(tmp_path)
