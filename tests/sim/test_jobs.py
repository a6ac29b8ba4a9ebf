"""`chaos sim --jobs`: the same whoever runs which seed, and nothing is left running or unsaid when a process ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from chaos.cli.main import app
from chaos.cli.sim import parse_peers
from chaos.core.errors import ChaosError
from chaos.sim import jobs
from chaos.sim.jobs import in_order
from chaos.sim.mix import random_run

PATIENCE_S = 120.0
FEW = ("sim", "--random", "--peers", "2..3", "--seeds", "0..5")
"""Quick runs."""


def late_if_even(seed: int) -> int:
    time.sleep(0.05 * (seed % 2 == 0))
    return -seed


def explodes(seed: int) -> int:
    if seed == 3:
        raise ZeroDivisionError("of all things")
    return seed


def is_killed(seed: int) -> int:
    if seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return seed


@pytest.mark.parametrize("many", [1, 3])
def test_results_come_in_the_order_of_the_seeds(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "AHEAD", 4)
    assert list(in_order(late_if_even, range(10, 21), many)) == [-seed for seed in range(10, 21)]


@pytest.mark.parametrize(("work", "code"), [(explodes, 1), (is_killed, -signal.SIGKILL)])
def test_a_process_that_ends_is_an_error_that_names_the_seed(work, code: int) -> None:
    seen: list[int] = []
    with pytest.raises(ChaosError, match=f"seed 3 ended with exit code {code} "):
        for result in in_order(work, range(8), 2):
            seen.append(result)
    assert seen == list(range(len(seen))), "those before it were given, in order"
    assert len(seen) <= 3
    assert not multiprocessing.active_children()


def test_the_digest_is_the_same_with_more_processes() -> None:
    one, two = (CliRunner().invoke(app, [*FEW, "--json", "--jobs", jobs]) for jobs in ("1", "2"))
    assert (one.exit_code, two.exit_code) == (0, 0), two.output
    assert one.stdout == two.stdout
    assert json.loads(two.stdout)["runs"] == 6


def test_a_violation_is_told_with_more_processes(tmp_path: Path) -> None:
    """A rule is broken in the processes themselves; the shortest schedule comes from there."""
    broken = "from chaos.core import agreement, pause\nyes = lambda view, agreeing, gone: bool(agreeing)\n"
    broken += "agreement.is_quorum = pause.is_quorum = yes\n"
    scenario = tmp_path / "halves.toml"
    scenario.write_text("peers = 4\n[[fault]]\nat = 0.5\ndo = 'partition'\npeers = [2, 3]\nseconds = 6\n")
    program = tmp_path / "broken.py"
    program.write_text(broken + "if __name__ == '__main__':\n    from chaos.cli.main import main\n    main()\n")

    def said(many: str) -> tuple[int, str]:
        command = [sys.executable, str(program), "sim", "--scenario", str(scenario), "--seeds", "0..1", "--jobs", many]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return done.returncode, done.stdout

    code, text = said("2")
    assert code == 1
    assert text.count("breaks I2") == 2
    assert (code, text) == said("1")


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, PATIENCE_S)[1]


CHAOS = """
if __name__ == '__main__':
    import signal
    from chaos.cli.main import main
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_process_outlives_the_one_that_started_them(name: str) -> None:
    command = [sys.executable, "-c", CHAOS, "sim", "--random", "--peers", "2", "--seeds", "0..99999", "--jobs", "2"]
    main = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
    try:
        until = time.monotonic() + PATIENCE_S
        children: list[psutil.Process] = []
        while len(children) < 3 and time.monotonic() < until:  # two, and multiprocessing's own
            time.sleep(0.05)
            children = psutil.Process(main.pid).children(recursive=True)
        assert len(children) == 3
        time.sleep(0.5)
        main.send_signal(signal.Signals[name])
        assert main.wait(PATIENCE_S) != 0
        assert ended(children)
    finally:
        main.kill()
        main.wait()


@pytest.mark.parametrize("text", ["0", "0..3", "5..3", "x", "3..1001"])
def test_peers_that_can_t_be(text: str) -> None:
    with pytest.raises(ChaosError, match=f"--peers {text}: "):
        parse_peers(text)


def test_the_number_of_peers_is_drawn_from_the_range() -> None:
    assert parse_peers("7") == 7
    drawn, again = ([random_run(seed, parse_peers("3..5"))._initial for seed in range(40)] for _ in range(2))
    assert set(drawn) == {3, 4, 5}
    assert drawn == again
