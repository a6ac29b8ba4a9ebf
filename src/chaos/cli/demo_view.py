"""How a demo looks: a live table on a terminal, plain lines elsewhere, and the report at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chaos.cli.demo_board import Board
from chaos.cli.demo_costs import Cost
from chaos.cli.demo_summary import Summary

BARS = "▁▂▃▄▅▆▇█"
LINE_EVERY = 10
"""Steps between two lines where there is no terminal."""
EVENT_NAMES = {"scale-out": "joined", "failure": "was killed", "scale-in": "left"}


class Display(Protocol):
    """Shows a board that changes."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, board: Board) -> None:
        """The board changed, or may have."""


class LiveTable:
    """For terminals."""

    def __init__(self, console: Console) -> None:
        # Without a refresh of its own, Rich needs no thread; the demo forks.
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, board: Board) -> None:
        """Draw it anew."""
        self._live.update(picture(board), refresh=True)


class PlainLines:
    """For files, pipes and logs: each event, and every tenth step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._step = 0

    def __enter__(self) -> PlainLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to restore."""

    def show(self, board: Board) -> None:
        """Print what is new."""
        new = min(board.told - self._told, len(board.events))
        self._told = board.told
        for text in list(board.events)[len(board.events) - new :]:
            self._print(text)
        if board.step >= self._step + LINE_EVERY and board.losses:
            self._step = board.step - board.step % LINE_EVERY
            self._print(f"step {board.step}/{board.steps}  loss {board.losses[-1]:.3f}  {len(board.members)} members")

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def display_for(console: Console) -> Display:
    """What suits the console."""
    return LiveTable(console) if console.is_terminal else PlainLines(console)


def picture(board: Board) -> Panel:
    """The whole live display."""
    loss = f"loss {board.losses[-1]:.3f}  {sparkline(list(board.losses))}" if board.losses else "no step yet"
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("peer", "party", "role"):
        table.add_column(title)
    for title in ("step", "computing", "waiting"):
        table.add_column(title, justify="right")
    for peer in board.peers.values():
        style = {"killed": "red", "left": "dim", "done": "green", "member": "green"}.get(peer.role, "yellow")
        times = [f"{seconds * 1000:.0f} ms" for seconds in (peer.compute_s, peer.wait_s)] if peer.step else ["", ""]
        table.add_row(peer.name, peer.party, Text(peer.role, style=style), str(peer.step or ""), *times)
    # As many lines from the first moment on: a display that grows makes a terminal flicker.
    lines = ["", *board.events, *[""] * ((board.events.maxlen or 0) - len(board.events))]
    events = Text("\n".join(lines), style="dim", no_wrap=True, overflow="ellipsis")
    return Panel(
        Group(Text(loss, style="bold"), Text(""), table, events),
        title=f"step {board.step} of {board.steps}",
        title_align="left",
    )


def sparkline(values: Sequence[float]) -> str:
    """One character per value, between the lowest and the highest of them."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)


def costs_table(costs: Iterable[Cost], named: Callable[[Cost], str]) -> Table:
    """A row for each event, under the name it is given, with what it cost."""
    events = Table(box=None, pad_edge=False, header_style="dim")
    events.add_column("event")
    for title in ("took", "others waited", "steps meanwhile"):
        events.add_column(title, justify="right")
    for cost in costs:
        took, waited = (f"{seconds * 1000:.0f} ms" for seconds in (cost.delay_s, cost.stall_s))
        events.add_row(named(cost), took, waited, str(cost.steps_during))
    return events


def report(summary: Summary) -> Group:
    """The figures for people."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("steps", str(summary.steps))
    facts.add_row("loss", f"{summary.loss_first:.3f} at first, {summary.loss_last:.3f} at last")
    facts.add_row("peers at the end", str(summary.peers_final))
    facts.add_row("states of all peers", "equal to the last bit" if summary.digests_equal else "THEY DIFFER")
    facts.add_row("stable updates lost", str(summary.lost_updates))
    facts.add_row("samples counted twice", str(summary.samples_counted_twice))
    events = costs_table(summary.events, lambda cost: f"{cost.peer} {EVENT_NAMES[cost.kind]}")
    note = Text(
        "others waited: the one that waited longest, beyond what is usual once all have contributed", style="dim"
    )
    return Group(Text(""), facts, Text(""), events, note)
