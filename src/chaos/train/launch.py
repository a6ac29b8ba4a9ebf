"""Find this worker's agent, or start one."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path

AGENT = "CHAOS_AGENT"
"""Path of the agent's Unix socket ('@name': abstract). `chaos run` sets it."""
NICE = "CHAOS_WORKER_NICE"
"""By how much a registered worker yields to the agents on its host. `chaos run` sets it."""
STARTS_AGENT = ("CHAOS_JOIN", "CHAOS_LISTEN")
"""Addresses to join or to listen at: with one of them a script outside `chaos run` starts its own agent."""


def agent_address(environ: Mapping[str, str]) -> str | None:
    """Where the agent listens; None if the environment names no run, so that the script trains alone."""
    if address := environ.get(AGENT):
        return address
    if any(environ.get(name) for name in STARTS_AGENT):
        launcher = importlib.import_module("chaos.agent.launcher")
        return str(launcher.start_agent(environ))
    return None


def yield_to_agents(environ: Mapping[str, str]) -> None:
    """All threads of this process, as Linux gives each a nice value of its own; later ones inherit it."""
    if not (by := int(environ.get(NICE, "0"))):
        return
    for task in Path("/proc/self/task").iterdir():
        thread = int(task.name)
        try:
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + by)
        except ProcessLookupError:
            continue  # it ended just now
