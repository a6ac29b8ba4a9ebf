"""Chaos: the five lines."""

from __future__ import annotations

import time

from benchmarks.model import Model
from benchmarks.peers.log import BATCH, Log, arguments


def main() -> None:
    import torch

    import chaos

    options = arguments()
    log = Log(options.log_steps)
    model = Model(options.millions, 0)
    dataset = range(4_000_000)
    with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=1e-3)) as run:
        for _ in run.epochs(1):
            for batch in run.shard(dataset, batch_size=BATCH):
                mine = run.role == "member"
                loss = model(float(batch[0]) * 1e-6)
                time.sleep(options.compute)
                loss.backward()
                run.step(loss)
                samples = int(run.last.weight)
                log.step(run.steps, samples // BATCH, samples, mine)


if __name__ == "__main__":
    main()
