"""Several workers together do what one process with plain PyTorch does on the union of their batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.train.fake_agent import FakeAgent
from tests.train.reference import Points, assert_same, filled, make_mlp, union_training

Make = Callable[..., FakeAgent]


def mse(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def train(
    agent: FakeAgent,
    workers: int,
    dataset: Points,
    make_model: Callable[[], nn.Module] = make_mlp,
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    loss_fn: Callable[[nn.Module, Tensor, Tensor], Tensor] = mse,
    batch_size: int = 4,
    epochs: int = 2,
    zero_grad: bool = False,
    **options: object,
) -> list[nn.Module]:
    """The loop of a user's script on every worker; returns their models."""
    make_optimizer = make_optimizer or (lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    models = [make_model() for _ in range(workers)]

    def script(index: int) -> nn.Module:
        model = models[index]
        optimizer = make_optimizer(model)
        with agent.worker(index, model, optimizer, **options) as run:
            for _ in run.epochs(epochs):
                for x, y in run.shard(dataset, batch_size):
                    if zero_grad:
                        optimizer.zero_grad()
                    loss = loss_fn(model, x, y)
                    loss.backward()
                    run.step(loss)
        return getattr(model, "_orig_mod", model)

    return agent.run(*[script] * workers)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> Callable[[], None]:
    def update() -> None:
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()

    return update


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("workers", [1, 3])
def test_sgd_in_float64_equals_one_process(agents: Make, workers: int, overlap: bool) -> None:
    agent, dataset = agents(founders=workers), Points(50)
    models = train(agent, workers, dataset, overlap=overlap)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    for model in models:
        assert_same(model, reference)
        assert_same(model, models[0], tolerance=0)
    assert all(parameter.grad is None for parameter in models[0].parameters())
    used = [i for step in agent.contributions for c in agent.contributions[step].values() for i in c.ranges]
    assert sum(r.stop - r.start for r in used) == 2 * len(dataset)


def test_clipping_is_of_the_reduced_gradient(agents: Make) -> None:
    agent, dataset = agents(founders=3), Points(36)
    models = train(agent, 3, dataset, max_grad_norm=0.05)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer, max_norm=0.05))
    assert_same(models[0], reference)


def test_zero_grad_by_the_script_changes_nothing(agents: Make) -> None:
    agent, dataset = agents(founders=2), Points(32)
    models = train(agent, 2, dataset, zero_grad=True)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[1], reference)


def test_accumulation_sums_gradients_as_plain_pytorch_does(agents: Make) -> None:
    agent, dataset = agents(founders=2), Points(64)
    models = train(
        agent, 2, dataset, accumulate=2, loss_fn=lambda model, x, y: mse(model, x, y) / 2, batch_size=4, epochs=1
    )
    full = [c for parts in agent.contributions.values() for c in parts.values() if not c.empty]
    assert {c.weight for c in full} == {8.0}
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference)


def test_unfinished_accumulation_is_contributed_at_the_end_of_the_epoch(agents: Make) -> None:
    agent, dataset = agents(), Points(20)
    train(agent, 1, dataset, accumulate=2, loss_fn=lambda m, x, y: mse(m, x, y) / 2, batch_size=4, epochs=1)
    weights = [c.weight for parts in agent.contributions.values() for c in parts.values() if not c.empty]
    assert weights == [8.0, 8.0, 4.0]


