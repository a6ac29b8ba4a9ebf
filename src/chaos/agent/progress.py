"""What takes long, for the person in front of it: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars  # loaded on a terminal only: agents have to start quickly

LINE_S = 10.0
"""Between two lines in a log about the same thing, and about checkpoints and refusals anywhere."""
FRAME_S = 0.1
"""Between two pictures of a bar."""
PHASES = {
    "prepare": "asking the members for their state",
    "offer": "waiting for a snapshot",
    "fetch": "fetching the state",
    "load": "loading the state",
    "verify": "comparing the state with a member's",
    "ready": "waiting to be made a member",
}


class Progress:
    """Fed with the agent's own trace lines and with bytes. Writes to standard error unless told otherwise."""

    def __init__(
        self, name: str = "", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._stream = stream or sys.stderr
        self._clock = clock
        self._what = ""
        """What is under way; empty: nothing."""
        self._began = self._shown = 0.0
        self._done, self._total = 0, 0
        self._bars: Bars | None = None
        self._was_member = False
        self._members: list[str] = []
        """Of the last view that this peer was a member of, in order of rank."""
        self._told_at: dict[str, float] = {}
        """When a line was last written of what may come often, by its kind."""

    # --- what the agent does -------------------------------------------------------------------------------

    def take(self, kind: str, fields: Mapping[str, Any]) -> None:
        """One line of the agent's trace."""
        match kind:
            case "catch_up":
                self._begin("healing" if self._was_member else "joining")
            case "learner" if self._what and fields["phase"] in PHASES:
                self._tell(PHASES[fields["phase"]])
            case "view" if fields["role"] == "member":
                self._member(fields)
            case "rejoin" | "stop":
                self._end("")
            case "refused" if not fields["final"] and self._is_due(kind):  # what is final, the agent ends with
                self._say(f"not let in yet by {fields['peer']}: {fields['reason']}")
            case "checkpoint" if self._is_due(kind):
                self._say(f"checkpoint of step {fields['step']} written in {fields['seconds']:.1f} s: {fields['path']}")

    def _is_due(self, kind: str) -> bool:
        """Whether a line of this kind may be written again."""
        due = self._clock() - self._told_at.get(kind, float("-inf")) >= LINE_S
        if due:
            self._told_at[kind] = self._clock()
        return due

    def _member(self, view: Mapping[str, Any]) -> None:
        """A view of which this peer is a member: say when it has become one, and later who comes and goes."""
        before, self._members = self._members, view["members"]
        if self._what:
            self._end(f"{self.name} is a member from step {view['first_step']} on")
        elif self._was_member and before != self._members:
            many = f"{n} members" if (n := len(self._members)) > 1 else "1 member"
            self._say(f"{view['reason']}; {many} from step {view['first_step']} on")
        self._was_member = True

    def expect(self, step: int, nbytes: int) -> None:
        """The state of `step`, of so many bytes, is going to arrive."""
        if self._what:
            self._done, self._total = 0, nbytes
            self._tell(f"state of step {step}, {nbytes / 1e6:.1f} MB")

    def arrived(self, nbytes: int) -> None:
        self._done += nbytes
        self._show()

    def read(self, total: int, done: int) -> None:
        """So many bytes of a checkpoint have been read and compared with their hash."""
        if not self._what:
            self._begin("resuming")
            self._tell(f"reading the checkpoint, {total / 1e6:.1f} MB")
        self._done, self._total = done, total
        self._show()
        if done >= total:
            self._end("checkpoint read and whole")

    # --- how it is shown -----------------------------------------------------------------------------------

    def _begin(self, what: str) -> None:
        if self._what == what:
            return
        self._end("")
        self._what, self._began, self._done, self._total = what, self._clock(), 0, 0
        if self._stream.isatty():
            self._bars = bars_on(self._stream)
            self._bars.add_task(f"chaos: {what}", total=None)
            self._bars.start()

    def _tell(self, text: str) -> None:
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], description=f"chaos: {self._what}: {text}")
            self._bars.refresh()
        else:
            self._shown = self._clock()
            self._say(f"{self._what}: {text}")

    def _show(self) -> None:
        """Bytes have come."""
        due = FRAME_S if self._bars is not None else LINE_S
        if not self._what or self._clock() - self._shown < due:
            return
        self._shown = self._clock()
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=self._done, total=self._total)
            self._bars.refresh()
        elif self._total:
            share = min(self._done / self._total, 1.0)
            self._say(f"{self._what}: {share:.0%} of {self._total / 1e6:.1f} MB")

    def _end(self, text: str) -> None:
        """It is over; `text` says how it ended, '' that there is nothing to say."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if self._what and text:
            self._say(f"{text}, after {self._clock() - self._began:.1f} s")
        self._what = ""

    def _say(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(f"chaos: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"chaos: {text}", file=self._stream, flush=True)


def bars_on(stream: TextIO) -> Bars:
    """An empty set of bars, redrawn only when told, which vanish at their end."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(12), DownloadColumn(), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=Console(file=stream), transient=True, auto_refresh=False)
