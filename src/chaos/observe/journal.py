"""The recent lines of all peers' traces in memory, for whoever asks: as many as fit, of each kind its share."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any

import msgspec

KEPT = {"view": 128, "handled": 256, "commit": 512, "sample": 1024}
"""Lines per kind; all other kinds share `OTHERS`. So a link that flaps pushes no view out."""
OTHERS = 2048
QUIET = frozenset({"trace", "stable", "boundary", "bucket"})
"""Kinds that say little once the next one is there: only the file has them."""
AT_HOME = frozenset({"warning", "checkpoint", "checkpoint_failed", "dial_failed", "link_refused", "parties"})
"""Kinds that may name files or addresses of this party's own: only its own clients are shown them."""
MAX_LINE = 4096
"""Bytes. A longer line is shortened by `brief`."""
MAX_TEXT = 1024
MAX_ITEMS = 64
_HOME = "at home"
_LONGEST = 200
"""Characters of a text in a line that is too long even so."""


class Journal:
    """Numbered lines, oldest first: 6,000 of at most 4 KiB."""

    def __init__(self) -> None:
        self._next = 1
        self._by_kind: dict[str, deque[tuple[int, bytes]]] = {
            kind: deque(maxlen=limit) for kind, limit in (*KEPT.items(), (_HOME, OTHERS), ("", OTHERS))
        }

    def add(self, kind: str, line: bytes, at_home: bool = False) -> None:
        """Keep a line, as `brief` made it. `at_home`: for clients of this party only."""
        self._by_kind[_HOME if at_home else kind if kind in KEPT else ""].append((self._next, line))
        self._next += 1

    def since(
        self, number: int, limit_bytes: int, limit: int = 10_000, at_home: bool = True
    ) -> tuple[list[bytes], int]:
        """Lines after that number, as many as fit (one at least), and the number to ask with next."""
        after = (tail(lines, number) for kind, lines in self._by_kind.items() if at_home or kind != _HOME)
        found: list[bytes] = []
        size = 0
        for at, line in heapq.merge(*after):
            if len(found) >= limit or (found and size + len(line) > limit_bytes):
                break
            found.append(line)
            size += len(line)
            number = at
        return found, number


def tail(lines: deque[tuple[int, bytes]], number: int) -> list[tuple[int, bytes]]:
    """Those with a higher number; looks at no more lines than it returns, and one."""
    found = []
    for entry in reversed(lines):
        if entry[0] <= number:
            break
        found.append(entry)
    return found[::-1]


def brief(line: dict[str, Any]) -> bytes:
    """The line as it leaves the agent: without what a traceback may tell of data, and of bounded size."""
    if "traceback" in line:
        line = line | {"traceback": places(str(line["traceback"]))}
    encoded = msgspec.json.encode({key: _cut(value, MAX_TEXT, MAX_ITEMS) for key, value in line.items()})
    if len(encoded) > MAX_LINE:
        encoded = msgspec.json.encode({key: _cut(value, _LONGEST, 8) for key, value in line.items()})
    if len(encoded) > MAX_LINE:
        plain = {
            key: _cut(line[key], _LONGEST, 0) for key in list(line)[:16] if not isinstance(line[key], (dict, list))
        }
        encoded = msgspec.json.encode(plain)
    return encoded


def places(traceback: str) -> str:
    """Files, lines and functions, and the class of the error: neither source lines nor the error's text."""
    lines = traceback.rstrip().splitlines()
    frames = [line.strip() for line in lines if line.startswith('  File "')]
    last = next((line for line in reversed(lines) if line and not line.startswith(" ")), "")
    return "\n".join([*frames[-12:], last.split(":", 1)[0]])


def _cut(value: Any, text: int, items: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= text else value[: text - 3] + "..."
    if isinstance(value, dict):
        return {str(key)[:128]: _cut(item, text, items) for key, item in list(value.items())[:items]}
    return [_cut(item, text, items) for item in value[:items]] if isinstance(value, (list, tuple)) else value
