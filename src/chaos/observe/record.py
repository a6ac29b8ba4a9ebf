"""A recording of what one node was told: every event with its time, and a digest of what the node wanted done.

As a node is a function of its events, this is all it takes to run it again (`chaos sim --replay`). Frames of u32
length (little-endian) and msgpack: first a `Head`, then an `Entry` per event.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, get_args

import msgspec

from chaos.core.actions import AnyAction
from chaos.core.context import NodeConfig
from chaos.core.detector import DetectorConfig
from chaos.core.errors import ChaosError
from chaos.core.events import AnyEvent
from chaos.core.node import Founding
from chaos.core.types import PeerInfo

RECORD_VERSION = 1
_LENGTH = struct.Struct("<I")
_EVENTS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(AnyEvent)}
_NOT_RECORDED = ("verify", "detector")
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding bytes that are damaged may raise."""
MAX_FRAME = 64 * 2**20
"""Bytes of one event: far above the largest message, and no more memory than that is made for a damaged length."""


class Head(msgspec.Struct, frozen=True):
    """Whose recording this is."""

    version: int
    me: PeerInfo
    config: dict[str, float | int | str | None]
    """All of `NodeConfig` but what follows from the program."""
    detector: dict[str, float]
    founding: Founding | None


class Entry(msgspec.Struct, frozen=True, array_like=True):
    now: float
    kind: str
    event: msgspec.Raw
    refused: bool
    """The node took the event for a breach of the protocol."""
    actions: bytes
    """Digest of the actions in order; empty if it was refused."""

    def decode(self) -> AnyEvent:
        """Raises ChaosError."""
        try:
            event: AnyEvent = msgspec.msgpack.decode(self.event, type=_EVENTS[self.kind])
        except (KeyError, *_BROKEN) as error:
            raise ChaosError(f"the recording has an event {self.kind} that can't be read: {error}") from error
        return event


def digest_of(actions: Sequence[AnyAction]) -> bytes:
    """Equal for two lists of actions exactly if they are (but for hash collisions)."""
    body = msgspec.msgpack.encode([(type(action).__name__, action) for action in actions], enc_hook=str)
    return hashlib.blake2b(body, digest_size=8).digest()


class Recorder:
    """Writes a recording. For one thread.

    Events are handed to the kernel one by one, so that a killed agent's last ones are there. A recording that is at
    PATH already, such as that of the agent before a restart, becomes PATH.1. A full disk ends the recording.
    """

    def __init__(self, path: Path, config: NodeConfig, founding: Founding | None) -> None:
        """Raises ChaosError: the file can't be written."""
        self._config, self._founding = config, founding
        self._begun = False
        self._path = path
        try:
            if path.is_file() and path.stat().st_size:
                path.rename(path.with_name(path.name + ".1"))
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ChaosError(f"cannot write the recording {path}: {error.strerror}; give another --record") from error

    def write(self, me: PeerInfo, now: float, event: AnyEvent, actions: Sequence[AnyAction] | None) -> None:
        """One event and what came of it; `actions` is None if the event was refused."""
        if not self._begun:
            self._begun = True
            config = {k: getattr(self._config, k) for k in self._config.__dataclass_fields__ if k not in _NOT_RECORDED}
            detector = {k: getattr(self._config.detector, k) for k in DetectorConfig.__dataclass_fields__}
            self._frame(Head(RECORD_VERSION, me, config, detector, self._founding))
        raw = msgspec.Raw(msgspec.msgpack.encode(event))
        digest = b"" if actions is None else digest_of(actions)
        self._frame(Entry(now, type(event).__name__, raw, actions is None, digest))

    def _frame(self, content: Head | Entry) -> None:
        body = msgspec.msgpack.encode(content)
        if self._file.closed:
            return
        try:
            whole = self._file.write(_LENGTH.pack(len(body)) + body) == _LENGTH.size + len(body)
            reason = "" if whole else "no space left"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            self._file.close()
            print(f"chaos: warning: the recording {self._path} ends here: {reason}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._file.close()


class Recording:
    """Reads one; a last frame that is not whole is left out. Use with `with`."""

    def __init__(self, path: Path) -> None:
        """Raises ChaosError: it can't be read, or is no recording."""
        self._path = path
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ChaosError(f"cannot read {path}: {error.strerror}") from error
        try:
            self.head = msgspec.msgpack.decode(self._next() or b"", type=Head)
        except _BROKEN as error:
            self._file.close()
            raise ChaosError(f"{path} is no recording of `chaos run --record`: {error}") from error
        if self.head.version != RECORD_VERSION:
            self._file.close()
            raise ChaosError(f"{path} is a recording of version {self.head.version}; this chaos reads {RECORD_VERSION}")

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def _next(self) -> bytes | None:
        length = self._file.read(_LENGTH.size)
        if len(length) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack(length)
        if size > MAX_FRAME:
            raise msgspec.DecodeError(f"an event of {size} bytes")
        body = self._file.read(size)
        return body if len(body) == size else None

    def entries(self) -> Iterator[Entry]:
        """Raises ChaosError at one that is damaged."""
        number = 0
        try:
            while (body := self._next()) is not None:
                number += 1
                yield msgspec.msgpack.decode(body, type=Entry)
        except _BROKEN as error:
            raise ChaosError(f"{self._path}: event {number} is damaged: {error}") from error
