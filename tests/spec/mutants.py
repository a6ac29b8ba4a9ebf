"""Ways to break the agreement in the code, each of which the model has to notice."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from chaos.core import agreement
from chaos.core.agreement import Acceptor, Proposal
from chaos.core.messages import Accepted
from chaos.core.quorum import weights
from chaos.core.steps import Steps
from chaos.core.types import Ballot, View


def promise_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A member answers a ballot although it promised a higher one."""

    def promise(self: Acceptor, ballot: Ballot) -> bool:
        self.promised = ballot
        return True

    patch.setattr(Acceptor, "promise", promise)


def quorum_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """One member fewer than a quorum is enough."""

    def is_quorum(view: View, agreeing: Collection[str], gone: Collection[str]) -> bool:
        present = {peer: weight for peer, weight in weights(view).items() if peer not in gone}
        agree = sum(weight for peer, weight in present.items() if peer in agreeing)
        return bool(agree) and 2 * (agree + 2) > sum(present.values())

    patch.setattr(agreement, "is_quorum", is_quorum)


def vote_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A proposer makes a value of its own where one was accepted already."""
    patch.setattr(Proposal, "recovered", lambda _: None)


def words_unread(patch: pytest.MonkeyPatch) -> None:
    """The promises and votes of the dead are not looked at."""
    patch.setattr(Proposal, "_relevant", lambda _: [])


def no_freeze(patch: pytest.MonkeyPatch) -> None:
    """Steps are finished and opened after a promise as before."""
    patch.setattr(Steps, "hold", lambda _self, _freeze: None)


def vote_without_promise(patch: pytest.MonkeyPatch) -> None:
    """A member votes in a ballot below the one it promised."""

    def accept(self: Acceptor, ballot: Ballot, view: View) -> bool:
        self.accepted = Accepted(ballot, view)
        return True

    patch.setattr(Acceptor, "accept", accept)


MUTANTS = (promise_forgotten, quorum_off_by_one, vote_forgotten, words_unread, no_freeze, vote_without_promise)
