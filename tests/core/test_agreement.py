"""Every order of messages, proposals and deaths among two or three members: never two decisions on one view.

The states are explored exhaustively, with the real acceptor and proposal making each step. What is left to
the exploration is what a network and a killer may do. Three weakened rules show that it finds forks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import pytest

from chaos.core.agreement import Acceptor, Proposal
from chaos.core.messages import Accepted, LastWords, Promise, Report
from chaos.core.quorum import is_quorum, weights
from chaos.core.types import Ballot, View
from chaos.sim.symbols import info, peer_id

PEERS = [info(i) for i in range(4)]
REPORT = Report(0, 0, True)


def view_of(count: int) -> View:
    return View("one", 1, tuple(PEERS[:count]), (), 1, False, (), "base")


def outcome(number: int) -> View:
    """The value that proposal `number` would choose by itself."""
    return View("one", 2, (PEERS[0],), (), number, False, (), f"value {number}")


@dataclass(frozen=True)
class Member:
    promised: int = 0
    accepted: int = 0
    value: int = 0
    installed: int = 0
    dead: bool = False


@dataclass(frozen=True)
class Attempt:
    """A proposal that was started: whose words it has, who promised (with what accepted), who voted."""

    gone: tuple[int, ...]
    promises: tuple[tuple[int, int, int], ...] = ()
    value: int = 0
    votes: tuple[int, ...] = ()


@dataclass(frozen=True)
class State:
    members: tuple[Member, ...]
    attempts: tuple[Attempt | None, ...]
    decided: int = 0


class Forked(AssertionError):
    pass


class Explorer:
    """All runs of so many members with so many crashes; `proposers[i]` starts ballot i + 1."""

    def __init__(self, count: int, proposers: tuple[int, ...], crashes: int) -> None:
        self.base, self.proposers, self.crashes = view_of(count), proposers, crashes
        self.start = State(tuple(Member() for _ in range(count)), (None,) * len(proposers))

    def ballot(self, attempt: int) -> Ballot:
        return Ballot(attempt, peer_id(self.proposers[attempt - 1]))

    def acceptor(self, member: Member) -> Acceptor:
        result = Acceptor(self.base)
        result.promised = self.ballot(member.promised) if member.promised else None
        result.accepted = Accepted(self.ballot(member.accepted), outcome(member.value)) if member.accepted else None
        if member.installed:
            result.install(outcome(member.installed))
        return result

    def words(self, index: int, member: Member) -> LastWords:
        return self.acceptor(member).words("run", peer_id(index), 1)

    def proposal(self, state: State, number: int) -> Proposal:
        attempt = state.attempts[number - 1]
        assert attempt is not None
        gone = {peer_id(i): self.words(i, state.members[i]) for i in attempt.gone}
        result = Proposal(self.base, self.ballot(number), True, gone, 0.0)
        for index, ballot, value in attempt.promises:
            accepted = Accepted(self.ballot(ballot), outcome(value)) if ballot else None
            result.add_promise(peer_id(index), Promise(2, self.ballot(number), REPORT, accepted))
        if attempt.value:
            result.value = outcome(attempt.value)
            for index in attempt.votes:
                result.add_vote(peer_id(index), self.ballot(number))
        return result

    def explore(self) -> int:
        """Visit every state that can be reached; returns how many there are."""
        seen, todo = {self.start}, [self.start]
        while todo:
            for state in self.successors(todo.pop()):
                if state not in seen:
                    seen.add(state)
                    todo.append(state)
        return len(seen)

    def successors(self, state: State) -> list[State]:
        result = []
        dead = [i for i, m in enumerate(state.members) if m.dead]
        for i, member in enumerate(state.members):
            if not member.dead and len(dead) < self.crashes:
                result.append(self.with_member(state, i, replace(member, dead=True)))
            if not member.dead and state.decided and not member.installed:
                result.append(self.with_member(state, i, Member(installed=state.decided)))
        for number in range(1, len(state.attempts) + 1):
            attempt = state.attempts[number - 1]
            proposer = self.proposers[number - 1]
            if attempt is None:
                if not state.members[proposer].dead and not state.members[proposer].installed:
                    for size in range(len(dead) + 1):
                        for gone in combinations(dead, size):
                            result.append(self.with_attempt(state, number, Attempt(gone)))
                continue
            if not state.members[proposer].dead:
                result += self.choose(state, number, attempt)
            for i, member in enumerate(state.members):
                if not member.dead and not member.installed:
                    result += self.prepare(state, number, attempt, i)
                    result += self.accept(state, number, attempt, i)
        return result

    def with_member(self, state: State, index: int, member: Member) -> State:
        return replace(state, members=(*state.members[:index], member, *state.members[index + 1 :]))

    def with_attempt(self, state: State, number: int, attempt: Attempt) -> State:
        return replace(state, attempts=(*state.attempts[: number - 1], attempt, *state.attempts[number:]))

    def prepare(self, state: State, number: int, attempt: Attempt, index: int) -> list[State]:
        member = state.members[index]
        acceptor = self.acceptor(member)
        if any(p[0] == index for p in attempt.promises) or not acceptor.promise(self.ballot(number)):
            return []
        after = self.with_member(state, index, replace(member, promised=number))
        promised = (*attempt.promises, (index, member.accepted, member.value))
        return [after, self.with_attempt(after, number, replace(attempt, promises=tuple(sorted(promised))))]

    def choose(self, state: State, number: int, attempt: Attempt) -> list[State]:
        proposal = self.proposal(state, number)
        blocked = proposal.already_decided() is not None or proposal.refused_by_words() is not None
        if attempt.value or blocked or not proposal.promised_by_quorum():
            return []
        recovered = proposal.recovered()
        value = number if recovered is None else recovered.first_step
        return [self.with_attempt(state, number, replace(attempt, value=value))]

    def accept(self, state: State, number: int, attempt: Attempt, index: int) -> list[State]:
        member = state.members[index]
        if not attempt.value or index in attempt.votes:
            return []
        if not self.acceptor(member).accept(self.ballot(number), outcome(attempt.value)):
            return []
        voted = replace(member, promised=number, accepted=number, value=attempt.value)
        after = self.with_member(state, index, voted)
        after = self.with_attempt(after, number, replace(attempt, votes=tuple(sorted((*attempt.votes, index)))))
        if self.proposal(after, number).accepted_by_quorum():
            if after.decided and after.decided != attempt.value:
                raise Forked(f"{after.decided} and {attempt.value}: {after}")
            after = replace(after, decided=attempt.value)
        return [after]


def promised_by_three_of_four() -> Explorer:
    """Of members a, b, c, d, the last three promised c's ballot 2; then b and d died. a may start ballot 1."""
    explorer = Explorer(4, (0, 2), 2)
    quiet, dead = Member(promised=2), Member(promised=2, dead=True)
    second = Attempt((), ((1, 0, 0), (2, 0, 0), (3, 0, 0)))
    explorer.start = State((Member(), dead, quiet, dead), (None, second))
    return explorer


