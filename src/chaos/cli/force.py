"""`chaos force-view`: what it would do and what it risks, said before it is done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from chaos.core.errors import ChaosError

RISK = (
    "If any of those left out still runs (behind a cut network, say), it may go on under the old lineage: then there "
    "are two runs from here on, which differ and are never merged. What only those left out hold is lost. If two "
    "operators force a view on two sides, that also makes two runs."
)
AFTERWARDS = (
    "The old lineage is refused from then on: whoever comes back and has not gone on under it takes the new state and "
    "rejoins as a learner; whoever has gone on is refused, and both sides report it."
)
WORD = "force"


def explain(preview: Mapping[str, Any]) -> str:
    """The lines that an operator is to read first. `preview` is what `Force.preview` gave."""
    left_out = ", ".join(preview["left_out"]) or "nobody"
    return "\n".join(
        [
            f"paused: {preview['reason']}",
            f"carried on: {', '.join(preview['members'])}, after step {preview['step']} (stable: {preview['stable']})",
            f"left out: {left_out}",
            f"risk: {RISK}",
            f"afterwards: {AFTERWARDS}",
        ]
    )


def confirm(preview: Mapping[str, Any], address: str, yes: bool, console: Console) -> None:
    """Show what will happen; go on with --yes, or when the operator types the word.

    Raises:
        ChaosError: it was not confirmed.
    """
    console.print(explain(preview), markup=False, highlight=False)
    if yes:
        return
    remedy = f"nothing was changed; to do it: chaos force-view {address} --yes"
    if not sys.stdin.isatty():
        raise ChaosError(f"not confirmed: {remedy}")
    if console.input(f"Type '{WORD}' to do it: ").strip() != WORD:
        raise ChaosError(f"not confirmed: {remedy}")
