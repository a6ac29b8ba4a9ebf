"""Runs a recorded agent's node again: the same events at the same times have to give the same actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.core.context import NodeConfig
from chaos.core.detector import DetectorConfig
from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.node import Node
from chaos.observe.record import Head, Recording, digest_of


@dataclass
class Replay:
    """What came of it."""

    peer: str
    events: int = 0
    views: int = 0
    steps: int = 0
    differs: str = ""
    """The first event after which the node did something else; empty if there is none."""


def _config(head: Head, verify: Callable[[bytes, bytes, bytes], bool]) -> NodeConfig:
    """Raises ChaosError: it has options that this version does not know."""
    try:
        fields: dict[str, Any] = {**head.config, "detector": DetectorConfig(**head.detector)}
        return NodeConfig(verify=verify, **fields)
    except TypeError as error:
        raise ChaosError(f"the recording is of another version of chaos: {error}") from error


def replay(path: Path) -> Replay:
    """Raises ChaosError: it can't be read, or is no recording."""
    with Recording(path) as recording:
        head, refused = recording.head, False
        # Signatures were checked when it was recorded; whether an event was refused is in the recording.
        node = Node(head.me, _config(head, lambda *_: not refused), head.founding)
        result, began = Replay(head.me.name), None
        for entry in recording.entries():
            began = entry.now if began is None else began
            refused = entry.refused
            try:
                found = digest_of(node.handle(entry.decode(), entry.now))
            except RemoteProtocolError:
                found = b""
            result.events += 1
            if found != entry.actions:
                result.differs = f"event {result.events} ({entry.kind}, {entry.now - began:.3f} s after the first)"
                break
        result.views = node.ctx.view.id if node.ctx.views else 0
        result.steps = node.steps.finished
        return result
