"""One attempt at a step, as one node knows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos.core.events import RoundComplete
from chaos.core.messages import FinishedStep
from chaos.core.types import View
from chaos.core.worker_messages import Contribution


@dataclass
class Round:
    """One attempt at a step."""

    view: View
    contributions: dict[str, Contribution] = field(default_factory=dict)
    known_at: dict[str, float] = field(default_factory=dict)
    """When each of them became known here."""
    complete: RoundComplete | None = None
    fetching: str = ""
    """The member that was asked for its finished result."""
    mark: int = 0
    """The view id that its frames bear."""
    dropped: bool = False
    """There was no room for its bytes: they are fetched once there is."""
    fetched: FinishedStep | None = None
    """What it answered, apart from the bytes."""

    @property
    def has_all(self) -> bool:
        """Whether every member's part is known."""
        members = self.view.member_ids()
        return len(self.contributions) >= len(members) and all(m in self.contributions for m in members)
