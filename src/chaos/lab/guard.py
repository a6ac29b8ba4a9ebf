"""Ends whatever a demo or a lab started, whatever way that ends: `python -m chaos.lab.guard DIRECTORY`.

The guard waits until the pipe on its standard input closes, which the kernel does for a process that was killed as
well. Then it kills every process whose CHAOS_RUNTIME_DIR is DIRECTORY/runtime or below, and removes DIRECTORY and
the control groups that are named after it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from chaos.lab import cgroups

MARK = "CHAOS_RUNTIME_DIR"
PATIENCE_S = 10.0
"""Killed processes are gone within milliseconds, unless they hang in the kernel."""
GUARD_S = 2 * PATIENCE_S
"""How long the guard's process may take in all."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals by which people and systems end a demo or a lab."""
OWNER = "owner.json"


class Guard:
    """A new temporary directory, and the process that guards it."""

    def __init__(self, prefix: str) -> None:
        # No signal may come between directory and guard; and the guard, which inherits the block, heeds none.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self.directory = Path(tempfile.mkdtemp(prefix=prefix))
            owner = {"pid": os.getpid(), "created": psutil.Process().create_time()}
            (self.directory / OWNER).write_text(json.dumps(owner))
            command = [sys.executable, "-m", "chaos.lab.guard", str(self.directory)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> bool:
        """Have it clean up; waits for that. False if something is left."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            return self.process.wait(GUARD_S) == 0
        except subprocess.TimeoutExpired:
            return False


def is_owned(directory: Path) -> bool:
    """Whether who made it with a guard still lives."""
    try:
        owner = json.loads((directory / OWNER).read_text())
        return bool(psutil.Process(owner["pid"]).create_time() == owner["created"])
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return False


def runtime_of(directory: Path) -> Path:
    """What a demo in `directory` gives its peers as their runtime directory; a lab gives each host one below it."""
    return directory / "runtime"


def marked(runtime: Path) -> Iterator[psutil.Process]:
    """This user's living processes whose environment says that they belong to `runtime`."""
    for process in psutil.process_iter():
        try:
            home = Path(process.environ().get(MARK, "/"))
            if runtime in (home, *home.parents) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended just now, or belongs to somebody else


def kill_all(runtime: Path) -> bool:
    """Kill until none is left: one that starts meanwhile is found by the next look. False if some won't go."""
    deadline = time.monotonic() + PATIENCE_S
    while found := list(marked(runtime)):
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue  # it ended just now
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def clean(directory: Path) -> bool:
    """Leave nothing of a demo or lab. False if some process won't go."""
    gone = kill_all(runtime_of(directory))
    cgroups.remove(directory.name)
    shutil.rmtree(directory, ignore_errors=not gone)
    return gone


def main() -> int:
    sys.stdin.buffer.read()
    return 0 if clean(Path(sys.argv[1])) else 1


if __name__ == "__main__":
    sys.exit(main())
