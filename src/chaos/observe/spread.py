"""How peers tell each other what they see: trace lines in small messages of their own, beside the protocol's.

They decide nothing, so losing them is harmless. A message holds 16 KiB at most, and a peer that sends more than
`RATE` a second is not listened to for the rest of it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from chaos.core.errors import RemoteProtocolError
from chaos.observe.trace import is_line

MAX_BYTES = 16 * 1024
MAX_LINES = 128
WAITING = 512
"""Lines that wait to be sent; where more come, the others are not told of the oldest. The file has all."""
RATE = 8
"""Messages a second from one peer; an honest one sends four."""
OWN = frozenset({"commit", "view"})
"""Kinds that each member sees for itself. Nobody is told them, and nobody's word is taken for them."""

_decoder = msgspec.json.Decoder(list[dict[str, Any]])


class Outbox:
    """Lines that the others have not been told yet."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=WAITING)

    def add(self, kind: str, line: bytes) -> None:
        """Tell the others of it, unless it is of a kind that is of no use to them."""
        if kind not in OWN:
            self._lines.append(line)

    def take(self) -> bytes:
        """The next message; empty if there is nothing to tell."""
        taken: list[bytes] = []
        size = 2
        while self._lines and len(taken) < MAX_LINES and size + len(self._lines[0]) + 1 <= MAX_BYTES:
            taken.append(self._lines.popleft())
            size += len(taken[-1]) + 1
        return b"[" + b",".join(taken) + b"]" if taken else b""


class Inbox:
    """What others tell, checked."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[int, int]] = {}
        """Peer -> (second, messages in it)."""

    def take(self, peer: str, name: str, body: bytes, now: float) -> list[dict[str, Any]]:
        """Lines in a message from `peer`, whose `name` they get, whatever they say. Empty if it sends too many.

        Raises:
            RemoteProtocolError: they are no lines, or too many of them.
        """
        second, count = self._heard.get(peer, (int(now), 0))
        count = count + 1 if second == int(now) else 1
        self._heard[peer] = int(now), count
        if count > RATE:
            return []
        if len(body) > MAX_BYTES:
            raise RemoteProtocolError(f"a message of trace lines has {len(body)} bytes; {MAX_BYTES} are allowed")
        try:
            lines = _decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise RemoteProtocolError(f"trace lines do not decode: {error}") from error
        named = [line | {"peer": name} for line in lines]
        if len(named) > MAX_LINES or not all(is_line(line) for line in named):
            raise RemoteProtocolError("a message of trace lines has too many, or what is none")
        return [line for line in named if line["kind"] not in OWN]

    def forget(self, present: set[str]) -> None:
        """Only these peers may still send."""
        self._heard = {peer: heard for peer, heard in self._heard.items() if peer in present}
