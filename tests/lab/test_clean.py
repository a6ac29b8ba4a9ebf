"""What a lab leaves that was killed together with its guard, and how it goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from chaos.lab.guard import MARK, OWNER, runtime_of
from chaos.lab.hosts import PREFIX


def leave_behind(owner: dict[str, float]) -> tuple[Path, subprocess.Popen[bytes]]:
    """A lab's directory and one of its processes."""
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    (directory / OWNER).write_text(json.dumps(owner))
    environment = os.environ | {MARK: str(runtime_of(directory) / "p0")}
    sleeper = [sys.executable, "-c", "import time; time.sleep(300)"]
    return directory, subprocess.Popen(sleeper, env=environment, start_new_session=True)


def test_what_a_killed_lab_left_goes_and_a_living_one_stays() -> None:
    me = psutil.Process()
    ended, process = leave_behind({"pid": me.pid, "created": me.create_time() - 1000})  # the number is another's now
    lives, stays = leave_behind({"pid": me.pid, "created": me.create_time()})
    try:
        command = [sys.executable, "-m", "chaos.cli.main", "lab", "clean", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        removed = json.loads(done.stdout)["removed"]
        assert str(ended) in removed and str(lives) not in removed
        assert process.wait(5) < 0 and not ended.exists()
        assert stays.poll() is None and lives.exists()
    finally:
        for one in (process, stays):
            one.kill()
            one.wait()
        (lives / OWNER).unlink(missing_ok=True)
        if lives.exists():
            lives.rmdir()
