"""Traces of several peers on one host, read while they are being written, in the order of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.observe.trace import Tail


@dataclass(frozen=True)
class Entry:
    """One line of a peer's trace."""

    peer: str
    """Name of the peer whose trace it stands in."""
    t: float
    """Seconds on the host's monotonic clock, which all processes of a host share."""
    kind: str
    fields: Mapping[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]


class TraceFiles:
    """Follows one file per peer. A file that does not exist yet, or a line that is being written, is read later."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._tails = {peer: Tail(path) for peer, path in paths.items()}

    def read(self) -> list[Entry]:
        """What has been written since the last call. Raises ChaosError as `Tail.read`."""
        entries = [
            Entry(peer, line["t"], line["kind"], line) for peer, tail in self._tails.items() for line in tail.read()
        ]
        return sorted(entries, key=lambda entry: entry.t)