@pytest.mark.parametrize(
    ("explorer", "states"),
    [
        (Explorer(2, (0, 1), 2), 500),
        (Explorer(3, (0, 1), 1), 5000),
        (promised_by_three_of_four(), 50),
    ],
)
def test_one_decision_in_every_order(explorer: Explorer, states: int) -> None:
    assert explorer.explore() > states


WEAKENED = {
    "votes in last words are ignored": ("recovered", lambda self: max(
        (p.accepted for p in self.promises.values() if p.accepted is not None), key=lambda a: a.ballot, default=None
    )),
    "promises in last words are ignored": ("refused_by_words", lambda _: None),
    "installed views in last words are ignored": ("already_decided", lambda _: None),
}  # fmt: skip


@pytest.mark.parametrize("rule", WEAKENED)
def test_each_rule_about_last_words_is_needed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, weaker = WEAKENED[rule]
    if name == "recovered":
        chosen = weaker
        monkeypatch.setattr(Proposal, name, lambda self: (a := chosen(self)) and a.view)
    else:
        monkeypatch.setattr(Proposal, name, weaker)
    with pytest.raises(Forked):
        Explorer(2, (0, 1), 2).explore()
        promised_by_three_of_four().explore()


def test_acceptor_forgets_no_promise() -> None:
    acceptor = Acceptor(view_of(3))
    low, high = Ballot(1, peer_id(0)), Ballot(1, peer_id(1))
    assert acceptor.promise(high)
    assert not acceptor.promise(low)
    assert not acceptor.accept(low, outcome(1))
    assert acceptor.accept(high, outcome(2))
    assert acceptor.accepted is not None and acceptor.accepted.view == outcome(2)
    assert acceptor.words("run", peer_id(0), 1).accepted == acceptor.accepted
    acceptor.install(outcome(2))
    assert (acceptor.promised, acceptor.accepted, acceptor.decree) == (None, None, 3)


# --- quorums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "agreeing", "gone", "enough"),
    [
        (1, [0], [], True),
        (2, [0], [], True),  # the lowest rank weighs 1.5
        (2, [1], [], False),
        (2, [1], [0], True),  # sealed: it needs nobody else
        (3, [0], [], False),
        (3, [1, 2], [], True),
        (3, [1], [2], False),
        (3, [0], [1, 2], True),
        (4, [0, 1], [], True),
        (4, [2, 3], [], False),
        (4, [2, 3], [0], True),
        (4, [1], [0, 2], False),
        (4, [0], [2, 3], True),
        (4, [], [0, 1, 2, 3], False),
    ],
)
def test_quorum(count: int, agreeing: list[int], gone: list[int], enough: bool) -> None:
    ids = [peer_id(i) for i in range(4)]
    assert is_quorum(view_of(count), {ids[i] for i in agreeing}, {ids[i] for i in gone}) == enough


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_two_quorums_with_the_same_gone_meet(count: int) -> None:
    view, ids = view_of(count), [peer_id(i) for i in range(count)]
    subsets = [set(c) for size in range(count + 1) for c in combinations(ids, size)]
    for gone in subsets:
        quorums = [s for s in subsets if is_quorum(view, s, gone)]
        assert all((a - gone) & (b - gone) for a in quorums for b in quorums)
        rest = set(ids) - gone
        assert not rest or is_quorum(view, rest, gone), "all that are left can always decide"


def test_strangers_weigh_nothing() -> None:
    assert not is_quorum(view_of(3), {peer_id(0), peer_id(9)}, set())
    assert weights(view_of(2)) == {peer_id(0): 3, peer_id(1): 2}
