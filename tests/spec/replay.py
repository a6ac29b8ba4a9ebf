"""Has spin replay rows, and says which one the model does not allow."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.spec.recorder import Record
from tests.spec.rows import PEERS, Numbers, Reader

SPEC = Path(__file__).resolve().parents[2] / "docs" / "spec"
TOOLS = ("spin", "gcc")


class NotARun(Exception):
    """What the nodes did is not a run of the model."""


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


BATCH = 1000
"""Rows at a time: spin's parser takes no longer array."""

BALLOTS = 100
"""Of one decree: the model counts them in bytes."""

Table = list[tuple[list[int], str]]


def replay(records: Iterable[Record], folder: Path) -> dict[str, int]:
    """Check every transition. Returns how many decrees and rows there were, and in how many several ballots competed.

    Raises:
        NotARun: names the row, when it happened, and what forbids it.
    """
    reader = Reader(records)
    if reader.false_reports:
        raise NotARun(reader.false_reports[0])
    fitting = [w for w in reader.windows.values() if len(w.seats()) <= PEERS and len(w.rows) < BATCH]
    windows = [numbers for numbers in map(Numbers, fitting) if len(numbers.ballots) <= BALLOTS]
    ballots = max((len(numbers.ballots) for numbers in windows), default=1)
    batch: Table = []
    rows = 0
    for numbers in windows:
        table = numbers.table()
        rows += len(table)
        if len(batch) + len(table) > BATCH:
            _run_spin(batch, ballots, folder)
            batch = []
        batch += table
    _run_spin(batch, ballots, folder)
    return {
        "decrees": len(windows),
        "rows": rows,
        "contested": sum(len(numbers.ballots) > 1 for numbers in windows),
        "too large": len(reader.windows) - len(windows),
    }


def _run_spin(table: Table, ballots: int, folder: Path) -> None:
    cells = ", ".join(str(cell) for row, _ in table for cell in row)
    text = (
        f"#define BALLOTS {max(ballots, 1)}\n#define ROWS {len(table)}\nshort row[{8 * len(table)}] = {{ {cells} }};\n"
    )
    (folder / "rows.inc").write_text(text)
    for name in ("agreement.pml", "trace.pml"):
        shutil.copy(SPEC / name, folder)
    run = subprocess.run(["spin", "-T", "trace.pml"], cwd=folder, capture_output=True, text=True, timeout=60)
    if f"replayed: {len(table)}" in run.stdout:
        return
    refused = re.search(r"refused: (\d+)", run.stdout)
    why = re.search(r"text of failed assertion: assert\((.*)\)", run.stdout)
    if refused is not None:
        raise NotARun(f"{table[int(refused[1])][1]}: the model wants {why[1] if why else 'otherwise'}")
    raise NotARun(f"spin says:\n{run.stdout[-2000:]}{run.stderr[-500:]}")
