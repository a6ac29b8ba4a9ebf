"""The trace of a peer: one line of JSON per event or decision, with its reason.

Lines are handed to the kernel one by one, so a killed process loses none that it has written. A full disk
ends the trace, not the run.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from chaos.core.errors import ChaosError

TRACE_VERSION = 1
LIMIT_BYTES = 64 * 2**20

_OWN = frozenset({"t", "wall", "kind"})
"""Keys that no event may have; what an event calls 'peer' is written as 'about'."""


class TraceWriter:
    """Appends to a file. When it would exceed its limit it becomes FILE.1, replacing an older one.

    For one thread. A line has `t` (monotonic seconds, comparable within one process only), `wall` (seconds since
    1970), `peer` (who wrote it), `kind`, and the event's own fields: bytes as hexadecimal digits, and a field
    named `peer` as `about`, as it is the peer that the event is about.
    """

    def __init__(
        self,
        path: Path,
        peer_name: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        limit_bytes: int = LIMIT_BYTES,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """`on_failure` is told, once, why nothing more is written.

        Raises:
            ChaosError: the file can't be opened.
        """
        self.path = path
        self.failed = ""
        """Empty, or why nothing more is written."""
        self._peer = peer_name
        self._clock = clock
        self._wall = wall
        self._limit = limit_bytes
        self._on_failure = on_failure
        self._fd = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            self.close()
            raise ChaosError(f"cannot write the trace {path}: {error.strerror}; give another with --trace") from error
        self._append(self._first_line())

    def write(self, kind: str, fields: dict[str, Any]) -> None:
        """Writes one line. Whatever happens to the disk, nothing is raised: see `failed`."""
        self._append(self._line(kind, fields))

    def close(self) -> None:
        """Nothing is written from here on. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _line(self, kind: str, fields: dict[str, Any]) -> bytes:
        if clash := _OWN & fields.keys():
            raise ValueError(f"an event of kind {kind} has the field {min(clash)}, which every line has")
        line = {"t": self._clock(), "wall": self._wall(), "peer": self._peer, "kind": kind}
        for key, value in fields.items():
            line["about" if key == "peer" else key] = _plain(value)
        return msgspec.json.encode(line) + b"\n"

    def _first_line(self) -> bytes:
        return self._line("trace", {"version": TRACE_VERSION})

    def _open(self) -> None:
        """Opens the file, and cuts off what a full disk or a dead host left of its last line."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        status = os.fstat(self._fd)
        self._regular = stat.S_ISREG(status.st_mode)
        self._size = status.st_size
        if self._regular and self._size:
            self._size = _end_of_last_line(self._fd, self._size)
            os.ftruncate(self._fd, self._size)

    def _append(self, line: bytes) -> None:
        if self._fd < 0:
            return
        try:
            if self._regular and self._size > 0 and self._size + len(line) > self._limit:
                self._rotate()
            written = os.write(self._fd, line)
            if written < len(line):
                os.ftruncate(self._fd, self._size)
                raise OSError(0, "no space left")
            self._size += written
        except OSError as error:
            self.close()
            self.failed = f"the trace {self.path} ends here: {error.strerror}"
            if self._on_failure is not None:
                self._on_failure(self.failed)

    def _rotate(self) -> None:
        self.close()
        self.path.replace(_older(self.path))
        self._open()
        first = self._first_line()
        self._size += os.write(self._fd, first)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of one file in order; a last line that is not complete is left out.

    Raises:
        ChaosError: it can't be read, is no trace, is damaged, or a later version's.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield _decode(line, number, path)
    except OSError as error:
        raise ChaosError(f"cannot read {path}: {error.strerror}") from error


def merge(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of several peers' traces in order of wall time, each with its older part (FILE.1) if there is one.

    Lines of one peer keep the order in which it wrote them, also if its clock was set back in between.
    """
    keyed: list[tuple[float, dict[str, Any]]] = []
    wanted = list(dict.fromkeys(path.resolve() for path in paths))
    older = {_older(path) for path in wanted}
    for path in wanted:
        if path in older:
            continue
        latest = 0.0
        for part in (_older(path), path):
            for line in read(part) if part == path or part.exists() else ():
                latest = max(latest, line["wall"])
                keyed.append((latest, line))
    keyed.sort(key=lambda pair: pair[0])
    return [line for _, line in keyed]


def _decode(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ChaosError(f"line {number} of {path} is damaged: remove it") from error
    if not isinstance(content, dict) or not isinstance(content.get("wall"), (int, float)) or "kind" not in content:
        raise ChaosError(f"{path} is no trace: its line {number} lacks time or kind")
    if number == 1 and content["kind"] != "trace":
        raise ChaosError(f"{path} is no trace: it does not begin with a version")
    if content["kind"] == "trace" and content.get("version") != TRACE_VERSION:
        raise ChaosError(f"{path} is a trace of version {content.get('version')}; this chaos reads {TRACE_VERSION}")
    return content


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _end_of_last_line(fd: int, size: int) -> int:
    """How many bytes there are up to and with the last line break."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _plain(value: Any) -> Any:
    """Bytes as hexadecimal digits, however deep they lie; records as lists; anything unknown as its text."""
    return _hex(msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview), str_keys=True, enc_hook=str))


def _hex(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return value.hex()
    if isinstance(value, dict):
        return {_hex(key): _hex(item) for key, item in value.items()}
    return [_hex(item) for item in value] if isinstance(value, (list, tuple)) else value
