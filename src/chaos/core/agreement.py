"""Single-decree consensus on the next view: one acceptor per member, one proposal at a time per proposer.

docs/spec/agreement.pml is the model this was written from. Three rules make it safe although killed
members are left out of the quorum: their sealed last words are part of phase 1, a promise in such words
binds like a living member's, and a vote in them counts as seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chaos.core.messages import Accepted, LastWords, Promise, Report
from chaos.core.quorum import is_quorum
from chaos.core.types import Ballot, View


class Acceptor:
    """A member's vote on the view after `view`. Its state is what `LastWords` holds."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.promised: Ballot | None = None
        self.accepted: Accepted | None = None

    @property
    def decree(self) -> int:
        """Id of the view that is being decided."""
        return self.view.id + 1

    def promise(self, ballot: Ballot) -> bool:
        """Promise to ignore lower ballots; False if a higher one was promised already."""
        if self.promised is not None and ballot < self.promised:
            return False
        self.promised = ballot
        return True

    def accept(self, ballot: Ballot, view: View) -> bool:
        """Vote for `view`; False if a higher ballot was promised."""
        if not self.promise(ballot):
            return False
        self.accepted = Accepted(ballot, view)
        return True

    def install(self, view: View) -> None:
        """The next view is decided: forget what was about it."""
        self.view, self.promised, self.accepted = view, None, None

    def words(self, run: str, peer: str, incarnation: int) -> LastWords:
        return LastWords(run, peer, incarnation, self.view, self.promised, self.accepted)


@dataclass
class Proposal:
    """One ballot of one proposer."""

    base: View
    ballot: Ballot
    freeze: bool
    gone: dict[str, LastWords]
    """Sealed last words of members of `base`, by peer."""
    started: float
    promises: dict[str, Promise] = field(default_factory=dict)
    votes: set[str] = field(default_factory=set)
    value: View | None = None
    """Set when phase 2 begins."""

    @property
    def decree(self) -> int:
        return self.base.id + 1

    def _relevant(self) -> list[LastWords]:
        """Words that are about this decree; older ones hold no vote in it."""
        return [w for w in self.gone.values() if w.view.id == self.base.id and w.view.lineage == self.base.lineage]

    def already_decided(self) -> View | None:
        """A view that a dead member had installed and we had not."""
        newer = [w.view for w in self.gone.values() if w.view.id > self.base.id and w.view.lineage == self.base.lineage]
        return max(newer, key=lambda view: view.id, default=None)

    def refused_by_words(self) -> Ballot | None:
        """The highest ballot that a dead member had promised, if it is above ours."""
        promised = [w.promised for w in self._relevant() if w.promised is not None]
        highest = max(promised, default=None)
        return highest if highest is not None and highest > self.ballot else None

    def add_promise(self, peer: str, promise: Promise) -> None:
        if peer in self.base.member_ids() and promise.ballot == self.ballot and peer not in self.gone:
            self.promises[peer] = promise

    def add_vote(self, peer: str, ballot: Ballot) -> None:
        if self.value is not None and peer in self.base.member_ids() and ballot == self.ballot:
            self.votes.add(peer)

    def promised_by_quorum(self) -> bool:
        return is_quorum(self.base, self.promises.keys(), self.gone.keys())

    def accepted_by_quorum(self) -> bool:
        return self.value is not None and is_quorum(self.base, self.votes, self.gone.keys())

    def recovered(self) -> View | None:
        """The value that may have been decided already: the one accepted at the highest ballot."""
        seen = [p.accepted for p in self.promises.values() if p.accepted is not None]
        seen += [w.accepted for w in self._relevant() if w.accepted is not None]
        best = max(seen, key=lambda accepted: accepted.ballot, default=None)
        return None if best is None else best.view

    def reports(self) -> dict[str, Report]:
        return {peer: promise.report for peer, promise in self.promises.items()}
