"""Keeps several processes in step: a driver says when each of them begins a part, and gets back what it measured.

One JSON value per line over a Unix socket. Every wait ends after `PATIENCE_S`.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE_S = 150.0


class Gate:
    """The driver's end. `with Gate(path) as gate: gate.gather("chaos", 3)`."""

    def __init__(self, path: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(16)
        self._server.settimeout(PATIENCE_S)
        self._groups: dict[str, list[Caller]] = {}

    def __enter__(self) -> Gate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for callers in self._groups.values():
            for caller in callers:
                caller.close()
        self._server.close()

    def gather(self, group: str, count: int) -> None:
        """Wait until so many processes that call themselves `group` are connected."""
        while len(self._groups.get(group, ())) < count:
            sock, _ = self._server.accept()
            caller = Caller(sock)
            self._groups.setdefault(caller.hear(), []).append(caller)

    def all_do(self, group: str, what: str) -> list[Any]:
        """Have all of a group begin this part at once; returns their answers when the last has come."""
        callers = self._groups[group]
        for caller in callers:
            caller.say(what)
        return [caller.hear() for caller in callers]

    def dismiss(self, group: str) -> None:
        """Let a group go on without us."""
        for caller in self._groups.pop(group, []):
            caller.close()


class Caller:
    """One end of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self._sock = sock
        self._lines = sock.makefile("r")

    @classmethod
    def join(cls, path: str, group: str) -> Caller:
        """A worker's end."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        caller = cls(sock)
        caller.say(group)
        return caller

    def say(self, value: Any) -> None:
        self._sock.sendall(json.dumps(value).encode() + b"\n")

    def hear(self) -> Any:
        """Raises EOFError if the other end is gone."""
        line = self._lines.readline()
        if not line:
            raise EOFError("the other end of the gate is gone")
        return json.loads(line)

    def close(self) -> None:
        self._lines.close()
        self._sock.close()
