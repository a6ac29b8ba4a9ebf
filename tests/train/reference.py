"""What the same training would be in one process with plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chaos.train.data import permutation, positions
from tests.train.fake_agent import FakeAgent


class Points(torch.utils.data.Dataset):
    """`count` random samples: inputs (features,) and targets (1,), float64."""

    def __init__(self, count: int, features: int = 4, dtype: torch.dtype = torch.float64) -> None:
        source = torch.Generator().manual_seed(7)
        self.x = torch.randn(count, features, generator=source, dtype=torch.float64).to(dtype)
        self.y = torch.randn(count, 1, generator=source, dtype=torch.float64).to(dtype)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def filled(model: nn.Module, seed: int = 3) -> nn.Module:
    """The same parameters each time. Torch's global generator won't do: workers in other threads seed it."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            value = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
            parameter.copy_(value * parameter[0].numel() ** -0.5)
    return model


def make_mlp(features: int = 4, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small network."""
    return filled(nn.Sequential(nn.Linear(features, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype))


def used_indices(agent: FakeAgent, step: int, samples: int, seed: int = 0) -> list[list[int]]:
    """Dataset indices that each contributor used in a step, in rank order."""
    parts = agent.contributions[step].values()
    order = {r.epoch: permutation(samples, seed, r.epoch) for c in parts for r in c.ranges}
    return [
        [int(i) for r in c.ranges for i in order[r.epoch][positions([(r.start, r.stop)])]] for c in parts if c.ranges
    ]


def union_training(
    agent: FakeAgent,
    dataset: Points,
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Tensor, Tensor], Tensor],
    update: Callable[[], None],
) -> nn.Module:
    """Train `model` on the union of what the contributors used, step by step; `update` ends with zero_grad."""
    for step, (commit, _) in sorted(agent.commits.items()):
        if commit.skip:
            continue
        indices = [i for part in used_indices(agent, step, len(dataset)) for i in part]
        loss_fn(model, dataset.x[indices], dataset.y[indices]).backward()
        update()
    return model


def assert_same(one: nn.Module, other: nn.Module, tolerance: float = 1e-12) -> None:
    """Parameters and buffers agree to `tolerance`, absolute and relative; 0 means bit for bit."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    for (name, a), (_, b) in pairs:
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
