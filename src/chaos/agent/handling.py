"""How much of handling a change of the view was work, and how much was waiting."""

from __future__ import annotations

import time
from typing import Any

from chaos.core import events as ev
from chaos.core import messages as msg

_MESSAGES = (
    msg.Prepare, msg.Promise, msg.Nack, msg.Accept, msg.Vote, msg.Decide, msg.Leaving, msg.LinkWish, msg.WorkerDown,
    msg.Admit, msg.Ready, msg.Seal, msg.Goodbye, msg.ProbeReply,
)  # fmt: skip
_EVENTS = (ev.LeaveRequested, ev.LinkWanted, ev.LinkDown, ev.WorkerDied, ev.WordsFound)


class Stopwatch:
    """Adds up the processor time of this thread that the next change of the view takes, until it is installed."""

    def __init__(self) -> None:
        self._thinking = 0.0
        self._acting = 0.0
        self._since = 0.0
        self._counts = False

    def begin(self) -> None:
        """The node is about to handle an event."""
        self._since = time.thread_time()

    def thought(self, event: ev.AnyEvent, before: tuple[bool, int], after: tuple[bool, int]) -> None:
        """The node has handled it; `Handling.stage` before and after. Actions follow."""
        concerns = isinstance(event, _EVENTS) or (
            isinstance(event, ev.Received) and isinstance(event.message, _MESSAGES)
        )
        self._counts = concerns or before != after
        if self._counts:
            now = time.thread_time()
            self._thinking += now - self._since
            self._since = now

    def installed(self, handling_ms: float) -> dict[str, Any]:
        """What the trace's line on the installed view gets, in milliseconds; then it starts at zero."""
        acting = self._acting + (time.thread_time() - self._since if self._counts else 0.0)
        thinking_ms, acting_ms = self._thinking * 1000, acting * 1000
        waiting = max(handling_ms - thinking_ms - acting_ms, 0.0)
        self._thinking = self._acting = 0.0
        self._counts = False
        parts = {"computing_ms": thinking_ms, "acting_ms": acting_ms, "waiting_ms": waiting}
        return {name: round(value, 3) for name, value in parts.items()}

    def acted(self, is_open: bool) -> None:
        """The event's actions are carried out. With nothing under way any more, what it took is nobody's."""
        if self._counts:
            self._acting += time.thread_time() - self._since
        if not is_open:
            self._thinking = self._acting = 0.0
