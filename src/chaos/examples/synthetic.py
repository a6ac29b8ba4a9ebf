"""A model of any size that costs next to nothing to compute: to see what a network does to a run.

    chaos run examples/synthetic.py --state-mb 8 --steps 500
    chaos lab run scenarios/lab/home-wifi.toml                                    what it is made for

It fits a line by gradient descent; all further parameters only decay. Every peer ends with the same step.
"""
# mypy: allow-untyped-calls

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import chaos

FEATURES = 16
LONG = 1_000_000


class Line(nn.Module):
    """y = w x with `size` parameters, of which the first 16 matter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 (batch, 16) to (batch,), and the decay's part of the loss."""
        return x @ self.weight[:FEATURES]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fit a line with a model of any size.")
    parser.add_argument("--state-mb", type=float, default=4.0, help="of parameters; as much again of momentum")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=8, help="samples per peer and step (default: 8)")
    parser.add_argument("--compute-ms", type=float, default=20.0, help="a step's pause for pretended computing")
    parser.add_argument("--steps", type=int, default=LONG, help="stop after so many updates")
    parser.add_argument("--stop-file", type=Path, help="stop after as many updates as this file says once it is there")
    return parser.parse_args()


def last_step(args: argparse.Namespace) -> int:
    """After which update to stop, as far as is known now."""
    if args.stop_file is None or not args.stop_file.exists():
        return int(args.steps)
    return int(args.stop_file.read_text())


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(0)
    model = Line(max(FEATURES, int(args.state_mb * 2**18)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    x = torch.randn(args.samples, FEATURES)
    data = TensorDataset(x, x.sum(dim=1))
    with chaos.Session(model, optimizer) as run:
        for _ in run.epochs(LONG):
            for inputs, targets in run.shard(data, args.batch_size):
                if run.steps >= last_step(args):
                    return
                loss = ((model(inputs) - targets) ** 2).mean()
                loss.backward()
                time.sleep(args.compute_ms / 1000)
                run.step(loss)


if __name__ == "__main__":
    main()
