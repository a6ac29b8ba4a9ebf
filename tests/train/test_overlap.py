"""Buckets that leave while backward still runs: when they may, and what happens when a script surprises them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chaos.core.worker_messages import Boundary, BucketReady
from chaos.train import layout
from tests.train.fake_agent import FakeAgent
from tests.train.reference import Points, make_mlp

Make = Callable[..., FakeAgent]


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BUCKET_BYTES", 100)


def run_steps(
    agent: FakeAgent, body: Callable, steps: int = 3, make: Callable = make_mlp, **options: object
) -> nn.Module:
    """`body(run, model, x, y)` for a few batches of one epoch."""

    def script(index: int) -> nn.Module:
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with agent.worker(index, model, optimizer, **options) as run:
            for i, (x, y) in enumerate(run.shard(Points(64), 4)):
                body(run, model, x, y)
                if i + 1 == steps:
                    break
        return model

    return agent.run(script)[0]


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(model(x), y)


def usual(run: object, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    loss_of(model, x, y).backward()
    run.step()


def test_from_the_second_step_on_buckets_leave_in_backward_order(agents: Make) -> None:
    agent = agents()
    run_steps(agent, usual, steps=3)
    ready = agent.peers[0].of(BucketReady)
    segments = len(agent.peers[0].layout.segments)
    assert segments == 3
    first = min(m.step for m in ready)
    assert [m.segment for m in ready] == [0, 1, 2] * 2
    assert {m.step for m in ready} == {first, first + 1} and {m.weight for m in ready} == {4.0}
    positions = [type(m) for m in agent.peers[0].log if isinstance(m, BucketReady | Boundary)]
    assert positions[-4:] == [BucketReady] * 3 + [Boundary]


@pytest.mark.parametrize("how", ["overlap=False", "explicit weight", "no iterator"])
def test_nothing_leaves_early_without_overlap_or_known_weight(agents: Make, how: str) -> None:
    agent = agents()
    if how == "overlap=False":
        run_steps(agent, usual, overlap=False)
    elif how == "no iterator":
        data = Points(4)

        def script(index: int) -> None:
            model = make_mlp()
            with agent.worker(index, model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
                for _ in range(3):
                    usual(run, model, data.x, data.y)

        agent.run(script)
    else:

        def weighted(run: object, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
            loss_of(model, x, y).backward()
            run.step(weight=2)

        run_steps(agent, weighted, steps=1)
    assert agent.peers[0].of(BucketReady) == []
    assert len(agent.peers[0].of(Boundary)) > 0


def test_with_accumulation_only_the_last_micro_batch_sends(agents: Make) -> None:
    agent = agents()
    run_steps(agent, usual, steps=8, accumulate=4)
    ready = agent.peers[0].of(BucketReady)
    assert [m.weight for m in ready] == [16.0] * 3
    kinds = [type(m) for m in agent.peers[0].log if isinstance(m, BucketReady | Boundary)]
    assert kinds[-4:] == [BucketReady] * 3 + [Boundary]


def test_in_no_sync_nothing_is_sent(agents: Make) -> None:
    agent = agents()
    count = 0

    def body(run: object, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count % 2:
            with run.no_sync():
                loss_of(model, x, y).backward()
                assert not [m for m in agent.peers[0].of(BucketReady) if m.step == run.steps + 1]
        else:
            usual(run, model, x, y)

    run_steps(agent, body, steps=4)
    assert [m.weight for m in agent.peers[0].of(BucketReady)] == [8.0] * 3


def test_two_backwards_in_the_first_step_make_their_buckets_wait(agents: Make) -> None:
    agent = agents()

    def body(run: object, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        hidden = torch.tanh(model[0](x))
        F.mse_loss(model[2](hidden.detach()), y).backward()
        F.mse_loss(model[2](hidden), y).backward()
        run.step()

    run_steps(agent, body)
    names = {m.segment for m in agent.peers[0].of(BucketReady)}
    assert names and 0 not in names, "the last layer, in the first bucket, got two gradients per step"


def test_a_bucket_with_an_unused_parameter_waits(agents: Make) -> None:
    def make() -> nn.Module:
        model = make_mlp()
        model.register_parameter("never", nn.Parameter(torch.zeros(20).double()))
        return model

    agent = agents()
    run_steps(agent, usual, make=make)
    never = agent.peers[0].layout.segments
    ready = {m.segment for m in agent.peers[0].of(BucketReady)}
    assert len(ready) == len(never) - 1


def test_another_weight_after_a_bucket_left_is_a_value_error_with_the_remedy(agents: Make) -> None:
    def body(run: object, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        loss_of(model, x, y).backward()
        run.step(weight=4 if run.steps < 2 else 7)

    with pytest.raises(ValueError, match=r"weight 7 after a bucket had been sent with weight 4.*overlap=False"):
        run_steps(agents(), body)
    run_steps(agents(), body, overlap=False)


def test_another_gradient_after_a_bucket_left_is_a_runtime_error_naming_the_tensor(agents: Make) -> None:
    def body(run: object, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        loss_of(model, x, y).backward()
        if run.steps >= 2:
            loss_of(model, x, y).backward()
        run.step()

    with pytest.raises(RuntimeError, match=r"'2.bias' got another gradient .*accumulate= or run.no_sync"):
        run_steps(agents(), body)
    run_steps(agents(), body, overlap=False)


@pytest.mark.parametrize("change", ["in place", "replaced", "dropped"])
def test_a_gradient_changed_after_its_bucket_left_is_an_error(agents: Make, change: str) -> None:
    """Clipping before `step` would race with the agent that already reads the bucket."""

    def body(run: object, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        loss_of(model, x, y).backward()
        if change == "in place":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        elif change == "replaced":
            model[0].weight.grad = model[0].weight.grad * 2
        else:
            model[0].weight.grad = None
        run.step()

    with pytest.raises(RuntimeError, match=r"the gradient of '.*' was changed .*run.sync\(\)"):
        run_steps(agents(), body)
    run_steps(agents(), body, overlap=False)
