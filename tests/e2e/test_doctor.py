"""`chaos doctor` beside a real run: what it measures, what it says of a stranger, and that the run does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from chaos.agent.party import Party
from chaos.cli.main import app
from tests.e2e.cluster import Cluster

pytestmark = pytest.mark.e2e


def doctor(party: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and findings by what they are about."""
    result = CliRunner().invoke(app, ["doctor", "--party", str(party), *options, "--json"])
    answer = json.loads(result.stdout)
    return result.exit_code, {finding["what"]: finding for finding in answer["findings"]}


def test_a_run_of_two_is_looked_at_and_goes_on(cluster: Cluster) -> None:
    a, b = cluster.found("ab", cluster.job())
    home = cluster.party("home").directory
    code, found = doctor(home, "--join", a.address(), "--listen", "127.0.0.1:0", "--checkpoint", str(cluster.folder))
    for name in "ab":
        assert found[f"to {name}"]["level"] == found[f"from {name}"]["level"] == "ok"
        assert "MB/s" in found[f"line to {name}"]["text"]
    assert code == any(f["level"] == "problem" for f in found.values())
    assert {found[what]["level"] for what in ("party", "certificate", "clock", "versions")} == {"ok"}
    stranger = Party.init(cluster.folder / "stranger", "stranger")
    code, found = doctor(stranger.directory, "--join", a.address(), "--listen", "127.0.0.1:0")
    assert code == 1 and "admit" in found["to the run"]["text"]
    code, found = doctor(home, "--join", "127.0.0.1:1", "--listen", "127.0.0.1:0")
    assert code == 1 and "nobody listens" in found["to the run"]["text"]
    cluster.finish([a, b])
    assert all(not peer.entries("admit") or peer.name == "a" for peer in (a, b))
    assert {name for view in a.entries("view") for name in (*view["members"], *view["learners"])} == {"a", "b"}
