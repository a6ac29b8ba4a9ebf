"""What an operator is told before a view is forced, and that nothing happens unconfirmed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from chaos.cli.force import WORD, confirm, explain
from chaos.cli.status import picture
from chaos.core.errors import ChaosError
from tests.cli.test_main import STATUS

PREVIEW = {
    "refusal": "", "lineage": "aa", "view": 7, "reason": "no quorum without a, b", "members": ["c", "d"],
    "left_out": ["a", "b"], "step": 12, "stable": 11,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_says_who_goes_on_who_is_left_out_and_what_that_risks() -> None:
    told = explain(PREVIEW)
    for needed in ("c, d", "left out: a, b", "risk:", "two runs", "no quorum without a, b", "stable: 11"):
        assert needed in told


@pytest.mark.parametrize("answer", ["", "yes", "FORCE"])
def test_nothing_but_the_word_confirms(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    with pytest.raises(ChaosError, match="nothing was changed; to do it: chaos force-view h:1 --yes"):
        confirm(PREVIEW, "h:1", False, Console(file=io.StringIO()))


def test_the_word_or_the_option_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(f"{WORD}\n"))
    confirm(PREVIEW, "h:1", False, Console(file=io.StringIO()))
    shown = io.StringIO()
    confirm(PREVIEW, "h:1", True, Console(file=shown, width=200))
    assert "left out: a, b" in shown.getvalue()


def test_without_a_terminal_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{WORD}\n"))
    with pytest.raises(ChaosError, match="not confirmed"):
        confirm(PREVIEW, "h:1", False, Console(file=io.StringIO()))


def test_status_says_why_and_since_when_a_run_is_paused_and_who_is_elsewhere() -> None:
    paused = STATUS | {"paused": {"reason": "no quorum without a", "seconds": 34.2}, "other_lineages": {"a": "bb"}}
    shown = io.StringIO()
    Console(file=shown, width=200).print(picture(paused))
    assert "for 34 s: no quorum without a" in shown.getvalue() and "a follows bb" in shown.getvalue()
