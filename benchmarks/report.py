"""How results are printed: medians with their spread, and what they were measured on."""

from __future__ import annotations

import os
import platform
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median


@dataclass
class Table:
    """Rows of text under a title, printed as Markdown."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

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
