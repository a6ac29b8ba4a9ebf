"""How long a change of the view is under way at this peer: what the trace tells of it. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from chaos.core.types import View

Cause = tuple[str, str]
"""A kind of change and whom it is about: a peer's id, or a link's two ids with a space between."""


@dataclass
class Handling:
    """Times are seconds on this peer's monotonic clock."""

    learned: dict[Cause, float] = field(default_factory=dict)
    """Changes that are due, and when this peer first knew of each."""
    proposed: float | None = None
    """When this peer made, or promised, the first proposal of the next view."""
    decided: float | None = None
    """When a quorum had voted for this peer's own proposal."""
    doubted: dict[str, float] = field(default_factory=dict)
    """Peers that are not heard, and since when: a failure is learned of when its first sign is."""

    done: int = 0
    """Changes that were installed so far."""

    @property
    def open(self) -> bool:
        """Whether a change is under way, as far as this peer knows."""
        return bool(self.learned) or self.proposed is not None

    @property
    def stage(self) -> tuple[bool, int]:
        """Differs after an event that had to do with a change."""
        return self.open, self.done

    def see(self, causes: Iterable[Cause], now: float) -> None:
        """These changes are due at present, and no others."""
        self.learned = {
            cause: self.learned.get(cause, self.doubted.get(cause[1], now) if cause[0] == "failure" else now)
            for cause in causes
        }

    def doubt(self, peer: str, now: float) -> None:
        self.doubted.setdefault(peer, now)

    def heard(self, peer: str) -> None:
        self.doubted.pop(peer, None)

    def installed(self, before: View, view: View, now: float) -> dict[str, Any]:
        """The trace's line on the change from `before` to `view`, which begins to hold here at `now`."""
        settled = changes(before, view)
        known = [at for cause, at in self.learned.items() if cause in settled]
        known += [self.doubted[peer] for kind, peer in settled if kind == "failure" and peer in self.doubted]
        proposed = self.proposed if self.proposed is not None else now
        learned = min(known, default=proposed)
        line = {
            "view": view.id, "cause": settled[0][0] if settled else "", "causes": settled,
            "learned": learned, "proposed": max(proposed, learned), "decided": self.decided or now, "installed": now,
            "proposer": self.decided is not None, "handling_ms": round((now - learned) * 1000, 3),
            "reason": view.reason,
        }  # fmt: skip
        self.proposed = self.decided = None
        self.done += 1
        self.learned = {cause: at for cause, at in self.learned.items() if cause not in settled}
        return line

    def forget(self) -> None:
        """This peer starts over."""
        self.learned.clear()
        self.doubted.clear()
        self.proposed = self.decided = None


def changes(before: View, view: View) -> list[Cause]:
    """What differs between two views that follow each other, most telling first. Kinds are those of the design."""
    left = [m.id for m in before.members if not view.member(m.id)]
    found = [("failure" if view.abort else "scale-in", peer) for peer in left]
    found += [("scale-out", m.id) for m in view.members if not before.member(m.id)]
    found += [("disconnect-link", " ".join(ends)) for ends in view.cut if ends not in before.cut]
    found += [("connect-link", " ".join(ends)) for ends in before.cut if ends not in view.cut]
    found += [("admit", p.id) for p in view.learners if p not in before.learners and not before.member(p.id)]
    found += [("learner-lost", p.id) for p in before.learners if not view.knows(p.id)]
    if not found and view.shares != before.shares:
        found.append(("sync-plan", ""))
    return found
