"""What goes wrong for one peer is told there, in one line, and costs the others nothing."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from tests.e2e.cluster import START_S, Cluster, Peer
from tests.e2e.lineage import check_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

RAISES_AT_IMPORT = "import no_such_module_anywhere\n"


def said_in_one_line(peer: Peer, *words: str) -> None:
    """Wait for its end: the exit code is not 0, and one line of its output holds all the words."""
    assert peer.wait(START_S) not in (0, None), f"{peer.name} ended as if all were well: {peer.output()}"
    lines = [line for line in peer.output().splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, f"{peer.name} has {len(lines)} lines with {words}: {peer.output()[-3000:]}"


def poisoned_steps(peer: Peer) -> list[tuple[int, str]]:
    """Steps that were skipped in spite of contributions, and why."""
    return [(c["step"], c["skip"]) for c in peer.entries("commit") if c["skip"] and c["contributors"]]


def throw_random_bytes(address: str, seed: int, count: int = 20) -> None:
    """Connections that say nothing sensible: random bytes, a cut TLS greeting, silence, a huge length."""
    host, port = address.rsplit(":", 1)
    generator = random.Random(seed)
    beginnings = (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00", b"\xff" * 16, b"GET / HTTP/1.1\r\n\r\n")
    for number in range(count):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            content = beginnings[number % len(beginnings)] + generator.randbytes(generator.randrange(4096))
            try:
                connection.sendall(content)
            except OSError:
                continue  # it had hung up already


def test_what_is_wrong_with_one_peer_costs_the_others_nothing(cluster: Cluster) -> None:
    job = cluster.job()
    a, b = members = cluster.found("ab", job)
    home = a.address()
    broken = cluster.folder / "broken.py"
    broken.write_text(RAISES_AT_IMPORT)

    bad = {
        "stranger": cluster.start("stranger", job, join=[home], party="unknown"),
        "nobody": cluster.start("nobody", job, join=["127.0.0.1:1"]),
        "port": cluster.start("port", job, "--listen", home, join=[home]),
        "twin": cluster.start("twin", job, join=[home], as_name="b"),
        "broken": cluster.start("broken", None, join=[home], script=broken),
        "missing": cluster.start("missing", job, join=[home], script=Path("no-such-script.py")),
    }
    throw_random_bytes(home, seed=int(os.environ.get("CHAOS_TEST_SEED", "7")))
    said_in_one_line(bad["stranger"], "chaos: error:", "admit")
    said_in_one_line(bad["nobody"], "chaos: error:", "127.0.0.1:1", "nobody listens")
    said_in_one_line(bad["port"], "chaos: error:", home.rsplit(":", 1)[1], "in use", "--listen")
    said_in_one_line(bad["twin"], "chaos: error:", "named b", "--name")
    said_in_one_line(bad["broken"], "ModuleNotFoundError", "no_such_module_anywhere")
    said_in_one_line(bad["missing"], "chaos: error:", "no-such-script.py")

    other_model = cluster.start("other", cluster.job(width=17), join=[home])
    said_in_one_line(other_model, "0.weight", "16", "17")

    assert not [v for peer in members for v in peer.entries("view") if v["abort"]], "a round of the members was aborted"
    (cluster.folder / "poison-b").touch()
    cluster.until(lambda: bool(poisoned_steps(a)), 20, "a step is skipped")
    step, reason = poisoned_steps(a)[0]
    assert reason == "non-finite gradient from b"
    cluster.until(lambda: min(a.step, b.step) >= step + 5, 20, "they go on after the skipped step")
    assert poisoned_steps(a) == poisoned_steps(b) == [(step, reason)]
    cluster.finish(members)
    check_run(cluster, job, members)


def test_a_run_can_be_told_to_stop_at_a_gradient_that_is_not_finite(cluster: Cluster) -> None:
    peers = cluster.found("ab", cluster.job(on_nonfinite="stop"))
    (cluster.folder / "poison-a").touch()
    for peer in peers:
        said_in_one_line(peer, "the run stops at step", "non-finite gradient from a", "on_nonfinite")
