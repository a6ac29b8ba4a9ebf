"""Scenarios as files: what they may say, and what is refused with its reason."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from chaos.core.errors import ChaosError
from chaos.lab.carrier import Quality
from chaos.lab.scenario import load, parse_rate

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").rglob("*.toml"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_all_that_come_with_it_make_sense(path: Path) -> None:
    scenario = load(path)
    assert scenario.name and scenario.fault


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("", (0, 0)),
        ("500kbit", (5e5, 5e5)),
        ("20mbit", (2e7, 2e7)),
        ("1.5Gbit", (1.5e9, 1.5e9)),
        ("20..155mbit", (2e7, 1.55e8)),
    ],
)
def test_rates(text: str, bounds: tuple[float, float]) -> None:
    assert parse_rate(text) == bounds


@pytest.mark.parametrize("text", ["fast", "20", "0mbit", "30..20mbit", "1.2.3mbit", "-5mbit"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ChaosError, match="is no rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("peers = 0", "1 to 64 hosts"),
        ("peers = 65", "1 to 64 hosts"),
        ("colour = 1", "no scenario"),
        ("peers = ", "no scenario"),
        ("host = [{ late = true }]", "founds the run"),
        ("host = [{ name = 'a' }, { name = 'a' }]", "one name"),
        ("rate = 'fast'", "is no rate"),
        ("link = [{ between = [0, 9] }]", "no host 9"),
        ("fault = [{ do = 'explode' }]", "nothing that can happen"),
        ("fault = [{ do = 'flip_bit', peers = [0] }]", "simulator only"),
        ("fault = [{ do = 'cut', peers = [0] }]", "needs 2"),
        ("fault = [{ do = 'leave', peers = ['nobody'] }]", "no host 'nobody'"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(content)
    with pytest.raises(ChaosError, match=reason):
        load(path)


def test_a_link_differs_only_in_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("latency_ms = 7\nrate = '10mbit'\nlink = [{ between = [1, 0], rate = '5..6mbit', loss = 0.1 }]")
    scenario = load(path)
    special, usual = (scenario.quality(pair, Random(1)) for pair in ((0, 1), (0, 2)))
    assert 5e6 <= special.rate <= 6e6 and special.latency_ms == 7 and special.loss == 0.1
    assert usual == Quality(rate=1e7, latency_ms=7)
    assert scenario.pairs() == [(0, 1), (0, 2), (1, 2)]
