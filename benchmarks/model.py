"""A model of any size whose forward and backward cost next to nothing: what is left of a step is communication."""

from __future__ import annotations

from typing import Any

import torch

MILLION = 1_000_000


class Given(torch.autograd.Function):
    """A scalar whose gradient with respect to every parameter is constant: one pass over the gradients."""

    @staticmethod
    def forward(ctx: Any, value: float, *params: torch.Tensor) -> torch.Tensor:
        ctx.value, ctx.shapes = value, [param.shape for param in params]
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        value = torch.tensor(ctx.value)
        return (None, *(value.expand(shape) for shape in ctx.shapes))


class Model(torch.nn.Module):
    def __init__(self, millions: int, frozen: int, thousands: int = 0) -> None:
        super().__init__()
        sizes = [MILLION] * millions + ([1000 * thousands] if thousands else [])
        self.parts = torch.nn.ParameterList(torch.zeros(size) for size in sizes)
        rest = (torch.nn.Parameter(torch.ones(MILLION), requires_grad=False) for _ in range(frozen))
        self.frozen = torch.nn.ParameterList(rest)

    def forward(self, value: float) -> torch.Tensor:
        loss: torch.Tensor = Given.apply(value, *self.parts)  # type: ignore[no-untyped-call]
        return loss
