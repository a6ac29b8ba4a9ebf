"""Find this worker's agent, or start one."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

AGENT = "CHAOS_AGENT"
"""Path of the agent's Unix socket ('@name': abstract). `chaos run` sets it."""
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
