"""Traces of several peers on one host, read while they are being written, in the order of time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        self._paths = dict(paths)
        self._offsets = dict.fromkeys(paths, 0)

    def read(self) -> list[Entry]:
        """What has been written since the last call."""
        entries = [entry for peer in self._paths for entry in self._read_one(peer)]
        return sorted(entries, key=lambda entry: entry.t)

    def _read_one(self, peer: str) -> list[Entry]:
        path = self._paths[peer]
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self._offsets[peer])
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offsets[peer] += len(complete)
        return [parse(peer, line) for line in complete.splitlines()]


def parse(peer: str, line: bytes) -> Entry:
    """One complete line of `peer`'s trace."""
    fields: dict[str, Any] = json.loads(line)
    return Entry(peer, fields["t"], fields["kind"], fields)
