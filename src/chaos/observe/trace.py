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
from chaos.observe.causal import CausalClock

TRACE_VERSION = 2
LIMIT_BYTES = 64 * 2**20

Place = Callable[[], tuple[int, int]]
"""The installed view's id and the last finished step of the peer that writes."""
_OWN = frozenset({"t", "wall", "stamp", "n", "in_view", "at_step", "kind"})
"""Keys that no event may have; what an event calls 'peer' is written as 'about'."""


class TraceWriter:
    """Appends to a file. When it would exceed its limit it becomes FILE.1, replacing an older one.

    For one thread. docs/trace.md says what a line has. Bytes become hexadecimal digits, and a field named `peer`
    becomes `about`, as it is the peer that the event is about.
    """

    def __init__(
        self,
        path: Path,
        peer_name: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        limit_bytes: int = LIMIT_BYTES,
        on_failure: Callable[[str], None] | None = None,
        causal: CausalClock | None = None,
    ) -> None:
        """`on_failure` is told, once, why nothing more is written. `causal`: None makes one of `wall`.

        Raises:
            ChaosError: the file can't be opened.
        """
        self.path = path
        self.failed = ""
        """Empty, or why nothing more is written."""
        self.causal = causal or CausalClock(wall)
        self.place: Place = lambda: (0, 0)
        """The writer's owner says here how far it has come."""
        self._peer = peer_name
        self._number = 0
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

    def write(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Writes one line, and returns it. Whatever happens to the disk, nothing is raised: see `failed`."""
        line = self._line(kind, fields)
        if self._fd >= 0:
            self._append(encode_line(line))
        return line

    def close(self) -> None:
        """Nothing is written from here on. Twice is fine."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _line(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        if clash := _OWN & fields.keys():
            raise ValueError(f"an event of kind {kind} has the field {min(clash)}, which every line has")
        view, step = self.place()
        line: dict[str, Any] = {
            "t": self._clock(), "wall": self._wall(), "stamp": self.causal.stamp(), "n": self._number,
            "peer": self._peer, "in_view": view, "at_step": step, "kind": kind,
        }  # fmt: skip
        self._number += 1
        for key, value in fields.items():
            line["about" if key == "peer" else key] = _plain(value)
        return line

    def _first_line(self) -> bytes:
        return encode_line(self._line("trace", {"version": TRACE_VERSION}))

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


def trace_files(directory: Path) -> list[Path]:
    """The traces in a directory and below. Raises ChaosError if there are none."""
    found = sorted(directory.rglob("*.jsonl"))
    if not found:
        raise ChaosError(f"there is no trace (*.jsonl) in {directory}: give the directory of --trace FILE")
    return found


class Tail:
    """Follows a file that is being written, also while it becomes the older one. What is not there yet comes later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file: tuple[int, int] | None = None
        """Device and inode of the file that was read last."""

    def read(self) -> list[dict[str, Any]]:
        """Lines since the last call; at the first, with those of the older part. Raises ChaosError as `read`."""
        try:
            return self._read()
        except OSError as error:
            raise ChaosError(f"cannot read {self._path}: {error.strerror}") from error

    def _read(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        older = _older(self._path)
        if self._file is None or (self._path.exists() and _identity(self._path) != self._file):
            if older.exists() and (self._file is None or _identity(older) == self._file):
                found += self._rest(older)
            self._offset, self._file = 0, None
        if self._path.exists():
            self._file = _identity(self._path)
            found += self._rest(self._path)
        return found

    def _rest(self, path: Path) -> list[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        first = 1 if self._offset == 0 else 2
        self._offset += len(complete)
        return [_decode(line, first + number, path) for number, line in enumerate(complete.splitlines())]


def merge(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of several peers' traces in causal order, each with its older part (FILE.1) if there is one."""
    wanted = list(dict.fromkeys(path.resolve() for path in paths))
    older = {_older(path) for path in wanted}
    found: list[list[dict[str, Any]]] = []
    for path in wanted:
        if path not in older:
            parts = (_older(path), path) if _older(path).exists() else (path,)
            found.append([line for part in parts for line in read(part)])
    return in_order(found)


def in_order(traces: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines of several writers in causal order: by their stamps, those of one writer as it wrote them.

    Stamps of one writer fall only where it was restarted after its host's clock had been set back.
    """
    keyed: list[tuple[int, dict[str, Any]]] = []
    for lines in traces:
        latest = 0
        for line in lines:
            latest = max(latest, line["stamp"])
            keyed.append((latest, line))
    keyed.sort(key=lambda pair: pair[0])
    return [line for _, line in keyed]


def encode_line(line: dict[str, Any]) -> bytes:
    """One line of a file, with its line break."""
    return msgspec.json.encode(line) + b"\n"


def is_line(content: Any) -> bool:
    """Whether this is a line of a trace, as far as all kinds have it in common."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("wall"), (int, float))
        and isinstance(content.get("stamp"), int)
        and isinstance(content.get("kind"), str)
        and isinstance(content.get("peer"), str)
    )


def _decode(line: bytes, number: int, path: Path) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ChaosError(f"line {number} of {path} is damaged: remove it") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    if number == 1 and kind != "trace":
        raise ChaosError(f"{path} is no trace: it does not begin with a version")
    if kind == "trace" and content.get("version") != TRACE_VERSION:
        raise ChaosError(f"{path} is a trace of version {content.get('version')}; this chaos reads {TRACE_VERSION}")
    if not is_line(content):
        raise ChaosError(f"{path} is no trace: its line {number} lacks time, stamp, peer or kind")
    return dict(content)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


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
