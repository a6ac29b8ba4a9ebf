"""What of a snapshot lies on this host already: in the file of an earlier process, or in memory of an earlier one.

A snapshot is received into a file in the runtime directory, so that an agent that is started again finds what the
former one had verified. Nothing in it is believed: shards count by their hashes in the offer, whatever they were.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3

from chaos.agent.shared_memory import SharedMemory
from chaos.core.actions import ReceiveSnapshot
from chaos.core.errors import ChaosError

SUFFIX = ".snapshot"
STALE_S = 7 * 86400.0
"""A file that nobody has touched for a week is of a joiner that will not come back."""


class ReceivedFile:
    """The file of one peer. Its path may be None: then nothing outlives the process."""

    def __init__(self, directory: Path | None, peer: str) -> None:
        self._path = directory / f"{peer}{SUFFIX}" if directory is not None else None

    def former(self) -> memoryview | None:
        """What an earlier process left, read only; None if there is nothing."""
        if self._path is None:
            return None
        try:
            with self._path.open("rb") as file:
                return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        except (OSError, ValueError):  # not there, not readable, or empty
            return None

    def create(self, nbytes: int) -> tuple[SharedMemory, str]:
        """New memory in the place of what was there, and why it is not in the file; '' if it is."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
                return SharedMemory.in_file(self._path, nbytes), ""
            except (ChaosError, OSError) as error:
                return SharedMemory.create("chaos-received", max(nbytes, 1)), str(error)
        return SharedMemory.create("chaos-received", max(nbytes, 1)), ""

    def remove(self) -> None:
        """It is needed no more."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def prune(directory: Path) -> None:
    """Remove files of joiners that will not come back."""
    for path in directory.glob(f"*{SUFFIX}"):
        if time.time() - path.stat().st_mtime > STALE_S:
            path.unlink(missing_ok=True)


def take_over(order: ReceiveSnapshot, sources: Sequence[memoryview], target: memoryview) -> tuple[int, ...]:
    """Copy the shards that some source has at their place into `target`; which these are. 1 GB/s and source."""
    found: list[int] = []
    for shard, wanted in enumerate(order.hashes):
        start = shard * order.shard_bytes
        stop = min(start + order.shard_bytes, order.nbytes)
        for source in sources:
            if len(source) >= stop and blake3(source[start:stop]).digest() == wanted:
                target[start:stop] = source[start:stop]
                found.append(shard)
                break
    return tuple(found)
