"""A run that goes on with fewer parties than it had says so."""

from __future__ import annotations

from msgspec.structs import replace

from chaos.core.attendance import Attendance
from chaos.core.types import View
from chaos.sim.symbols import info
from tests.core.test_outcomes import advance, start


def view(number: int, *parties: str) -> View:
    members = tuple(replace(info(i), party=party * 64) for i, party in enumerate(parties))
    return View("l", number, members, (), 1, False, (), "")


def test_who_has_no_member_any_more_is_named() -> None:
    seen = Attendance()
    seen.installed(view(1, "a", "a", "b"))
    assert seen.summary() == ""
    seen.installed(view(2, "a", "b", "c"))
    seen.installed(view(3, "a"))
    assert seen.summary() == "1 of 3 parties are still there; without bbbbbbbb (p1), cccccccc (p2)"
    seen.installed(view(4, "a", "c"))
    assert list(seen.missing()) == ["b" * 64]


def test_status_says_it() -> None:
    world, peers = start(3)
    for peer in peers:
        assert peer.node.status()["missing_parties"] == ""
    one = peers[0].node
    one.attendance.installed(replace(one.ctx.view, members=(replace(info(9), party="f" * 64), *one.ctx.view.members)))
    world.kill(peers[2])
    world.run_until(lambda: len(one.ctx.view.members) == 2, 5)
    advance(world, peers[0], 1)
    assert "without ffffffff (p9)" in one.status()["missing_parties"]
