"""`chaos report`: one page about a run, from its traces."""

from __future__ import annotations

import json
from pathlib import Path

from chaos.core.errors import ChaosError
from chaos.observe.report import write_report
from chaos.observe.trace import trace_files


def report_on(directory: Path, out: Path | None, as_json: bool) -> None:
    """Write the page and say where it is. Raises ChaosError."""
    if not directory.is_dir():
        raise ChaosError(f"{directory} is no directory: give the one that holds the traces (*.jsonl)")
    path = write_report(trace_files(directory), out or directory / "report")
    if as_json:
        print(json.dumps({"report": str(path), "pictures": sorted(str(p) for p in path.parent.glob("*.png"))}))
    else:
        print(f"report: {path}")
