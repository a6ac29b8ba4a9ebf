"""How results are printed: medians with their spread, and what they were measured on."""

from __future__ import annotations

import json
import os
import platform
import ssl
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Table:
    """Rows of text under a title, printed as Markdown."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    bars: dict[str, float] = field(default_factory=dict)
    """What a picture of it shows: label to median, all in the title's unit. Without bars and lines: no picture."""
    lines: dict[str, dict[int, float]] = field(default_factory=dict)
    """Instead of bars: label to medians by what the columns count, on logarithmic scales; the first is drawn boldly."""
    axes: tuple[str, str] = ("", "")
    """What the lines' x and y are."""

    def text(self) -> str:
        lines = [f"### {self.title}", "", f"| {' | '.join(self.columns)} |", "|" + "---|" * len(self.columns)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines) + "\n"


def progress(line: str) -> None:
    """One result at once, on standard error: a run that is broken off has then not been for nothing."""
    print(line, file=sys.stderr, flush=True)


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 0) -> str:
    """'median (lowest - highest)'."""
    if not values:
        return "none"
    low, mid, high = (f"{value * scale:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{mid} ({low} - {high})"


def milliseconds(values: Sequence[float], digits: int = 0) -> str:
    return spread(values, 1000.0, digits)


def machine() -> str:
    """One line: when, and on what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"{now}; {os.cpu_count()} cores of {model or platform.machine()}, Linux {platform.release()}; load {load}; "
        f"Python {platform.python_version()}, torch {version('torch')}, numpy {version('numpy')}, "
        f"{ssl.OPENSSL_VERSION.rsplit(' ', 3)[0]}"
    )


def write(tables: Sequence[Table], measured_on: Sequence[str], folder: Path) -> Path:
    """`DATE.md`, `DATE.json` and a picture per table that has one. Returns the first.

    What was measured on that day before stays, but for tables of the same titles.
    """
    folder.mkdir(parents=True, exist_ok=True)
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    measured = {table.title: (table, line) for table, line in zip(tables, measured_on, strict=True)}
    found = _read(folder / f"{day}.json") | measured
    parts = [f"# Measured on {day}", "Medians, with lowest and highest in brackets. What each table is: ../README.md."]
    for number, (table, machine_line) in enumerate(found.values()):
        parts += [table.text(), machine_line]
        if table.bars or table.lines:
            picture = folder / f"{day}-{number + 1}.png"
            draw(table, picture)
            parts.append(f"![{table.title}]({picture.name})")
    page = folder / f"{day}.md"
    page.write_text("\n\n".join(parts) + "\n")
    values = [asdict(table) | {"machine": line} for table, line in found.values()]
    (folder / f"{day}.json").write_text(json.dumps(values, indent=1) + "\n")
    return page


def _read(path: Path) -> dict[str, tuple[Table, str]]:
    """Tables and machines by title, as `write` left them; nothing where there is no such file."""
    if not path.exists():
        return {}
    found = {}
    for values in json.loads(path.read_text()):
        machine_line = values.pop("machine")
        table = msgspec.convert(values, Table, strict=False)
        found[table.title] = table, machine_line
    return found


def draw(table: Table, path: Path) -> None:
    """Its lines, or its bars with the first on top."""
    from matplotlib.figure import Figure  # only who draws has to have it

    figure = Figure(figsize=(8.5, 5) if table.lines else (8, 0.6 + 0.45 * len(table.bars)), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(table.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if table.lines:
        _draw_lines(axes, table)
    else:
        bars = axes.barh(list(table.bars)[::-1], list(table.bars.values())[::-1], color="#0072b2")
        axes.bar_label(bars, fmt=lambda value: f"{value:.0f}" if value >= 100 else f"{value:.3g}", padding=3)
        axes.margins(x=0.12)
    figure.savefig(path, dpi=120)


def _draw_lines(axes: Axes, table: Table) -> None:
    for number, (label, points) in enumerate(table.lines.items()):
        width, order = (3.0, 3) if number == 0 else (1.5, 2)
        axes.plot(list(points), list(points.values()), marker="o", linewidth=width, label=label, zorder=order)
    xs = sorted({x for points in table.lines.values() for x in points})
    top = max(y for points in table.lines.values() for y in points.values())
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(xs, [str(x) for x in xs])
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= top]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(table.axes[0])
    axes.set_ylabel(table.axes[1])
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9)
