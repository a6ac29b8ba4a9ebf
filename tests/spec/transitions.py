"""Prints the agreement's transitions, as the code makes them, into docs/protocol.md.

    python -m tests.spec.transitions

Every row is an answer of the real `Node` or `Proposal` to one situation; nothing here knows what it should be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from chaos.core import actions as act
from chaos.core import events as ev
from chaos.core.agreement import Acceptor, Proposal
from chaos.core.context import NodeConfig, Role
from chaos.core.messages import (
    Accept,
    Accepted,
    Decide,
    LastWords,
    Nack,
    PeerMessage,
    Prepare,
    Promise,
    Report,
    Vote,
)
from chaos.core.node import Node
from chaos.core.quorum import is_quorum
from chaos.core.types import Ballot, View
from chaos.sim.symbols import info, verify

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
BEGIN, END = "<!-- transitions: made by python -m tests.spec.transitions -->", "<!-- end of transitions -->"

PEERS = [info(i) for i in range(6)]
LOW, MINE, HIGH = (Ballot(number, PEERS[0].id) for number in (2, 3, 4))
REPORT = Report(7, 8, True)


def view(number: int, count: int = 3, lineage: str = "one") -> View:
    return View(lineage, number, tuple(PEERS[:count]), (), 8, False, (), "")


BASE, NEXT, OTHER = view(5), view(6), view(6, 2)


def table(header: str, rows: Iterable[tuple[str, ...]]) -> list[str]:
    columns = header.count("|") + 1
    return [f"| {header} |", "|" + "---|" * columns, *("| " + " | ".join(row) + " |" for row in rows), ""]


# --- a member's answers ----------------------------------------------------------------------------------------

STATES: list[tuple[str, Ballot | None, Accepted | None]] = [
    ("nothing promised", None, None),
    ("promised lower", LOW, None),
    ("promised b", MINE, None),
    ("promised higher", HIGH, None),
    ("accepted V at lower", LOW, Accepted(LOW, NEXT)),
    ("accepted V at higher", HIGH, Accepted(HIGH, NEXT)),
]
MESSAGES: list[tuple[str, PeerMessage]] = [
    ("`Prepare`(base v, b, no freeze)", Prepare(BASE, MINE, False, ())),
    ("`Prepare`(base v, b, freeze)", Prepare(BASE, MINE, True, ())),
    ("`Accept`(v+1, b, W)", Accept(6, MINE, OTHER)),
]
ELSEWHERE: list[tuple[str, PeerMessage]] = [
    ("`Prepare` with base v-1", Prepare(view(4), MINE, True, ())),
    ("`Prepare` with base v+1", Prepare(NEXT, MINE, True, ())),
    ("`Prepare` of another lineage", Prepare(view(5, lineage="two"), MINE, True, ())),
    ("`Accept` for view v", Accept(5, MINE, BASE)),
    ("`Accept` for view v+2", Accept(7, MINE, view(7))),
    ("`Accept` of another lineage", Accept(6, MINE, view(6, lineage="two"))),
    ("`Decide` of view v", Decide(BASE)),
    ("`Decide` of view v+1", Decide(NEXT)),
    ("`Decide` of view v+1 in another lineage", Decide(view(6, lineage="two"))),
]


def member(promised: Ballot | None, accepted: Accepted | None) -> Node:
    """The second of three members of view 5, with step 8 open."""
    node = Node(PEERS[1], NodeConfig(verify=verify))
    node.ctx.run, node.ctx.role = "run", Role.MEMBER
    node.ctx.views.append(BASE)
    acceptor = node.views.acceptor = Acceptor(BASE)
    acceptor.promised, acceptor.accepted = promised, accepted
    node.steps.adopt(7, b"head", node.steps.data)
    node.steps.opened = 8
    node.ctx.out.clear()
    return node


def named(ballot: Ballot | None) -> str:
    return {None: "nothing", LOW: "lower", MINE: "b", HIGH: "higher"}[ballot]


def state(node: Node) -> str:
    acceptor, steps = node.views.acceptor, node.steps
    if acceptor is None:
        return "no vote"
    if acceptor.view != BASE:
        number = "v+1" if acceptor.view == NEXT else f"{acceptor.view.id}"
        return f"view {number} installed, promised {named(acceptor.promised)}"
    accepted = acceptor.accepted
    vote = f", accepted {'W' if accepted.view == OTHER else 'V'} at {named(accepted.ballot)}" if accepted else ""
    held = "frozen" if steps.frozen else "gated" if steps._gate is not None else "free"
    return f"promised {named(acceptor.promised)}{vote}; {held}"


def answer(node: Node, message: PeerMessage) -> str:
    before = state(node)
    actions = node.handle(ev.Received(PEERS[0].id, message), 1.0)
    said: list[str] = []
    for action in actions:
        match action:
            case act.Persist():
                said.append("write words")
            case act.Send(_, Promise(_, _, report, accepted)):
                vote = f", accepted V at {named(accepted.ballot)}" if accepted else ", no vote"
                said.append(f"`Promise`(finished {report.finished - 7:+d}, opened {report.opened - 7:+d}{vote})")
            case act.Send(_, Nack(_, promised)):
                said.append(f"`Nack`({named(promised)})")
            case act.Send(_, Vote()):
                said.append("`Vote`")
            case act.Send(_, Decide(sent)):
                said.append(f"`Decide`(view {'v' if sent == BASE else 'v+1'})")
    after = state(node)
    return f"{after if after != before else 'unchanged'} | {', then '.join(said) or 'no answer'}"


def member_tables() -> list[str]:
    rows = [
        (message, before, answer(member(promised, accepted), what))
        for message, what in MESSAGES
        for before, promised, accepted in STATES
    ]
    others = [(message, answer(member(LOW, None), what)) for message, what in ELSEWHERE]
    return [
        "A member of view v gets a message of ballot b. V and W are different values. Steps before: *free*.",
        "",
        *table("message | state before | state after | answer", rows),
        "The same member (promised lower), and messages that are not about its next view:",
        "",
        *table("message | state after | answer", others),
    ]


# --- a proposer's decisions ------------------------------------------------------------------------------------


def words(installed: View, promised: Ballot | None, accepted: Accepted | None) -> LastWords:
    return LastWords("run", PEERS[2].id, 1, installed, promised, accepted)


WORDS: list[tuple[str, LastWords | None]] = [
    ("nobody", None),
    ("C: view v, no vote", words(BASE, LOW, None)),
    ("C: view v, accepted V at lower", words(BASE, LOW, Accepted(LOW, NEXT))),
    ("C: view v, promised higher", words(BASE, HIGH, None)),
    ("C: view v-1", words(view(4), HIGH, Accepted(HIGH, BASE))),
    ("C: view v+1", words(NEXT, None, None)),
]
PROMISES: list[tuple[str, tuple[int, ...], Accepted | None]] = [
    ("A", (0,), None),
    ("A, B", (0, 1), None),
    ("A, B (accepted V at lower)", (0, 1), Accepted(LOW, NEXT)),
]


def next_move(gone: LastWords | None, who: tuple[int, ...], accepted: Accepted | None) -> str:
    proposal = Proposal(BASE, MINE, True, {gone.peer: gone} if gone is not None else {}, 0.0)
    if proposal.already_decided() is not None:
        return "install what the words name"
    if proposal.refused_by_words() is not None:
        return "take a round above that"
    for index in who:
        proposal.add_promise(PEERS[index].id, Promise(6, MINE, REPORT, accepted if index == who[-1] else None))
    if not proposal.promised_by_quorum():
        return "wait"
    return "`Accept`(V)" if proposal.recovered() is not None else "`Accept`(a value of its own)"


def proposer_table() -> list[str]:
    rows = [(gone, said, next_move(w, who, vote)) for gone, w in WORDS for said, who, vote in PROMISES]
    return [
        "A proposes with ballot b in a view v of A, B and C; nobody else is silent.",
        "",
        *table("gone, and its words | promises | next", rows),
    ]


def fewest(base: View, gone: list[str], eligible: Callable[[str], bool]) -> str:
    """How many votes of those who are eligible are enough."""
    voters = [peer for peer in base.member_ids() if peer not in gone and eligible(peer)]
    enough = [n for n in range(1, len(voters) + 1) if is_quorum(base, voters[:n], gone)]
    return str(enough[0]) if enough else "never"


def quorum_table() -> list[str]:
    rows = []
    for count in range(1, 7):
        base = view(5, count)
        first, *rest = base.member_ids()
        for gone_first in (False, True):
            for others in range(count - gone_first):
                gone = ([first] if gone_first else []) + rest[len(rest) - others :]
                with_first = "it is gone" if gone_first else fewest(base, gone, lambda _: True)
                without = fewest(base, gone, lambda peer, first=first: peer != first)  # type: ignore[misc]
                if len(gone) < count and len(gone) <= 2:
                    rows.append((str(count), str(len(gone)), with_first, without))
    return [
        "How many votes are enough, with and without that of the lowest rank (at most two gone):",
        "",
        *table("members | gone | with the lowest rank | without", rows),
    ]


def text() -> str:
    return "\n".join([BEGIN, "", *member_tables(), *proposer_table(), *quorum_table(), END])


def updated(document: str) -> str:
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{text()}{tail}"


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))
