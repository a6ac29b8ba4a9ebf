"""Python runs this when it starts with this directory on PYTHONPATH: an agent then notes how long its parts take.

One line of JSON each in CHAOS_RUNTIME_DIR: handling-PID.jsonl for every call of `Node.handle` that agreement or
leaving is about (when, in monotonic seconds; what; seconds), observing-PID.jsonl once a second (when; seconds of
processor time so far by what; of the whole process).
"""

import sys

AGREEMENT = {"Leaving", "Prepare", "Promise", "Nack", "Accept", "Vote", "Decide"}
OBSERVING = ("write", "hear", "news", "sample", "lines", "for_worker")


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


def watch_observer() -> None:
    import json
    import os
    import time
    from pathlib import Path
    from typing import Any

    from chaos.agent.host import Host
    from chaos.agent.observer import Observer

    path = Path(os.environ["CHAOS_RUNTIME_DIR"]) / f"observing-{os.getpid()}.jsonl"
    spent: dict[str, float] = {}
    depth = {"now": 0}
    last = {"at": 0.0}

    def timed(owner: type, name: str, outermost: bool) -> None:
        plain = getattr(owner, name)

        def call(*given: Any) -> Any:
            start = time.thread_time()
            depth["now"] += outermost
            try:
                return plain(*given)
            finally:
                depth["now"] -= outermost
                if not outermost or depth["now"] == 0:  # `sample` calls `write`
                    spent[name] = spent.get(name, 0.0) + time.thread_time() - start
                now = time.monotonic()
                if now - last["at"] > 1.0:
                    last["at"] = now
                    with path.open("a") as file:
                        file.write(json.dumps([now, spent, time.process_time()]) + "\n")

        setattr(owner, name, call)

    for name in OBSERVING:
        timed(Observer, name, True)
    for name in ("sample", "cards"):
        timed(Host, name, False)


if "chaos.agent.process" in sys.orig_argv:
    watch()
    watch_observer()
