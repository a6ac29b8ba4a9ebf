"""One rank of the yardstick: `torch.distributed` with Gloo sums a tensor among several processes, in the clear."""

from __future__ import annotations

import argparse
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from benchmarks.gate import Caller


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--millions", type=int, required=True)
    parser.add_argument("--store", required=True, help="a file by which the ranks find each other")
    parser.add_argument("--gate", required=True)
    options = parser.parse_args()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{options.store}",
        rank=options.rank,
        world_size=options.ranks,
        timeout=timedelta(seconds=120),
    )
    values = torch.zeros(options.millions * 1_000_000)
    gate = Caller.join(options.gate, "gloo")
    try:
        while True:
            what, start, used = gate.hear(), time.perf_counter(), time.process_time()
            if what == "compute":
                values.fill_(0.5)
            else:
                dist.all_reduce(values)
            gate.say((time.perf_counter() - start, time.process_time() - used))
    except EOFError:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