class Branches(nn.Module):
    """One layer nobody uses, one that only batches with a large first input use."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.sometimes, self.never = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.main(x)
        return out + self.sometimes(x) if x[0, 0] > 0 else out


def make_branches() -> nn.Module:
    return filled(Branches().double())


def test_unused_parameters_keep_no_gradient(agents: Make) -> None:
    """AdamW decays weights whose gradient is zero, and leaves those alone whose gradient is None."""
    agent, dataset = agents(founders=1), Points(40)
    (model,) = train(
        agent, 1, dataset, make_branches, lambda m: torch.optim.AdamW(m.parameters(), lr=0.05, weight_decay=0.3)
    )
    reference = make_branches()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.05, weight_decay=0.3)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(model, reference)
    assert torch.equal(model.never.weight, make_branches().never.weight)
    assert not torch.equal(model.sometimes.weight, make_branches().sometimes.weight)


def test_a_parameter_used_by_one_peer_only_is_updated_on_all(agents: Make) -> None:
    agent, dataset = agents(founders=3), Points(48)
    models = train(agent, 3, dataset, make_branches, lambda m: torch.optim.AdamW(m.parameters(), lr=0.05))
    for model in models[1:]:
        assert_same(model, models[0], tolerance=0)
    assert torch.equal(models[0].never.weight, make_branches().never.weight)


class Tied(nn.Module):
    """Two names for one weight, and one layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.out(torch.tanh(self.first(x)))


def make_tied() -> nn.Module:
    return filled(Tied().double())


def test_tied_weights_and_shared_layers(agents: Make) -> None:
    agent, dataset = agents(founders=2), Points(40)
    models = train(agent, 2, dataset, make_tied)
    reference = make_tied()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference)
    assert models[0].second.weight is models[0].first.weight


def test_a_layer_shared_across_reentrant_checkpoints_waits_for_the_step(agents: Make) -> None:
    """Its gradient arrives twice within one backward, so its bucket must not leave with the first."""
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.out = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone().requires_grad_()
            x = checkpoint(self.shared, x, use_reentrant=True)
            return self.out(checkpoint(self.shared, torch.tanh(x), use_reentrant=True))

    def make() -> nn.Module:
        return filled(Checkpointed().double())

    agent, dataset = agents(founders=2), Points(40)
    models = train(agent, 2, dataset, make)
    reference = make()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference)


def test_frozen_parameters_stay(agents: Make) -> None:
    def make() -> nn.Module:
        model = make_mlp()
        model[0].weight.requires_grad_(False)
        return model

    agent, dataset = agents(founders=2), Points(40)
    models = train(agent, 2, dataset, make, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
    reference = make()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference)
    assert torch.equal(models[0][0].weight, make_mlp()[0].weight)


class Images(nn.Module):
    """Convolutions in channels_last, whose weights are dense but not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 3, 2), nn.Linear(3, 1)
        self.to(memory_format=torch.channels_last)
        self.conv.weight = nn.Parameter(torch.randn(3, 2, 2, 1).permute(0, 3, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x.view(-1, 1, 2, 2)).flatten(1))


def test_gradients_keep_the_strides_of_their_parameters(agents: Make) -> None:
    def make() -> nn.Module:
        return filled(Images().double())

    agent, dataset = agents(founders=2), Points(40)
    strides: list[tuple[int, ...]] = []

    def loss_fn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if model.conv.weight.grad is not None:
            strides.append(model.conv.weight.grad.stride())
        return mse(model, x, y)

    models = train(agent, 2, dataset, make, loss_fn=loss_fn)
    reference = make()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference)
    assert set(strides) == {make().conv.weight.stride()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_parameters(agents: Make, dtype: torch.dtype) -> None:
    agent, dataset = agents(founders=2), Points(32, dtype=dtype)
    models = train(agent, 2, dataset, lambda: make_mlp(dtype=dtype))
    reference = make_mlp(dtype=dtype)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], models[1], tolerance=0)
    assert_same(models[0], reference, tolerance={torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}[dtype])


def test_parameters_of_two_dtypes(agents: Make) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(4, 4).float(), nn.Linear(4, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.high(self.low(x.float()).double())

    def make() -> nn.Module:
        return filled(Mixed())

    agent, dataset = agents(founders=2), Points(32)
    models = train(agent, 2, dataset, make)
    reference = make()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference, tolerance=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models(agents: Make, backend: str) -> None:
    torch._dynamo.reset()
    agent, dataset = agents(founders=1), Points(24)
    (model,) = train(agent, 1, dataset, lambda: torch.compile(make_mlp(), backend=backend), epochs=2)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(model, reference)
    assert any("BucketReady" in type(m).__name__ for m in agent.peers[0].log)


def test_the_scaler_scales_alike_and_backs_off_alike(agents: Make) -> None:
    """Against one process; then a non-finite gradient on one peer lowers the scale of all."""
    agent, dataset = agents(founders=2), Points(48, dtype=torch.float32)
    scales: list[list[float]] = [[], []]

    def script(index: int) -> nn.Module:
        model = make_mlp(dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with agent.worker(index, model, optimizer, scaler=scaler, max_grad_norm=0.5) as run:
            for _ in run.epochs(2):
                for x, y in run.shard(dataset, 4):
                    loss = mse(model, x, y)
                    if run.steps == 5 and index == 1:
                        loss = loss * float("inf")
                    scaler.scale(loss).backward()
                    run.step(loss)
                    scales[index].append(scaler.get_scale())
        return model

    models = agent.run(script, script)
    skipped = [s for s, (commit, _) in agent.commits.items() if "non-finite" in commit.skip]
    assert skipped == [6] and "peer-1" in agent.commits[6][0].skip
    assert scales[0] == scales[1]
    assert any(after < before for before, after in zip(scales[0], scales[0][1:], strict=False))
    assert max(scales[0]) > 1024.0
    reference = make_mlp(dtype=torch.float32)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer, max_norm=0.5))
    assert_same(models[0], models[1], tolerance=0)
    assert_same(models[0], reference, tolerance=1e-5)


class Normed(nn.Module):
    """Float and integer buffers, one of them replaced instead of written, and a constant with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("third", torch.tensor([1 / 3, 0.1, 0.7]))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + x.shape[0]
        return self.out(self.norm(x))


