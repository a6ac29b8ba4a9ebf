"""Whatever way a demo ends, its processes and files end with it. Real processes, which do nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import psutil
import pytest

from chaos.cli import demo_peers
from chaos.cli.demo_peers import DemoPeers
from chaos.core.errors import ChaosError
from chaos.lab.guard import ENDING, MARK, kill_all, marked, runtime_of

SLEEPER = [sys.executable, "-c", "import time; time.sleep(300)"]


def sleeper(runtime: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEPER, env=os.environ | {MARK: str(runtime)}, start_new_session=True)


def test_only_marked_processes_are_killed(tmp_path: Path) -> None:
    ours, other = sleeper(tmp_path / "ours"), sleeper(tmp_path / "other")
    try:
        assert [p.pid for p in marked(tmp_path / "ours")] == [ours.pid]
        assert kill_all(tmp_path / "ours")
        assert ours.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


DEMO = """
import os, signal, subprocess, sys
from pathlib import Path
from chaos.cli.demo_peers import DemoPeers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
with DemoPeers(Path("none"), []) as peers:
    child = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time;"
         "print(1, flush=True); time.sleep(300)'])"],
        env=peers.environment(), start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    print(peers.directory, flush=True)
    {ending}
"""


@pytest.mark.parametrize(
    ("ending", "signal_number"),
    [
        ("pass", None),
        ("raise ValueError", None),
        ("os._exit(3)", None),
        ("os.kill(os.getpid(), 9)", None),
        ("child.wait()", signal.SIGKILL),
        ("child.wait()", signal.SIGINT),
    ],
)
def test_nothing_is_left(ending: str, signal_number: signal.Signals | None) -> None:
    source = textwrap.dedent(DEMO).replace("{ending}", ending)
    demo = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    directory = Path(demo.stdout.readline().strip())
    started = list(marked(runtime_of(directory)))
    guards = [p for p in psutil.process_iter() if p.is_running() and str(directory) in _command(p)]
    if signal_number is not None:
        assert len(started) == 2 and len(guards) == 1
        demo.send_signal(signal_number)
    demo.communicate(timeout=30)
    psutil.wait_procs(guards, timeout=20)
    assert list(marked(runtime_of(directory))) == []
    assert not directory.exists()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_the_guard_heeds_no_signal() -> None:
    """Ctrl-C and the end of a session reach every process of a terminal; the guard is to outlive the demo."""
    with DemoPeers(Path("none"), []) as peers:
        guard = psutil.Process(peers._guard.process.pid)
        for number in ENDING:
            guard.send_signal(number)
        assert guard.is_running() and guard.status() != psutil.STATUS_ZOMBIE
        directory = peers.directory
    assert not directory.exists()


def test_the_parties_admit_each_other() -> None:
    with DemoPeers(Path("none"), []) as peers:
        parties = [peers._parties[name] for name in demo_peers.PARTIES]
        for party in parties:
            assert {root.fingerprint for root in party.roots()} == {p.fingerprint for p in parties}
        assert peers.peer_id(1) != peers.peer_id(4)
        assert (peers.party_of(1), peers.party_of(4)) == ("north", "north")


def test_the_user_s_own_settings_do_not_reach_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAOS_JOIN", "10.0.0.1:1")
    with DemoPeers(Path("none"), []) as peers:
        environment = peers.environment()
        assert "CHAOS_JOIN" not in environment
        assert environment[MARK] == str(runtime_of(peers.directory))


def test_a_guard_that_failed_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ChaosError, match="the demo could not be cleaned up"), DemoPeers(Path("none"), []):
        pass


def test_a_missing_script_is_reported(tmp_path: Path) -> None:
    with DemoPeers(tmp_path / "none.py", []) as peers:
        peer = peers.start(1)
        with pytest.raises(ChaosError, match=r"peer-1 does not listen .*exit code 1; its last line: .*none\.py"):
            peer.address()
        with pytest.raises(ChaosError, match=r"peer-1 failed .*there is no script"):
            peer.check()
