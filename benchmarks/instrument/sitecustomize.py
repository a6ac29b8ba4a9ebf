"""Python runs this when it starts with this directory on PYTHONPATH: an agent then notes how long its node thinks.

One line of JSON per call of `Node.handle` that agreement or leaving is about, in CHAOS_RUNTIME_DIR/handling-PID.jsonl:
when (monotonic seconds), what, and how long it took (seconds).
"""

import sys

AGREEMENT = {"Leaving", "Prepare", "Promise", "Nack", "Accept", "Vote", "Decide"}


def watch() -> None:
    import json
    import os
    import time
    from pathlib import Path

    from chaos.core.events import AnyEvent, LeaveRequested, Received
    from chaos.core.node import Node

    path = Path(os.environ["CHAOS_RUNTIME_DIR"]) / f"handling-{os.getpid()}.jsonl"
    handle = Node.handle

    def timed(node: Node, event: AnyEvent, now: float) -> object:
        start = time.perf_counter()
        actions = handle(node, event, now)
        took = time.perf_counter() - start
        what = type(event.message).__name__ if isinstance(event, Received) else type(event).__name__
        if what in AGREEMENT or isinstance(event, LeaveRequested):
            with path.open("a") as file:
                file.write(json.dumps([now, what, took]) + "\n")
        return actions

    Node.handle = timed  # type: ignore[assignment,method-assign]


if "chaos.agent.process" in sys.orig_argv:
    watch()
