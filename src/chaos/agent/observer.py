"""The agent's eyes: its trace, what others tell of theirs, and both for whoever asks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from chaos.agent.handling import Stopwatch
from chaos.agent.monitor import SAMPLE_S, SHARE, SPARE_S, Monitor
from chaos.agent.transport.link import LinkInfo
from chaos.observe.journal import AT_HOME, QUIET, Journal, brief
from chaos.observe.spread import Inbox, Outbox
from chaos.observe.trace import Place, TraceWriter

WORKER_LINES = 64
"""Lines that a worker is told at a boundary; the rest comes with the next one."""
MAX_ANSWER = 2**20
"""Bytes of lines in one answer to a client."""


class Observer:
    """For one agent and one thread."""

    def __init__(self, trace: TraceWriter, place: Place) -> None:
        trace.place = place
        self.causal = trace.causal
        self.stopwatch = Stopwatch()
        self.monitor = Monitor()
        self.spread_bytes = 0
        """Sent to other peers so far; the caller counts."""
        self._told: int | None = None
        """The number of the last line that the worker was told; None: it does not listen."""
        self._trace = trace
        self._journal = Journal()
        self._outbox = Outbox()
        self._inbox = Inbox()

    def write(self, kind: str, fields: dict[str, Any]) -> None:
        """One line of this peer's trace."""
        if kind == "handled":
            fields = fields | self.stopwatch.installed(fields["handling_ms"])
        elif kind == "commit":
            self.monitor.committed(fields["loss"])
        line = self._trace.write(kind, fields)
        if kind not in QUIET:
            at_home = kind in AT_HOME or "traceback" in line
            short = brief(line)
            self._journal.add(kind, short, at_home)
            if kind not in AT_HOME:
                self._outbox.add(kind, brief({k: v for k, v in line.items() if k != "traceback"}) if at_home else short)

    def sample(
        self, host: Mapping[str, Any], cards: list[dict[str, Any]], links: Mapping[str, LinkInfo],
        join: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        """What this peer measures, as a line like others. `links`: by the name of the other end."""
        self.write("sample", self.monitor.sample(host, cards, links, join, self.spread_bytes, time.monotonic()))

    def pause(self, links: Iterable[LinkInfo]) -> float:
        """Seconds until the next sample: more where telling others is more than `SHARE` of what this peer sends."""
        sent = sum(info.control_out + info.bulk_out for info in links)
        return SPARE_S if self.spread_bytes > SHARE * sent else SAMPLE_S

    def news(self) -> bytes:
        """A message for all other peers; empty if there is nothing to tell."""
        return self._outbox.take()

    def hear(self, peer: str, name: str, body: bytes, now: float) -> None:
        """Another peer's message. Raises RemoteProtocolError if it is none."""
        for line in self._inbox.take(peer, name, body, now):
            self._journal.add(line["kind"], brief(line))

    def lines(self, after: int, at_home: bool) -> dict[str, Any]:
        """Answer to a client: lines after that number, as text, and the number to ask with next.

        `at_home`: the client is of this peer's own party.
        """
        found, number = self._journal.since(after, MAX_ANSWER, at_home=at_home)
        return {"lines": [line.decode() for line in found], "next": number}

    def listen(self, wanted: bool) -> None:
        """Whether the worker wants to be told of events; a new worker is told of all that is kept."""
        self._told = 0 if wanted else None

    def for_worker(self) -> tuple[bytes, ...]:
        """What the worker was not told yet, as far as one message holds it; empty if it does not listen."""
        if self._told is None:
            return ()
        found, self._told = self._journal.since(self._told, MAX_ANSWER, WORKER_LINES)
        return tuple(found)

    def forget(self, present: set[str]) -> None:
        """Only these peers are listened to from now on."""
        self._inbox.forget(present)

    def close(self) -> None:
        self._trace.close()
