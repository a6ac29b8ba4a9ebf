"""What real nodes did in a simulation, as far as it is about agreement: one list, in the order in which it happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from chaos.core import actions as act
from chaos.core import events as ev
from chaos.core.messages import Accept, Promise
from chaos.sim.peer import SimPeer

Seat = tuple[str, int]
"""A peer's id and incarnation."""


@dataclass(frozen=True)
class Record:
    at: float
    seat: Seat
    what: Any
    """An action that was carried out, or a `Received` with a promise."""


def _matters(action: act.AnyAction) -> bool:
    match action:
        case act.Persist() | act.SetViews() | act.OpenRound() | act.Finish():
            return True
        case act.Send(_, message):
            return isinstance(message, Accept)
        case act.Trace(kind, _):
            return kind in ("propose", "view")
    return False


@contextmanager
def recording() -> Iterator[list[Record]]:
    """All simulated peers write down what they hear and do, until the end of the block."""
    records: list[Record] = []
    handle, do = SimPeer.handle, SimPeer._do

    def note(peer: SimPeer, what: Any) -> None:
        records.append(Record(peer.world.now, (peer.info.id, peer.info.incarnation), what))

    def noted_handle(self: SimPeer, event: ev.AnyEvent) -> None:
        if self.alive and isinstance(event, ev.Received) and isinstance(event.message, Promise):
            note(self, event)
        handle(self, event)

    def noted_do(self: SimPeer, action: act.AnyAction) -> None:
        if _matters(action):
            note(self, action)
        do(self, action)

    SimPeer.handle, SimPeer._do = noted_handle, noted_do  # type: ignore[method-assign]
    try:
        yield records
    finally:
        SimPeer.handle, SimPeer._do = handle, do  # type: ignore[method-assign]
