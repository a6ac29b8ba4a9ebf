"""A worker starts at normal priority, and yields to the agents on its host once it is registered."""

from __future__ import annotations

import os
import subprocess
import sys

ALL_THREADS = """
import os, threading
from chaos.train.launch import yield_to_agents
rest = threading.Event()
threading.Thread(target=rest.wait, daemon=True).start()
yield_to_agents(os.environ)
tasks = os.listdir("/proc/self/task")
print(len(tasks), *{os.getpriority(os.PRIO_PROCESS, int(task)) for task in tasks})
rest.set()
"""


def niceness(**environment: str) -> list[int]:
    """Number of threads, and the nice values that they have."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_THREADS], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_all_threads_of_a_registered_worker_yield() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert niceness(CHAOS_WORKER_NICE="3") == [2, own + 3]


def test_a_session_outside_chaos_run_keeps_its_priority() -> None:
    assert niceness() == [2, os.getpriority(os.PRIO_PROCESS, 0)]
