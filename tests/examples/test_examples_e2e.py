"""Three parties, each with some digits only, train one model: real agents and workers on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from chaos.agent.party import Party
from chaos.examples import digits

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CLASSES = ("0-3", "4-6", "7-9")
START_S = 60.0
TRAIN_S = 240.0


def address(log: Path) -> str:
    """Where the peer with this output listens."""
    deadline = time.monotonic() + START_S
    while (found := re.search(r"^chaos: peer \S+ listens at (\S+)$", log.read_text(), re.MULTILINE)) is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found.group(1)


@contextmanager
def peer(folder: Path, number: int, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """One party's peer, and the file with its output. Leaves properly if the test ends early."""
    command = [sys.executable, "-m", "chaos.cli.main", "run", "--name", f"p{number}", "--listen", "127.0.0.1:0"]
    command += ["--party", str(folder / str(number)), *options, str(digits.__file__), "--classes", CLASSES[number]]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHAOS_")}
    environment |= {"CHAOS_RUNTIME_DIR": str(folder / "runtime"), "OMP_NUM_THREADS": "1"}
    log = folder / f"{number}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    try:
        yield process, log
    finally:
        process.terminate()
        process.wait(START_S)


def test_three_parties_know_together_what_none_knows_alone(tmp_path: Path) -> None:
    parties = [Party.init(tmp_path / str(number), f"party-{number}") for number in range(3)]
    for one in parties:
        for other in parties:
            if other is not one:
                one.admit(other.root.pem)
    with ExitStack() as stack:
        peers = [stack.enter_context(peer(tmp_path, 0, "--min-peers", "3"))]
        founder = address(peers[0][1])
        peers += [stack.enter_context(peer(tmp_path, number, "--join", founder)) for number in (1, 2)]
        for process, log in peers:
            assert process.wait(TRAIN_S) == 0, log.read_text()
    results = [re.findall(r"([\d.]+)% of the test images", log.read_text()) for _, log in peers]
    assert [len(found) for found in results] == [1, 1, 1]
    # Not the number of steps: some may take part in a last, empty one while others have left.
    assert len({found[0] for found in results}) == 1, "one model, whoever holds it"
    assert float(results[0][0]) > 90
