"""What every run has to keep, whatever befell it."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.cli.demo_summary import summarise
from chaos.observe.trace_file import Entry


def judge(entries: Sequence[Entry], ids: dict[str, str]) -> None:
    """AssertionError if last members differ, something stable was lost, or a sample counts twice."""
    summary = summarise(entries, [], ids)
    assert summary.digests_equal, "the last members hold different states"
    assert summary.lost_updates == 0
    assert summary.samples_counted_twice == 0
