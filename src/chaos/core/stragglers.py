"""Late workers: when this peer's own is left out of a step, and who was left out how often.

Only the peer itself leaves its worker out, by an empty contribution in its place. So nothing has to be agreed on
beyond what a contribution is anyway: its contributor's own word.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos.core.actions import Tell
from chaos.core.context import Context, Role
from chaos.core.deadlines import deadline
from chaos.core.lineage import CommittedStep

if TYPE_CHECKING:
    from chaos.core.node import Node

MEASURED = 128
"""So many computing times are kept: of the last 16 steps with 8 members."""
ALWAYS = 20
"""Left out of so many steps in a row, a peer does nothing but slow the others down: time for a warning."""
TALLIES = 1024
"""No more peers are counted; a view has no more members."""


@dataclass
class Tally:
    """How one peer did, in the steps that were finished here."""

    name: str
    steps: int = 0
    late: int = 0
    row: int = 0
    """Of the last steps, so many without it."""
    last: int = 0
    """The last step without it; 0: none."""


class Stragglers:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._times: deque[float] = deque(maxlen=MEASURED)
        self.tallies: dict[str, Tally] = {}
        self._waited_for_bytes = 0

    @property
    def limit_s(self) -> float:
        """Seconds, of the run; 0: late workers are waited for."""
        return self._ctx.view.straggler_limit_s if self._ctx.views else 0.0

    # --- the own worker ------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Leave the own worker out of the open round if it is late."""
        if self.limit_s and self._ctx.role in (Role.MEMBER, Role.LEAVER):
            self._leave_out()
            self._note_slow_bytes()

    def _leave_out(self) -> None:
        steps, desk, now = self._node.steps, self._node.worker, self._ctx.now
        step, worker = steps.opened, desk.worker
        if not steps.running or worker is None or worker.computing != step or steps.contributed(step):
            return
        current = steps.others_in(step)
        if current is None:
            return
        known, times, members = current
        found = deadline(worker.since, known, members, self._times, times, self.limit_s)
        if found is not None and now >= found.due:
            took = round(now - worker.since, 3)
            self._ctx.trace("left_out", step=step, computed_s=took, reason=found.reason)
            desk.leave_out(step)

    def _let_go_of_results(self) -> None:
        """Results are kept for a worker that lags, as far as there is memory; past that it needs a snapshot."""
        worker, finished = self._node.worker.worker, self._node.steps.finished
        if not self.limit_s or worker is None or not worker.computing or worker.applied is None or worker.behind:
            return
        lag = finished - worker.applied
        if lag > self._ctx.kept_results:
            self._ctx.trace("lags", step=finished, applied=worker.applied, reason="no more results are kept for it")
            worker.behind = True
            self._node.donor.give_up()  # it may have been stopped in the midst of reading: its state is not to be had
            self._node.steps.release()

    def _note_slow_bytes(self) -> None:
        """All contributions are known, so nobody can be left out any more; but their bytes take long."""
        steps = self._node.steps
        waits = steps.waits_for_bytes(self.limit_s)
        if waits and self._waited_for_bytes < waits:
            self._waited_for_bytes = waits
            self._ctx.trace("slow_bytes", step=waits, reason=f"more than {self.limit_s:g} s after all had contributed")

    # --- everybody's ---------------------------------------------------------------------------------------

    def on_committed(self, done: CommittedStep) -> None:
        """Called after each commit: measure, count, warn of those who are never in time, keep memory free."""
        self._let_go_of_results()
        for peer, part in done.contributions:
            if part.compute_s > 0:
                self._times.append(part.compute_s)
            tally = self.tallies.get(peer)
            if tally is None:
                if len(self.tallies) >= TALLIES:
                    del self.tallies[next(iter(self.tallies))]
                tally = self.tallies[peer] = Tally(self._ctx.name(peer))
            tally.steps += 1
            tally.row = tally.row + 1 if part.late else 0
            if part.late:
                tally.late += 1
                tally.last = done.step
            if tally.row == ALWAYS:
                text = (
                    f"{tally.name} was late for the last {ALWAYS} steps and contributes nothing; "
                    "give it smaller batches, let it leave, or found the run with --straggler wait"
                )
                self._ctx.trace("warning", reason=text)
                self._ctx.emit(Tell(f"warning: {text}"))

    def summary(self) -> str:
        """Who was left out of how many steps, for people; '' if nobody was."""
        left_out = [t for t in self.tallies.values() if t.late]
        return ", ".join(f"{t.name} in {t.late} of {t.steps} steps" for t in left_out)
