"""Lines that other peers tell: whatever stands in their fields, the picture goes on and can be shown."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.observe.fold import Fold
from chaos.observe.plots import presence
from chaos.observe.report import page
from chaos.observe.sentences import _WORDS, sentence
from chaos.observe.shapes import is_sound
from chaos.observe.trace import is_line
from tests.fuzz.targets import seeds
from tests.observe.test_report import lines as story

SMALL = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**63), st.floats(), st.sampled_from(["a", "b", "", "<b>", "1" * 16])
)
VALUES = st.recursive(
    SMALL, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
)
KNOWN: list[dict[str, Any]] = [json.loads(text) for text in seeds("trace")[0].splitlines()] + story()
FIELDS = sorted({field for line in KNOWN for field in line} - {"wall", "stamp", "kind", "peer"})
KINDS = sorted({*Fold()._by_kind, *_WORDS})


@st.composite
def told(draw: st.DrawFn) -> dict[str, Any]:
    """A line as somebody malicious would tell it: of a known kind, with anything in its fields."""
    line = dict(draw(st.sampled_from(KNOWN)))
    line["kind"] = draw(st.sampled_from([line["kind"], *KINDS]))
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=4)):
        line[field] = draw(VALUES)
    line["stamp"] = draw(st.integers(0, 2**63))
    return line


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(told(), min_size=1, max_size=12))
def test_the_picture_goes_on(lines: list[dict[str, Any]]) -> None:
    assert all(map(is_line, lines))
    picture = Fold().take_all(lines)
    picture.as_json()
    picture.standing()
    for line in lines:
        assert isinstance(sentence(line), str)


def test_honest_lines_are_sound() -> None:
    assert [line["kind"] for line in KNOWN if not is_sound(line)] == []


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(told(), min_size=1, max_size=12))
def test_the_report_is_written(lines: list[dict[str, Any]]) -> None:
    presence(lines)
    assert page(Fold().take_all(lines), [], [], ["a.jsonl"]).endswith("</html>\n")
