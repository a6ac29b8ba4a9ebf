"""Limits on processor time and memory of a lab's hosts: control groups, of version 1 or 2, where they may be made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000
"""The kernel's default period for quotas of processor time."""


def _unified() -> bool:
    return (ROOT / "cgroup.controllers").exists()


def _limits(cores: float, memory_mb: int) -> Iterator[tuple[str, str, str]]:
    """Controller, file and value, for every limit that is set."""
    quota, memory = int(cores * PERIOD_US), memory_mb * 2**20
    if cores:
        yield ("cpu", "cpu.max", f"{quota} {PERIOD_US}") if _unified() else ("cpu", "cpu.cfs_quota_us", str(quota))
    if memory_mb:
        yield "memory", "memory.max" if _unified() else "memory.limit_in_bytes", str(memory)


def make(name: str, cores: float = 0.0, memory_mb: int = 0) -> list[Path]:
    """The groups that a process has to be put into, to have these limits. Raises OSError where that can't be.

    Args:
        cores: 0.5 is half of one core's time; 0: no limit.
        memory_mb: 0: no limit.
    """
    made: list[Path] = []
    for controller, file, value in _limits(cores, memory_mb):
        base = ROOT if _unified() else ROOT / controller
        if _unified():
            (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        group = base / name
        group.mkdir(exist_ok=True)
        (group / file).write_text(value)
        if group not in made:
            made.append(group)
    return made


def enter(groups: list[Path]) -> None:
    """Put this process into them; its children are then there as well."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def remove(prefix: str) -> None:
    """All groups whose names begin so, and that no process is in any more."""
    for base in [ROOT] if _unified() else [ROOT / "cpu", ROOT / "memory"]:
        for group in base.glob(f"{prefix}*") if base.is_dir() else ():
            try:
                group.rmdir()
            except OSError:
                continue  # not ours, or a process of it is still ending: `chaos lab clean` finds it again
