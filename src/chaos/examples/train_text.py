"""A byte-level GPT learns to write Python from the standard library's own source files.

    python examples/train_text.py --steps 20                                  alone, plain PyTorch
    chaos run examples/train_text.py --steps 200                              founds a run
    chaos run --join HOST:PORT examples/train_text.py --steps 200             joins it

Every peer ends with the same step, whoever came or left meanwhile.
"""
# mypy: allow-untyped-calls

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import chaos

TEXT_BYTES = 2 * 2**20
"""So much text is read, on every machine alike: a run's peers need datasets of one length."""
CONTEXT = 64
"""Bytes that a prediction can look back on."""


class Text(Dataset[tuple[Tensor, Tensor]]):
    """Pieces of CONTEXT bytes, each with the bytes that follow: two int64 tensors of shape (CONTEXT,)."""

    def __init__(self, folder: Path, size: int = TEXT_BYTES) -> None:
        content = b""
        for path in sorted(folder.glob("*.py")):
            content += path.read_bytes()
            if len(content) >= size:
                break
        if len(content) <= CONTEXT:
            raise SystemExit(f"there is no Python source in {folder}; install Python with its standard library")
        self._bytes = torch.frombuffer(bytearray(content[:size]), dtype=torch.uint8)

    def __len__(self) -> int:
        return (len(self._bytes) - 1) // CONTEXT

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        piece = self._bytes[index * CONTEXT : (index + 1) * CONTEXT + 1].long()
        return piece[:-1], piece[1:]


class Block(nn.Module):
    """Causal self-attention, then a small network per position; each adds to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        thought: Tensor = self.mlp(self.norm_mlp(x))
        return x + thought


class GPT(nn.Module):
    """Predicts the next byte. Input: int64 (batch, length); output: logits (batch, length, 256)."""

    def __init__(self, layers: int = 4, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for table in (self.byte, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.byte(x) + self.place(torch.arange(x.shape[1], device=x.device))
        logits: Tensor = self.head(self.norm(self.blocks(seen)))
        return logits


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a byte-level GPT on the standard library's source files.")
    parser.add_argument("--steps", type=int, default=200, help="stop after so many updates (default: 200)")
    parser.add_argument("--epochs", type=int, default=10, help="stop after so many passes over the text (default: 10)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per peer and step (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the samples' order")
    return parser.parse_args()


def batches(run: chaos.Session, data: Text, args: argparse.Namespace) -> Iterator[Any]:
    """Batches until --steps or --epochs is reached. `run.steps` counts the run's updates: it is the same everywhere."""
    for _ in run.epochs(args.epochs):
        for batch in run.shard(data, args.batch_size):
            if run.steps < args.steps:
                yield batch
            if run.steps >= args.steps:
                return


def main() -> None:
    args = parse_arguments()
    torch.manual_seed(args.seed)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)
    data = Text(Path(sysconfig.get_path("stdlib")))
    with chaos.Session(model, optimizer, scheduler=warm_up, max_grad_norm=1.0, seed=args.seed) as run:
        for x, y in batches(run, data, args):
            loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            run.step(loss)
            if run.steps % 10 == 0 and run.role != "learner" and run.last.loss is not None:
                print(f"step {run.steps:4d}  loss {run.last.loss:.3f}  members {run.members}", flush=True)


if __name__ == "__main__":
    main()
