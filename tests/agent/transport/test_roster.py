"""What becomes of a hello for a new link, by what is known of its sender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from chaos.agent.transport.roster import MAX_KNOWN, Claim, Roster
from chaos.core.types import PeerInfo

from .ends import plain_info

LOW, PEER, HIGH = "0" * 16, plain_info("m"), "f" * 16


@dataclass
class Standing:
    """As much of a link as the roster looks at."""

    info: PeerInfo
    number: int
    outgoing: bool
    state: Any = None


def reborn(info: PeerInfo, incarnation: int) -> PeerInfo:
    return msgspec.structs.replace(info, incarnation=incarnation)


@pytest.mark.parametrize(
    ("me", "greeting", "claim"),
    [
        (LOW, False, Claim.ACCEPT),
        (HIGH, False, Claim.ACCEPT),
        (LOW, True, Claim.DUPLICATE),
        (HIGH, True, Claim.ACCEPT),
    ],
)
def test_without_a_link_the_dial_of_the_lower_id_wins(me: str, greeting: bool, claim: Claim) -> None:
    roster = Roster()
    if greeting:
        roster.greeting.add(PEER.id)
    assert roster.claim(PEER, 0, me) is claim


@pytest.mark.parametrize(
    ("outgoing", "accepted", "incarnation", "claim"),
    [
        (True, 4, 1, Claim.DUPLICATE),
        (True, 5, 1, Claim.REPLACE),
        (True, 0, 2, Claim.REPLACE),
        (False, 0, 1, Claim.REPLACE),
        (False, 9, 1, Claim.REPLACE),
    ],
)
@pytest.mark.parametrize("me", [LOW, HIGH])
def test_against_a_standing_link(me: str, outgoing: bool, accepted: int, incarnation: int, claim: Claim) -> None:
    roster = Roster()
    roster.add(Standing(PEER, 5, outgoing))  # type: ignore[arg-type]
    assert roster.claim(reborn(PEER, incarnation), accepted, me) is claim


def test_memory_of_a_peer() -> None:
    roster = Roster()
    assert roster.recall(PEER.id) == (0, 0)
    for number, outgoing, incarnation, memory in [
        (7, False, 3, (3, 7)),
        (9, True, 3, (3, 7)),
        (2, False, 3, (3, 7)),
        (1, False, 4, (4, 1)),
        (3, True, 5, (5, 0)),
    ]:
        link = Standing(reborn(PEER, incarnation), number, outgoing)
        roster.add(link)  # type: ignore[arg-type]
        roster.remove(link)  # type: ignore[arg-type]
        assert roster.recall(PEER.id) == memory


def test_an_old_links_end_leaves_the_new_one() -> None:
    roster = Roster()
    old, new = Standing(PEER, 1, False), Standing(PEER, 2, False)
    roster.add(old)  # type: ignore[arg-type]
    roster.add(new)  # type: ignore[arg-type]
    roster.remove(old)  # type: ignore[arg-type]
    assert roster.links[PEER.id] is new


def test_quarantine_ends() -> None:
    roster = Roster()
    roster.quarantine(PEER.id, until=10.0)
    assert roster.quarantined(PEER.id, now=4.0) == 6.0
    assert roster.quarantined(PEER.id, now=10.0) == 0.0
    assert roster.quarantined(PEER.id, now=4.0) == 0.0, "forgotten"


def test_what_is_remembered_is_bounded() -> None:
    roster = Roster()
    for number in range(MAX_KNOWN + 50):
        info = msgspec.structs.replace(PEER, id=f"{number:016x}")
        link = Standing(info, 1, False)
        roster.add(link)  # type: ignore[arg-type]
        roster.remove(link)  # type: ignore[arg-type]
        roster.quarantine(info.id, 1e9)
    assert len(roster._memory) == len(roster._quarantine) == MAX_KNOWN
    assert roster.recall(f"{0:016x}") == (0, 0)
