"""Parties that each hold some digits only, and whose images stay where they are, train one model that knows all ten.

    python examples/digits.py --classes 0-3                                   alone: never sees a 4
    chaos run --min-peers 3 examples/digits.py --classes 0-3                  three parties, each on its own machine
    chaos run --join HOST:PORT examples/digits.py --classes 4-6
    chaos run --join HOST:PORT examples/digits.py --classes 7-9

Needs scikit-learn, whose 1797 digits of 8 x 8 pixels come with its installation.
"""
# mypy: allow-untyped-calls

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import chaos

TEST_SHARE = 0.25


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a classifier of digits on data that stays with its parties.")
    parser.add_argument("--classes", type=classes, default=classes("0-9"), help="digits of this party: 0-3 or 0,4,7")
    parser.add_argument("--epochs", type=int, default=12, help="passes of every party over its own data (default: 12)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples per peer and step (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the samples' order")
    return parser.parse_args()


def classes(text: str) -> list[int]:
    """'0-3' and '0,1,2,3' both name four digits. Raises `ArgumentTypeError` for what is no list of digits."""
    try:
        spans = [[int(end) for end in part.split("-")] for part in text.split(",")]
    except ValueError:
        spans = []
    digits = sorted({digit for span in spans if len(span) <= 2 for digit in range(span[0], span[-1] + 1)})
    if not digits or digits[0] < 0 or digits[-1] > 9:
        raise argparse.ArgumentTypeError(f"{text!r} names no digits; write them as 0-3 or 0,4,7")
    return digits


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images (n, 64) from 0 to 1 and labels (n,), then those for the test. The same split on every machine."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("scikit-learn is missing; install it with: pip install scikit-learn") from None
    content = load_digits()
    order = torch.randperm(len(content.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(content.data, dtype=torch.float32)[order] / 16
    labels = torch.tensor(content.target, dtype=torch.int64)[order]
    cut = int(len(labels) * TEST_SHARE)
    return images[cut:], labels[cut:], images[:cut], labels[:cut]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the model names rightly, from 0 to 1."""
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    args = parse_arguments()
    images, labels, test_images, test_labels = load()
    own = torch.isin(labels, torch.tensor(args.classes))
    torch.manual_seed(args.seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with chaos.Session(model, optimizer, seed=args.seed) as run:
        for _ in run.epochs(args.epochs):
            # The gradients of all parties are averaged by their number of samples; images never leave.
            for x, y in run.private(TensorDataset(images[own], labels[own]), args.batch_size):
                loss = functional.cross_entropy(model(x), y)
                loss.backward()
                run.step(loss)
    share = accuracy(model, test_images, test_labels)
    print(f"{share:.1%} of the test images of all ten digits, after {run.steps} steps; "
          f"trained here on {','.join(map(str, args.classes))}")  # fmt: skip


if __name__ == "__main__":
    main()
