"""Runs the demo and draws what it showed as docs/images/demo.png: the live table near its end, and the report.

    .venv/bin/python docs/images/record_demo.py

Every figure in the picture is from that run. Needs rsvg-convert (Debian: librsvg2-bin) and the font DejaVu Sans Mono.
"""

from __future__ import annotations

import copy
import io
import os
import platform
import subprocess
from pathlib import Path
from types import TracebackType

from rich.console import Console

from chaos.cli.demo import Demo, Schedule, script, signals_as_exits
from chaos.cli.demo_board import Board
from chaos.cli.demo_peers import DemoPeers
from chaos.cli.demo_view import PlainLines, picture, report

PEERS, STEPS, SEED = 4, 240, 0
WIDTH = 116
TARGET = Path(__file__).with_name("demo.png")
PIXELS = 1400
CHANGES = {
    "font-size: 20px": "font-size: 20.265px",  # Rich's columns are 12.2 pixels wide; so are characters of this size
    "Fira Code": "DejaVu Sans Mono",
    "<text ": '<text xml:space="preserve" ',  # else the drawing program drops the spaces that align numbers
}


class Keeper:
    """Prints plain lines, and keeps the last board on which the run's members still train."""

    def __init__(self) -> None:
        self._lines = PlainLines(Console())
        self.kept: Board | None = None

    def __enter__(self) -> Keeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to restore."""

    def show(self, board: Board) -> None:
        """Called with the run's standing ten times a second."""
        self._lines.show(board)
        if board.step < board.steps or self.kept is None:
            self.kept = copy.deepcopy(board)


def main() -> None:
    keeper = Keeper()
    arguments = ["--steps", str(STEPS), "--seed", str(SEED)]
    with signals_as_exits(), DemoPeers(script(), arguments) as peers:
        summary = Demo(Schedule(PEERS, STEPS), peers, keeper).run()
    assert keeper.kept is not None
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print("$ chaos demo", style="bold")
    console.print(picture(keeper.kept))
    console.print(report(summary))
    picture_of_it = console.export_svg(title=f"chaos demo, {os.cpu_count()} cores, {platform.system()}")
    for before, after in CHANGES.items():
        picture_of_it = picture_of_it.replace(before, after)
    command = ["rsvg-convert", "--width", str(PIXELS), "--output", str(TARGET)]
    subprocess.run(command, input=picture_of_it.encode(), check=True)
    print(f"wrote {TARGET}: {summary.as_json()}")


if __name__ == "__main__":
    main()
