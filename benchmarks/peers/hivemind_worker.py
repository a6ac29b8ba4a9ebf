"""hivemind: peers of a distributed hash table gather a batch together and average, over libp2p."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import hivemind
import torch

from benchmarks.model import Model
from benchmarks.peers.log import BATCH, Log, arguments

TARGET = 3 * BATCH
MATCHMAKING_S = 3.0
"""Where timeouts are short."""


def main() -> None:
    options = arguments()
    log = Log(options.log_steps)
    leaving: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: leaving.append(number))
    model = Model(options.millions, 0)
    contacts = options.contact.split() or None
    dht = hivemind.DHT(initial_peers=contacts, host_maddrs=[f"/ip4/{options.address}/tcp/0"], start=True)
    Path(options.store).write_text(" ".join(map(str, dht.get_visible_maddrs())))
    optimizer = hivemind.Optimizer(
        dht=dht,
        run_id="bench",
        target_batch_size=TARGET,
        batch_size_per_step=BATCH,
        params=model.parameters(),
        optimizer=lambda params: torch.optim.SGD(params, lr=1e-3),
        **({"matchmaking_time": MATCHMAKING_S, "averaging_timeout": options.timeout} if options.timeout else {}),
        verbose=True,
    )
    optimizer.load_state_from_peers()
    while not leaving:
        before = optimizer.local_epoch
        loss = model(before * 1e-6)
        time.sleep(options.compute)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.local_epoch > before:
            log.step(optimizer.local_epoch, optimizer.tracker.global_progress.num_peers, TARGET)
    optimizer.shutdown()
    dht.shutdown()


if __name__ == "__main__":
    main()