def make_normed() -> nn.Module:
    return filled(Normed().double())


def test_buffers_are_averaged_counted_and_equal_everywhere(agents: Make) -> None:
    agent, dataset = agents(founders=3), Points(48)
    models = train(agent, 3, dataset, make_normed, batch_size=4, epochs=1)
    for model in models:
        assert_same(model, models[0], tolerance=0)
        assert torch.equal(model.mask, make_normed().mask)
        assert torch.equal(model.third, make_normed().third), "a constant must not drift by rounding"
    mean, count, seen = torch.zeros(4, dtype=torch.float64), 0, 0.0
    for step, (commit, _) in sorted(agent.commits.items()):
        if commit.skip:
            continue
        parts = [dataset.x[c] for c in _indices(agent, step, len(dataset))]
        mean = sum(len(p) * (0.9 * mean + 0.1 * p.mean(0)) for p in parts) / sum(map(len, parts))
        seen += sum(len(p) * len(p) for p in parts) / sum(map(len, parts))
        count += 1
    torch.testing.assert_close(models[0].norm.running_mean, mean, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(models[0].seen.item(), seen)
    assert models[0].norm.num_batches_tracked.item() == count > 2


def _indices(agent: FakeAgent, step: int, samples: int) -> list[list[int]]:
    from tests.train.reference import used_indices

    return used_indices(agent, step, samples)


def test_a_skipped_step_takes_its_buffers_back(agents: Make) -> None:
    agent, dataset = agents(founders=2), Points(32)
    agent.skip[4] = "because"
    before: list[Tensor] = []

    def loss_fn(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        before.append(model.norm.running_mean.clone())
        return mse(model, x, y)

    models = train(agent, 2, dataset, make_normed, loss_fn=loss_fn, epochs=1)
    assert models[0].norm.num_batches_tracked.item() == sum(not c.skip for c, _ in agent.commits.values())
    assert_same(models[0], models[1], tolerance=0)


@pytest.mark.parametrize("wrap", ["backward", "backward and step"])
def test_hand_made_accumulation_with_no_sync(agents: Make, wrap: str) -> None:
    agent, dataset = agents(founders=2), Points(64)

    def script(index: int) -> nn.Module:
        model = make_mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(1):
                for i, (x, y) in enumerate(run.shard(dataset, 4)):
                    if i % 2 == 0:
                        with run.no_sync():
                            (mse(model, x, y) / 2).backward()
                            if wrap == "backward and step":
                                run.step()
                    else:
                        (mse(model, x, y) / 2).backward()
                        run.step()
        return model

    models = agent.run(script, script)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference)
    full = [c.weight for parts in agent.contributions.values() for c in parts.values() if not c.empty]
    assert set(full) == {8.0} and len(full) == 8


def test_sync_hands_the_reduced_gradient_to_the_script(agents: Make) -> None:
    agent, dataset = agents(founders=3), Points(48)
    seen: list[dict[int, Tensor]] = [{} for _ in range(3)]

    def script(index: int) -> nn.Module:
        model = make_mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(2):
                for x, y in run.shard(dataset, 4):
                    loss = mse(model, x, y)
                    loss.backward()
                    run.sync(loss)
                    seen[index][run.steps + 1] = model[0].weight.grad.clone()
                    torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
                    steps = run.steps
                    run.step()
                    assert run.steps == steps + 1
        return model

    models = agent.run(*[script] * 3)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)

    def update() -> None:
        torch.nn.utils.clip_grad_value_(reference.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()

    union_training(agent, dataset, reference, mse, update)
    for model in models:
        assert_same(model, reference)
    both = seen[0].keys() & seen[1].keys()
    assert len(both) > 3 and all(torch.equal(seen[0][s], seen[1][s]) for s in both)


def test_gradients_set_by_hand_are_contributed(agents: Make) -> None:
    agent, dataset = agents(founders=2), Points(32)

    def script(index: int) -> nn.Module:
        model = make_mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(1):
                for i, (x, y) in enumerate(run.shard(dataset, 4)):
                    params = list(model.parameters())
                    for p, g in zip(params, torch.autograd.grad(mse(model, x, y), params), strict=True):
                        if i % 2:
                            p.grad = g
                        else:
                            p.grad.copy_(g)
                    run.step()
        return model

    models = agent.run(script, script)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    union_training(agent, dataset, reference, mse, plain(reference, optimizer))
    assert_same(models[0], reference)


def test_the_numbers_of_the_lowest_rank_win(agents: Make) -> None:
    """A learning rate changed by hand on one peer only must not make the peers differ."""
    agent, dataset = agents(founders=2), Points(32)

    def script(index: int) -> tuple[nn.Module, dict]:
        model = make_mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.05), betas=(0.8, 0.9))
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(1):
                for x, y in run.shard(dataset, 4):
                    if run.steps == 2 and index == 0:
                        optimizer.param_groups[0]["lr"].fill_(0.01)
                        optimizer.param_groups[0]["betas"] = (0.7, 0.95)
                    mse(model, x, y).backward()
                    run.step()
        return model, optimizer.param_groups[0]

    (one, _), (other, group) = agent.run(script, script)
    assert_same(one, other, tolerance=0)
    assert group["betas"] == (0.7, 0.95)
    assert isinstance(group["lr"], Tensor) and group["lr"].item() == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["OneCycleLR", "ReduceLROnPlateau"])
def test_schedulers_step_with_every_update_and_not_when_skipped(agents: Make, name: str) -> None:
    agent, dataset = agents(founders=2), Points(48)
    agent.skip[5] = "because"
    scheduler_of = {
        "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=100),
        "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    }[name]

    def script(index: int) -> tuple[nn.Module, float]:
        model = make_mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        with agent.worker(index, model, optimizer, scheduler=scheduler_of(optimizer)) as run:
            for _ in run.epochs(2):
                for x, y in run.shard(dataset, 4):
                    loss = mse(model, x, y)
                    loss.backward()
                    run.step(loss)
        return model, optimizer.param_groups[0]["lr"]

    (one, lr), (other, other_lr) = agent.run(script, script)
    assert_same(one, other, tolerance=0)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    scheduler = scheduler_of(optimizer)
    losses = iter([commit.loss for _, (commit, _) in sorted(agent.commits.items()) if not commit.skip])

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step(*([next(losses)] if name == "ReduceLROnPlateau" else []))

    union_training(agent, dataset, reference, mse, update)
    assert_same(one, reference)
    assert lr == other_lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
    assert lr != 0.05
