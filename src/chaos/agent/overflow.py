"""Results for which there is no memory: on disk while there is room, and let go once there is not.

A learner's results wait for its state; a member's wait for learners that are behind. Nobody else needs them, so they
must not take the memory of the steps to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from chaos.agent.rounds import Round
from chaos.agent.shared_memory import ResultRing
from chaos.core.errors import ChaosError
from chaos.core.events import ResultDropped, ResultMemory

TOLD = 2
"""The bytes on disk are told again once they have grown by this factor."""


class Overflow:
    """`results`: the finished rounds that are kept, by step; their place changes when they go to disk."""

    def __init__(
        self,
        ring: ResultRing,
        results: Mapping[int, Round],
        happened: Callable[[ResultMemory | ResultDropped], None],
        note: Callable[[str, dict[str, Any]], None],
        resume: Callable[[], None],
    ) -> None:
        self._ring = ring
        self._results = results
        self._happened = happened
        self._note = note
        self._resume = resume
        self._obstacle = ""
        """Why nothing goes to disk any more."""
        self._move_to = 0
        self._moving: asyncio.Task[None] | None = None
        self._told_bytes = 0
        self._dropped = 0
        """The last step of which it was said that it was dropped."""

    def allocate(self) -> int | None:
        """A slot on disk; None if there is no room."""
        if self._obstacle:
            return None
        try:
            slot = self._ring.allocate_on_disk()
        except ChaosError as error:
            self._give_up(str(error))
            return None
        self.say()
        return slot

    def dropped(self, step: int) -> None:
        """There was no room for this result. The core hears of it in the next turn, as a frame is being received."""
        if step != self._dropped:
            self._dropped = step
            asyncio.get_running_loop().call_soon(self._happened, ResultDropped(step, self._full()))

    def _full(self) -> str:
        ring = self._ring
        text = f"{ring.slots} results of {ring.nbytes / 1e6:.1f} MB fill its memory for them"
        if ring.bytes_on_disk:
            text += f", {ring.bytes_on_disk / 1e6:.0f} MB more wait on disk"
        return text + (f" ({self._obstacle})" if self._obstacle else "")

    def move(self, step: int) -> None:
        """Results up to this step, and no later ones, are to go to disk. A thread writes them, one after the other."""
        self._move_to = step
        if not self._obstacle and (self._moving is None or self._moving.done()):
            self._moving = asyncio.get_running_loop().create_task(self._move_all())

    async def _move_all(self) -> None:
        ring, loop = self._ring, asyncio.get_running_loop()
        while (done := self._next()) is not None and (slot := self.allocate()) is not None:
            try:
                await loop.run_in_executor(None, ring.write, slot, done.result)
            except OSError as error:
                ring.free(slot)
                self._give_up(f"cannot write results to disk: {error.strerror}")
                return
            if self._results.get(done.step) is done and done.step <= self._move_to:
                ring.free(done.slot)
                done.slot, done.result = slot, ring.slot_view(slot)[: len(done.result)]
                self._resume()
            else:  # it was let go meanwhile, or the worker is going to read it where it is
                ring.free(slot)

    def _next(self) -> Round | None:
        """The oldest result in memory that may go to disk."""
        there = [step for step, kept in self._results.items() if not self._ring.is_on_disk(kept.slot)]
        step = min(there, default=self._move_to + 1)
        return self._results[step] if step <= self._move_to else None

    def _give_up(self, reason: str) -> None:
        """The core keeps no more results than there is memory for."""
        self._obstacle = reason
        self._note("no_results_on_disk", {"reason": reason})
        asyncio.get_running_loop().call_soon(self._happened, ResultMemory(self._ring.slots, 0))

    def say(self) -> None:
        """A line of the trace when results begin to wait on disk, now and then while they get more, and at the end."""
        now = self._ring.bytes_on_disk
        if (now == 0) != (self._told_bytes == 0) or now > TOLD * self._told_bytes:
            self._told_bytes = now
            most = self._ring.disk_slots * self._ring.stride
            self._note("results_on_disk", {"bytes": now, "most": most})
