"""torch.distributed under torchrun's elastic agent: every change of membership starts all workers again.

What has to survive that is the script's business. Here parameters lie in a file in memory, so that saving costs
nothing, which is more than most scripts have; whoever holds the latest step gives it to the others by a broadcast.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.model import MILLION, Model
from benchmarks.peers.log import BATCH, Log, arguments


def main() -> None:
    options = arguments()
    log = Log(options.log_steps)
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    model = Model(options.millions, 0)
    kept = torch.from_file(options.store, shared=True, size=options.millions * MILLION)
    for number, part in enumerate(model.parts):
        part.data = kept[number * MILLION : (number + 1) * MILLION]
    steps = Path(options.store + ".steps")
    step = agree(int(steps.read_text()) if steps.exists() else 0, kept)
    ddp = DistributedDataParallel(model, init_sync=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    while True:
        optimizer.zero_grad()
        loss = ddp(step * 1e-6)
        time.sleep(options.compute)
        loss.backward()
        optimizer.step()
        step += 1
        steps.write_text(str(step))
        log.step(step, size, size * BATCH)


def agree(step: int, kept: torch.Tensor) -> int:
    """All take the parameters of the first of those that stand furthest; returns that step."""
    stands = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(stands, torch.tensor([step]))
    furthest = max(int(stand) for stand in stands)
    if any(int(stand) != furthest for stand in stands):
        dist.broadcast(kept, next(rank for rank, stand in enumerate(stands) if int(stand) == furthest))
    return furthest


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
