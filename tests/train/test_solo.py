"""Without an agent the same script is plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chaos
from chaos.core.errors import ChaosError
from chaos.train.data import permutation
from tests.train.reference import Points, assert_same, make_mlp

DATA = Points(22)


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHAOS_AGENT", "CHAOS_JOIN", "CHAOS_LISTEN"):
        monkeypatch.delenv(name, raising=False)


def test_the_loop_equals_plain_pytorch_bit_for_bit() -> None:
    model, reference = make_mlp(), make_mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=100)
    with chaos.Session(model, optimizer, scheduler=scheduler, max_grad_norm=0.1, seed=4) as run:
        seen = []
        for epoch in run.epochs(3):
            seen.append(epoch)
            for x, y in run.shard(DATA, 4):
                loss = F.mse_loss(model(x), y)
                loss.backward()
                run.step(loss)
                assert run.last.loss == loss.item()
        assert seen == [0, 1, 2] and run.steps == 18 and (run.role, run.members) == ("solo", 1)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=100)
    for epoch in range(3):
        for part in torch.tensor(permutation(22, 4, epoch)).split(4):
            F.mse_loss(reference(DATA.x[part]), DATA.y[part]).backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert_same(model, reference, tolerance=0)


def test_accumulation_and_what_is_left_at_the_end_of_the_epoch() -> None:
    model = make_mlp()
    weights: list[float] = []
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=2) as run:
        for _ in run.epochs(1):
            for x, y in run.shard(DATA, 4):
                before = run.steps
                F.mse_loss(model(x), y).backward()
                run.step()
                if run.steps > before:
                    weights.append(run.last.weight)
        assert run.steps == 3 and weights == [8.0, 8.0, 6.0]
    model = make_mlp()
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=4) as run:
        for _ in run.epochs(1):
            for x, y in run.shard(DATA, 4):
                F.mse_loss(model(x), y).backward()
                run.step()
        assert run.steps == 2 and run.last.weight == 6.0


def test_sync_and_no_sync() -> None:
    model, reference = make_mlp(), make_mlp()
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
        with run.no_sync():
            F.mse_loss(model(DATA.x[:4]), DATA.y[:4]).backward()
            run.step()
        assert run.steps == 0
        F.mse_loss(model(DATA.x[4:]), DATA.y[4:]).backward()
        run.sync()
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        run.step()
        assert run.steps == 1 and all(p.grad is None for p in model.parameters())
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    F.mse_loss(reference(DATA.x[:4]), DATA.y[:4]).backward()
    F.mse_loss(reference(DATA.x[4:]), DATA.y[4:]).backward()
    torch.nn.utils.clip_grad_value_(reference.parameters(), 0.01)
    optimizer.step()
    assert_same(model, reference, tolerance=0)


def test_sync_belongs_to_the_last_micro_batch() -> None:
    model = make_mlp()
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), accumulate=2) as run:
        with pytest.raises(ChaosError, match="before the last micro-batch"):
            run.sync()
        with run.no_sync(), pytest.raises(ChaosError, match="outside of no_sync"):
            run.sync()


def test_a_weight_that_changes_between_sync_and_step_is_refused() -> None:
    model = make_mlp()
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
        F.mse_loss(model(DATA.x), DATA.y).backward()
        run.sync(weight=3)
        with pytest.raises(ValueError, match=r"weight 4 after run.sync\(\) had contributed with weight 3"):
            run.step(weight=4)
        run.step(weight=3)
        assert run.steps == 1


def test_a_scaler_as_usual_and_its_back_off() -> None:
    model = make_mlp(dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = model[0].weight.clone()
    x, y = DATA.x.float(), DATA.y.float()
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler) as run:
        scaler.scale(F.mse_loss(model(x), y) * float("inf")).backward()
        run.step()
        assert "non-finite" in run.last.skipped and scaler.get_scale() == 4.0
        assert torch.equal(model[0].weight, before)
        scaler.scale(F.mse_loss(model(x), y)).backward()
        run.step()
        assert run.last.skipped == "" and not torch.equal(model[0].weight, before)


def test_a_non_finite_gradient_stops_the_run_if_asked_to() -> None:
    model = make_mlp()
    with (
        pytest.raises(ChaosError, match="stops at step 1: non-finite gradient"),
        chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), on_nonfinite="stop") as run,
    ):
        (model(DATA.x).sum() * float("nan")).backward()
        run.step()


def test_weight_zero_makes_no_update() -> None:
    model = make_mlp()
    before = model[0].weight.clone()
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
        model(DATA.x).sum().backward()
        run.step(weight=0)
        assert run.last.skipped and run.steps == 1 and torch.equal(model[0].weight, before)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_weights_out_of_range(weight: float) -> None:
    model = make_mlp()
    session = chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with session as run, pytest.raises(ChaosError, match="weight must be a number from 0"):
        run.step(weight=weight)


def test_plateau_needs_the_loss() -> None:
    model = make_mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with (
        chaos.Session(model, optimizer, scheduler=plateau) as run,
        pytest.raises(ChaosError, match=r"call run.step\(loss\)"),
    ):
        run.step()


@pytest.mark.parametrize("iterate", [lambda run: run.private(DATA, 4), lambda run: run.shard(DATA, 4)])
def test_every_sample_once_per_epoch_even_after_a_break(iterate: Callable) -> None:
    model: nn.Module = make_mlp()
    rows: list[float] = []
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
        for _ in run.epochs(1):
            for x, y in iterate(run):
                rows += x[:, 0].tolist()
                F.mse_loss(model(x), y).backward()
                run.step()
                if len(rows) == 8:
                    break
    assert sorted(rows) == sorted(DATA.x[:, 0].tolist())


def test_a_session_is_entered_once() -> None:
    model = make_mlp()
    session = chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with session, pytest.raises(ChaosError, match="make a new one"):
        session.__enter__()


def test_draws_are_seeded_per_step() -> None:
    draws = []
    for noise in (0, 5):
        model = make_mlp()
        with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), seed=2) as run:
            torch.rand(noise)
            model(DATA.x).sum().backward()
            run.step()
            draws.append(torch.rand(()).item())
    assert draws[0] == draws[1]
