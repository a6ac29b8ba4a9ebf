"""`chaos demo`: peers of three parties train together on this machine; one joins, one is killed, one leaves."""

from __future__ import annotations

import importlib.util
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from chaos.cli.dashboard import page
from chaos.cli.demo_board import Board
from chaos.cli.demo_costs import Event
from chaos.cli.demo_peers import DemoPeers, name_of
from chaos.cli.demo_summary import Summary, summarise
from chaos.cli.demo_view import Display, display_for, report
from chaos.core.errors import ChaosError
from chaos.lab.guard import ENDING
from chaos.observe.trace_file import Entry, TraceFiles

KINDS = ("scale-out", "failure", "scale-in")
"""What befalls a demo, in this order."""
MAX_PEERS = 16
LOOK_S = 0.1
"""Between two looks at the traces."""
PATIENCE_S = 120.0
"""Without a step for so long something is wrong; on a slow machine several processes import torch in a third of it."""


@dataclass(frozen=True)
class Schedule:
    """What befalls the run, and at which step. Later events move back while an earlier one is not over."""

    peers: int
    steps: int

    def __post_init__(self) -> None:
        if not 2 <= self.peers <= MAX_PEERS:
            raise ChaosError(f"--peers is {self.peers}; give 2 to {MAX_PEERS}")
        if self.steps < 1:
            raise ChaosError(f"--steps is {self.steps}; give 1 or more")

    @property
    def joiner(self) -> int:
        return self.peers + 1

    @property
    def contact(self) -> int:
        """Whom the joiner asks: not the founder, as any member is as good."""
        return 2

    @property
    def victim(self) -> int:
        """The founder, as nobody is in charge."""
        return 1

    @property
    def leaver(self) -> int:
        return 3 if self.peers > 2 else 2

    @property
    def join_at(self) -> int:
        """The step after which the joiner starts."""
        return min(20, max(1, self.steps // 10))

    @property
    def pause(self) -> int:
        """Quiet steps between the end of an event and the next one; they tell what waiting is usual."""
        return min(20, max(2, self.steps // 12))


class Demo:
    """One demo, from its first process to its last."""

    def __init__(self, schedule: Schedule, peers: DemoPeers, display: Display) -> None:
        self._schedule = schedule
        self._peers = peers
        self._display = display
        self._board = Board(schedule.steps)
        self._numbers = range(1, schedule.joiner + 1)
        self._files = TraceFiles({name_of(n): peers.trace(name_of(n)) for n in self._numbers})
        self._entries: list[Entry] = []
        self._events: list[Event] = []

    def run(self) -> Summary:
        """Raises ChaosError if the run did not come to its end."""
        self._start_founders()
        self._befall()
        self._follow(self._nobody_runs)
        self._look()  # at what they wrote last
        ids = {name_of(n): self._peers.peer_id(n) for n in self._numbers}
        return summarise(sorted(self._entries, key=lambda entry: entry.t), self._events, ids)

    # --- the story -----------------------------------------------------------------------------------------

    def _start_founders(self) -> None:
        schedule = self._schedule
        self._start(1, "--min-peers", str(schedule.peers))
        address = self._peers.peers[name_of(1)].address()
        for number in range(2, schedule.peers + 1):
            self._start(number, "--join", address)

    def _befall(self) -> None:
        """Join, kill, leave; each some steps after the end of what was before."""
        schedule = self._schedule
        if not self._wait_for_step(schedule.join_at):
            return
        joiner, victim, leaver = (name_of(n) for n in (schedule.joiner, schedule.victim, schedule.leaver))
        contact = self._peers.peers[name_of(schedule.contact)]
        self._board.tell(f"{joiner} starts, and will ask {contact.name} to let it in")
        started = self._start(schedule.joiner, "--join", contact.address())
        self._events.append(Event("scale-out", joiner, started))
        if not self._wait_for(lambda: joiner in self._board.members) or not self._pause():
            return
        self._board.tell(f"{victim} is killed: SIGKILL to its agent, its worker and its launcher")
        self._events.append(Event("failure", victim, time.monotonic()))
        self._peers.peers[victim].kill()
        self._board.set_role(victim, "killed")
        if not self._wait_for(lambda: victim not in self._board.members) or not self._pause():
            return
        self._board.tell(f"{leaver} is asked to leave")
        self._events.append(Event("scale-in", leaver, time.monotonic()))
        self._peers.peers[leaver].ask_to_leave()

    def _start(self, number: int, *options: str) -> float:
        peer = self._peers.start(number, *options)
        self._board.add_peer(peer.name, peer.party)
        return peer.started

    # --- waiting -------------------------------------------------------------------------------------------

    def _wait_for_step(self, step: int) -> bool:
        return step < self._schedule.steps and self._wait_for(lambda: self._board.step >= step)

    def _pause(self) -> bool:
        return self._wait_for_step(self._board.step + self._schedule.pause)

    def _wait_for(self, condition: Callable[[], bool]) -> bool:
        """Follow the run until the condition holds. False: the run came to its end before."""
        self._follow(lambda: condition() or self._is_over())
        return not self._is_over()

    def _is_over(self) -> bool:
        return self._board.step >= self._schedule.steps or self._nobody_runs()

    def _nobody_runs(self) -> bool:
        return all(peer.exit_code() is not None for name, peer in self._peers.peers.items() if self._counts(name))

    def _counts(self, name: str) -> bool:
        """Whether the run waits for this peer's end: not for one that was killed, or that came too late."""
        line = self._board.peers[name]
        return line.role != "killed" and (line.joined or self._board.step < self._schedule.steps)

    def _follow(self, until: Callable[[], bool]) -> None:
        """Read traces and show them. Raises ChaosError if a peer fails, or nothing moves any more."""
        moved, step = time.monotonic(), self._board.step
        while True:
            self._look()
            if until():
                return
            if self._board.step > step:
                moved, step = time.monotonic(), self._board.step
            if time.monotonic() - moved > PATIENCE_S:
                raise ChaosError(f"the demo stands still at step {step}: nothing moved for {PATIENCE_S:g} s")
            time.sleep(LOOK_S)

    def _look(self) -> None:
        for name, peer in self._peers.peers.items():
            if self._counts(name):
                peer.check()
        new = self._files.read()
        self._entries += new
        self._board.take(new)
        self._display.show(self._board)


@contextmanager
def signals_as_exits() -> Iterator[None]:
    """Signals unwind the stack, so that everything is cleaned up; Ctrl-C also where a shell has it ignored."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def script() -> Path:
    """The training script, where this package is installed."""
    spec = importlib.util.find_spec("chaos.examples")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("train_text.py")


@contextmanager
def shown(processes: DemoPeers, dashboard: str | None, console: Console) -> Iterator[None]:
    """A page for browsers as well, if one is wanted; its address is printed."""
    if dashboard is None:
        yield
        return
    with page(processes.directory, dashboard, processes.environment()) as address:
        console.print(f"the dashboard is at {address}", highlight=False)
        yield


def report_page(traces: list[Path]) -> tuple[str, str]:
    """A page about the run, in a directory that stays; or why there is none. Nothing of the demo depends on it."""
    from chaos.observe.report import write_report  # after the run: drawing takes a second of processor time

    out = Path(tempfile.mkdtemp(prefix="chaos-report-"))
    try:
        return str(write_report(traces, out)), ""
    except ChaosError as error:
        out.rmdir()
        return "", str(error)


def run_demo(peers: int, steps: int, seed: int, as_json: bool, dashboard: str | None = None) -> None:
    """The whole demo. Raises ChaosError if the run failed or broke a promise, SystemExit if a signal ends it."""
    schedule = Schedule(peers, steps)
    console = Console(stderr=as_json)
    with signals_as_exits(), DemoPeers(script(), ["--steps", str(steps), "--seed", str(seed)]) as processes:
        with shown(processes, dashboard, console), display_for(console) as display:
            summary = Demo(schedule, processes, display).run()
        written, why = report_page(sorted(processes.directory.glob("*.jsonl")))
    console.print(report(summary))
    console.print(f"report: {written}" if written else f"no report: {why}", soft_wrap=True, highlight=False)
    if missed := [kind for kind in KINDS if kind not in {cost.kind for cost in summary.events}]:
        console.print(f"the run was too short for: {', '.join(missed)}; give more --steps", style="yellow")
    if as_json:
        print(json.dumps(summary.as_json()), flush=True)
    if not summary.kept_its_promises:
        raise ChaosError("the run broke a promise; see the report above")
