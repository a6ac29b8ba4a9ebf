"""torchft: fault-tolerant data parallelism among replica groups of one worker each, by a lighthouse."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

from benchmarks.model import Model
from benchmarks.peers.log import BATCH, Log, arguments

QUORUM_TIMEOUT = timedelta(seconds=10)
"""As short as it works with, where timeouts are short."""


def main() -> None:
    options = arguments()
    log = Log(options.log_steps)
    leaving: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: leaving.append(number))
    model = Model(options.millions, 0)
    inner = torch.optim.SGD(model.parameters(), lr=1e-3)

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        inner.load_state_dict(state["optimizer"])

    store = dist.TCPStore(options.address, 0, is_master=True, wait_for_workers=False)
    timeout = timedelta(seconds=options.timeout)
    times = {"timeout": timeout, "quorum_timeout": max(timeout, QUORUM_TIMEOUT)} if timeout else {}
    manager = Manager(
        pg=ProcessGroupGloo(timeout=times.get("timeout", timedelta(seconds=60))),
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": inner.state_dict()},
        min_replica_size=1,
        replica_id=options.name,
        store_addr=options.address,
        store_port=store.port,
        rank=0,
        world_size=1,
        lighthouse_addr=options.contact,
        hostname=options.address,
        **times,
    )
    ddp, optimizer = DistributedDataParallel(manager, model), Optimizer(manager, inner)
    while not leaving:
        before = manager.current_step()
        optimizer.zero_grad()
        loss = ddp(before * 1e-6)
        time.sleep(options.compute)
        loss.backward()
        optimizer.step()
        if manager.current_step() > before:
            count = manager.num_participants()
            log.step(manager.current_step(), count, count * BATCH, manager.is_participating())
    manager.shutdown()


if __name__ == "__main__":
    main()
