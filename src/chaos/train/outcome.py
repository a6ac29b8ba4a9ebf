"""What came of the last step, for the script to log."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Outcome:
    """The last applied step to which anybody contributed."""

    step: int = 0
    """Its number; 0 before the first."""
    loss: float | None = None
    """Mean loss over the samples of all contributors that gave one."""
    weight: float = 0.0
    """Total weight, i.e. the number of samples unless the scripts gave other weights."""
    skipped: str = ""
    """Empty, or why no update was made."""
    wait_s: float = 0.0
    """Seconds for which this worker waited for the step's result."""

    def with_wait(self, seconds: float) -> Outcome:
        """The same outcome after so long a wait."""
        return replace(self, wait_s=seconds)
