"""The agent's eyes: its trace, what others tell of theirs, and both for whoever asks."""

from __future__ import annotations

from typing import Any

from chaos.agent.handling import Stopwatch
from chaos.observe.journal import QUIET, Journal, brief
from chaos.observe.spread import Inbox, Outbox
from chaos.observe.trace import Place, TraceWriter

MAX_ANSWER = 2**20
"""Bytes of lines in one answer to a client."""


class Observer:
    """For one agent and one thread."""

    def __init__(self, trace: TraceWriter, place: Place) -> None:
        trace.place = place
        self.causal = trace.causal
        self.stopwatch = Stopwatch()
        self.spread_bytes = 0
        """Sent to other peers so far; the caller counts."""
        self._trace = trace
        self._journal = Journal()
        self._outbox = Outbox()
        self._inbox = Inbox()

    def write(self, kind: str, fields: dict[str, Any]) -> None:
        """One line of this peer's trace."""
        if kind == "handled":
            fields = fields | self.stopwatch.installed(fields["handling_ms"])
        line = self._trace.write(kind, fields)
        if kind not in QUIET:
            short = brief(line)
            self._journal.add(kind, short)
            self._outbox.add(kind, short)

    def news(self) -> bytes:
        """A message for all other peers; empty if there is nothing to tell."""
        return self._outbox.take()

    def hear(self, peer: str, name: str, body: bytes, now: float) -> None:
        """Another peer's message. Raises RemoteProtocolError if it is none."""
        for line in self._inbox.take(peer, name, body, now):
            self._journal.add(line["kind"], brief(line))

    def lines(self, after: int) -> dict[str, Any]:
        """Answer to a client: lines after that number, as text, and the number to ask with next."""
        found, number = self._journal.since(after, MAX_ANSWER)
        return {"lines": [line.decode() for line in found], "next": number}

    def forget(self, present: set[str]) -> None:
        """Only these peers are listened to from now on."""
        self._inbox.forget(present)

    def close(self) -> None:
        self._trace.close()
