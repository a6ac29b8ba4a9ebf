"""The demo for real: agents, workers and links, as a user sees them."""

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
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

KEYS = {
    *("steps", "loss_first", "loss_last", "peers_final", "digests_equal", "lost_updates", "samples_counted_twice"),
    "events",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the demo puts its files; nothing may be left of it, nor a process that knows it."""
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert [line for line in map(_command, psutil.process_iter()) if str(tmp_path) in line] == []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chaos.cli.main", "demo", *arguments]
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def await_founding(demo: subprocess.Popen[str]) -> None:
    """Until its first peer stands ready."""
    assert demo.stdout is not None and demo.stderr is not None
    line = demo.stdout.readline()
    assert "founded" in line, line or demo.stderr.read()


def test_join_kill_and_leave(folder: Path) -> None:
    demo = start(folder, "--json", "--peers", "3", "--steps", "120", "--seed", "7")
    output, lines = demo.communicate()
    assert demo.returncode == 0, lines
    result = json.loads(output.splitlines()[-1])
    assert result.keys() == KEYS
    assert (result["steps"], result["peers_final"], result["digests_equal"]) == (120, 2, True)
    assert (result["lost_updates"], result["samples_counted_twice"]) == (0, 0)
    assert 5 < result["loss_first"] < 6.5 and result["loss_last"] < 3.2
    events = result["events"]
    assert [(e["kind"], e["peer"]) for e in events] == [
        ("scale-out", "peer-4"),
        ("failure", "peer-1"),
        ("scale-in", "peer-3"),
    ]
    for event in events:
        assert event.keys() == {"kind", "peer", "delay_s", "stall_s", "steps_during"}
        assert event["delay_s"] > 0 and event["stall_s"] >= 0
    assert events[0]["steps_during"] > 1, "the others went on while peer-4 joined"
    report = Path(lines.split("report: ")[1].splitlines()[0])
    assert "peer-4 joins as a member" in report.read_text() and report.is_relative_to(folder)
    shutil.rmtree(report.parent)  # the one thing that a demo leaves


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_any_time(folder: Path, number: signal.Signals) -> None:
    demo = start(folder, "--peers", "2")
    await_founding(demo)
    demo.send_signal(number)
    began = time.monotonic()
    demo.communicate()
    assert demo.returncode == 128 + number
    assert time.monotonic() - began < 20


def test_a_killed_demo_leaves_nothing_either(folder: Path) -> None:
    demo = start(folder, "--peers", "2")
    await_founding(demo)
    guards = [p for p in psutil.process_iter() if "chaos.lab.guard" in _command(p) and str(folder) in _command(p)]
    assert len(guards) == 1
    demo.kill()
    demo.communicate()
    psutil.wait_procs(guards, timeout=30)


def test_the_folder_is_used() -> None:
    """Else the other tests here would prove nothing."""
    code = "import tempfile; print(tempfile.gettempdir())"
    elsewhere = os.environ | {"TMPDIR": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=elsewhere)
    assert done.stdout.strip() == str(Path(__file__).parent) != tempfile.gettempdir()
