"""The training script of the benchmarks, on a model that costs next to nothing.

`--compute-ms` adds time in which the worker leaves the processor alone, as one that computes on another device would.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import chaos
from benchmarks.gate import Caller
from benchmarks.model import Model

TOGETHER = 3
"""After so many steps all peers are members and stand at the same step."""


def train(run: Any, model: Model, compute_s: float, steps: int) -> None:
    """Every sample once, in batches of four, until so many steps are done."""
    dataset = list(range(400_000))
    for _ in run.epochs(100):
        for batch in run.shard(dataset, batch_size=4):
            loss = model(float(batch[0]) * 1e-6)
            time.sleep(compute_s)
            loss.backward()
            run.step(loss)
            if run.steps >= steps:
                return


def obey(run: Any, model: Model, address: str) -> None:
    """Compute, reduce and update when told to; answer how many seconds, and how many of processor time, it took."""
    while run.role != "member" or run.steps < TOGETHER:
        model(0.5).backward()
        run.step(weight=1.0)
    gate = Caller.join(address, "chaos")
    try:
        while True:
            what, start, used = gate.hear(), time.perf_counter(), time.process_time()
            if what == "compute":
                model(0.5).backward()
            elif what == "reduce":
                run.sync(weight=1.0)
            else:
                run.step()
            gate.say((time.perf_counter() - start, time.process_time() - used))
    except EOFError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, default=25, help="parameters")
    parser.add_argument("--thousands", type=int, default=0, help="as many more parameters")
    parser.add_argument("--frozen-millions", type=int, default=0, help="further parameters that take no gradient")
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--compute-ms", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--gate", default="")
    options = parser.parse_args()
    model = Model(options.millions, options.frozen_millions, options.thousands)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    optimizer = kinds[options.optimizer](model.parts.parameters(), lr=1e-3)
    with chaos.Session(model, optimizer, overlap=not options.gate) as run:
        if options.gate:
            obey(run, model, options.gate)
        else:
            train(run, model, options.compute_ms / 1000, options.steps)


if __name__ == "__main__":
    main()
