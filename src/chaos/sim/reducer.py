"""The data plane of a simulated peer: direct reduce-scatter and all-gather over symbols.

Every member is root of one share. The real one (`agent/reduce.py`) does the same with bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from chaos.core.types import View
from chaos.sim.symbols import Part, Result

Frame = tuple[str, str, int, int, Result]
"""(kind, source, view id or mark, step, parts). Kinds: contribution, final, result."""


class Outlet(Protocol):
    """Where a reducer's frames and results go."""

    def send_frame(self, dst: str, kind: str, view_id: int, step: int, parts: Result) -> None: ...
    def round_complete(self, view_id: int, step: int, result: Result) -> None: ...
    def result_dropped(self, step: int) -> None: ...
    def roots_disagree(self, step: int, results: list[Result]) -> None: ...


@dataclass
class Round:
    """What one peer's reducer knows of one attempt."""

    known: dict[str, bool] = field(default_factory=dict)
    """Member to whether its part is without bytes."""
    arrived: dict[str, Result] = field(default_factory=dict)
    finals: dict[str, Result] = field(default_factory=dict)
    finalised: bool = False
    completed: bool = False


class Reducer:
    def __init__(self, me: str, outlet: Outlet, slots: int, disk_slots: int) -> None:
        self._me = me
        self._outlet = outlet
        self._slots = slots
        self.slots = slots + disk_slots
        """Results that there is room for, in memory or on disk."""
        self._views: tuple[View, ...] = ()
        self.finished = self._released = 0
        self._rounds: dict[tuple[int, int], Round] = {}
        self.results: dict[int, Result] = {}
        """What lies in the result ring, or on disk: until it is released."""
        self._on_disk: set[int] = set()
        self.moves_to = 0
        """Results up to this step go to disk: who reads one of them may find another in its place."""
        self._fetching: dict[int, tuple[int, int]] = {}
        """Step to the id that marks the frames and the id of the view that governs the step."""
        self._later: list[Frame] = []

    def _view_for(self, step: int) -> View | None:
        for view in reversed(self._views):
            if step >= view.first_step:
                return view
        return None

    def _governs(self, view_id: int, step: int) -> bool:
        view = self._view_for(step)
        return step > self.finished and view is not None and view.id == view_id

    def members_for(self, view_id: int, step: int) -> tuple[str, ...]:
        """To whom the own contribution goes."""
        view = self._view_for(step)
        return view.member_ids() if view is not None and view.id == view_id else ()

    def set_views(self, views: tuple[View, ...], finished: int) -> None:
        self._views, self.finished = views, finished
        self._rounds = {key: r for key, r in self._rounds.items() if self._governs(*key)}
        self._fetching = {s: kept for s, kept in self._fetching.items() if self._governs(kept[1], s)}
        self._retry()

    @property
    def _learns(self) -> bool:
        return self._views[-1].learner(self._me) is not None

    def _is_full(self, step: int) -> bool:
        if self._learns:
            first = self._released or min((s for _, s in self._rounds), default=step) - 1
            return step > first + self.slots
        slots = self._slots + len(self._on_disk)
        if step <= self.finished or len(self.results) + len(self._rounds) < slots:
            return False
        slots = max(slots, self.slots) if any(later > step for later in self.results) else slots
        taken = self.results.keys() | {s for (_, s), r in self._rounds.items() if r.arrived or r.finals}
        return step not in taken and len(taken) >= slots

    def _retry(self) -> None:
        later, self._later = self._later, []
        for frame in later:
            self.receive(*frame)

    def receive(self, kind: str, src: str, view_id: int, step: int, parts: Result) -> None:
        if not self._views or view_id > self._views[-1].id:
            self._later.append((kind, src, view_id, step, parts))
            return
        if self._is_full(step):
            if self._learns:
                self._outlet.result_dropped(step)
            else:
                self._later.append((kind, src, view_id, step, parts))
            return
        if kind == "result":
            if step > self.finished and self._fetching.get(step, (None, 0))[0] == view_id:
                self._complete(view_id, step, parts)
            return
        if step in self._fetching or not self._governs(view_id, step):
            return
        current = self._round(view_id, step)
        (current.arrived if kind == "contribution" else current.finals)[src] = parts
        self._check(view_id, step, current)

    def _round(self, view_id: int, step: int) -> Round:
        current = self._rounds.get((view_id, step))
        if current is None:
            current = self._rounds[(view_id, step)] = Round()
        return current

    def known(self, view_id: int, step: int, src: str, empty: bool) -> None:
        """`src` takes part in this attempt."""
        if step in self._fetching or not self._governs(view_id, step):
            return
        current = self._round(view_id, step)
        current.known[src] = empty
        self._check(view_id, step, current)

    def _check(self, view_id: int, step: int, current: Round) -> None:
        view = self._view_for(step)
        assert view is not None
        members = view.member_ids()
        waits = current.finalised or len(current.known) < len(members) or self._me not in members
        if not waits and all(m in current.known for m in members):
            real = [m for m in members if not current.known[m]]
            if real and len(current.arrived) >= len(real) and all(m in current.arrived for m in real):
                current.finalised = True
                parts: list[Part] = [part for m in real for part in current.arrived[m]]
                for other in view.everybody():
                    self._outlet.send_frame(other.id, "final", view_id, step, tuple(sorted(parts)))
        if len(current.finals) == len(members) and not current.completed:
            current.completed = True
            results = sorted(set(current.finals.values()))
            if len(results) > 1:
                self._outlet.roots_disagree(step, results)
            self._complete(view_id, step, results[0])

    def fetch(self, mark: int, step: int) -> None:
        """The result of `step` comes from a member that finished it, in frames marked `mark`."""
        view = self._view_for(step)
        assert view is not None
        self._rounds.pop((view.id, step), None)
        self._fetching[step] = (mark, view.id)

    def finish(self, step: int) -> None:
        self.finished = step
        self._fetching.pop(step, None)
        self._rounds = {key: r for key, r in self._rounds.items() if key[1] > step}

    def release(self, step: int) -> None:
        """Results up to this step are needed no more: their memory is used for others."""
        self._released = step
        for old in [s for s in self.results if s <= step]:
            del self.results[old]
            self._on_disk.discard(old)
        self._retry()

    def move(self, step: int) -> None:
        """Results up to this step, and no later ones, go to disk."""
        self.moves_to = step
        self._on_disk.update(s for s in self.results if s <= step)
        self._retry()

    def _complete(self, view_id: int, step: int, parts: Result) -> None:
        self.results[step] = parts
        self._outlet.round_complete(view_id, step, parts)
