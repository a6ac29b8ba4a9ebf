"""How a joiner catches up, as a table; and the model's formula against playing the join through."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chaos.core.errors import ChaosError
from chaos.planning.catchup import JoinCosts, choose

MB = 10**6

BASE = JoinCosts(
    state_bytes=300 * MB,
    result_bytes=100 * MB,
    step_s=10.0,
    downlink=25 * MB,
    donors_bandwidth=60 * MB,
    queue_bytes=1000 * MB,
    replay_s=0.5,
)

# A link of 25 MB/s carries the results at 10 MB/s and leaves 15: 20 s for the state, in which 2 results come.
# They take 2 * 0.5 / (1 - 0.5 / 10) = 1.0526 s to replay. Alone, the state takes 12 s.
TABLE = [
    ("plain", {}, "replay", 20 + 1 / 0.95, 0.0, "the 2 results that come meanwhile"),
    ("donors are the narrow part", {"donors_bandwidth": 20 * MB}, "replay", 30 + 1.5 / 0.95, 0.0, "30 s"),
    ("not replayable", {"obstacle": "it failed before"}, "late", 12.0, 12.0, "it failed before; so"),
    ("results fill the link", {"step_s": 4.0}, "late", 12.0, 12.0, "need 2.5e+07 B/s of a link of 2.5e+07"),
    ("results overfill it", {"step_s": 1.0}, "late", 12.0, 12.0, "results alone need 1e+08 B/s"),
    ("queue just suffices", {"queue_bytes": 200 * MB}, "replay", 20 + 1 / 0.95, 0.0, "replay"),
    ("queue too small", {"queue_bytes": 200 * MB - 1}, "late", 12.0, 12.0, "queue holds 199999999 bytes"),
    ("never gains on the run", {"replay_s": 10.0}, "late", 12.0, 12.0, "one in 10 s"),
    ("instant replay", {"replay_s": 0.0}, "replay", 20.0, 0.0, "0 s to replay"),
]


@pytest.mark.parametrize(
    ("changes", "mode", "delay_s", "pause_s", "words"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE]
)
def test_decision(changes: dict[str, float], mode: str, delay_s: float, pause_s: float, words: str) -> None:
    decision = choose(replace(BASE, **changes))
    assert decision.mode == mode
    assert decision.delay_s == pytest.approx(delay_s)
    assert decision.pause_s == pytest.approx(pause_s)
    assert words in decision.reason
    assert "\n" not in decision.reason


@given(
    state=st.integers(1, 10**10),
    step_s=st.floats(0.1, 60),
    replay_s=st.floats(0, 30),
    link=st.floats(1e5, 1e9),
)
def test_the_promised_delay_holds_when_played_through(state: int, step_s: float, replay_s: float, link: float) -> None:
    """Result by result: the joiner is never further behind at the promised time than one step."""
    costs = replace(BASE, state_bytes=state, step_s=step_s, replay_s=replay_s, downlink=link, queue_bytes=10**18)
    decision = choose(costs)
    assume(decision.mode == "replay" and decision.delay_s < 5000 * step_s)
    now = state / (min(link, BASE.donors_bandwidth) - BASE.result_bytes / step_s)
    applied = 0
    while applied < math.floor(now / step_s + 1e-9):
        now += replay_s
        applied += 1
    assert now <= decision.delay_s * (1 + 1e-9) + replay_s


@pytest.mark.parametrize("field", ["state_bytes", "result_bytes", "step_s", "downlink", "donors_bandwidth"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_senseless_input(field: str, value: float) -> None:
    with pytest.raises(ChaosError, match=f"{field} = {value}"):
        replace(BASE, **{field: value})


def test_senseless_replay_time() -> None:
    with pytest.raises(ChaosError, match="replay_s = -1"):
        replace(BASE, replay_s=-1)
