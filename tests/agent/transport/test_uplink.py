"""Who gives way on a shared uplink, and how far."""

import pytest

from chaos.agent.transport.uplink import FILLS_S, HELD_PART, LEAST_PART, STUCK_S, Uplink


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Link:
    def __init__(self, uplink: Uplink) -> None:
        self.uplink = uplink
        self.told: list[float] = []
        uplink.add(self)

    def give_way(self) -> None:
        self.told.append(self.uplink.part_for(self))


def world() -> tuple[Clock, Uplink, Link, Link]:
    clock = Clock()
    uplink = Uplink(clock)
    return clock, uplink, Link(uplink), Link(uplink)


def steps(clock: Clock, uplink: Uplink, member: Link, full_s: float, free_s: float, seconds: float) -> list[float]:
    """Parts of the joiner's link, at the middle of each time in which training fills the uplink."""
    found = []
    joiner = next(link for link in uplink._links if link is not member)
    until = clock.now + seconds
    while clock.now < until:
        left = full_s
        while left > 1e-9:
            uplink.fills(member, 1.0)
            clock.now += min(left, 0.05)
            left -= 0.05
        found.append(uplink.part_for(joiner))
        uplink.fills(member, 0.0)
        clock.now += free_s
    return found


def test_nobody_gives_way_to_little() -> None:
    _, uplink, member, joiner = world()
    uplink.fills(member, FILLS_S)
    assert not uplink.is_full and uplink.part_for(joiner) == 1 and not joiner.told


def test_links_that_carry_training_do_not_give_way_and_all_others_hear_of_it_at_once() -> None:
    _, uplink, member, joiner = world()
    uplink.fills(member, 1.0)
    assert joiner.told == [HELD_PART] and member.told == [1.0]
    uplink.fills(member, 0.01)
    assert joiner.told == [HELD_PART, 1.0]


@pytest.mark.parametrize(("full_s", "free_s"), [(0.3, 0.7), (0.5, 0.5), (0.7, 0.3)])
def test_where_training_leaves_time_others_have_that_and_nothing_of_its_own(full_s: float, free_s: float) -> None:
    clock, uplink, member, _ = world()
    assert steps(clock, uplink, member, full_s, free_s, 20)[-1] == HELD_PART


@pytest.mark.parametrize(("full_s", "free_s"), [(0.9, 0.1), (2.0, 0.1), (1.0, 0.0)])
def test_where_training_never_rests_others_get_their_least_part_all_the_same(full_s: float, free_s: float) -> None:
    clock, uplink, member, _ = world()
    part = steps(clock, uplink, member, full_s, free_s, 40)[-1]
    busy = full_s / (full_s + free_s)
    assert part * busy + (1 - busy) == pytest.approx(LEAST_PART, rel=0.25)


def test_training_that_is_stuck_holds_nobody_up() -> None:
    clock, uplink, member, joiner = world()
    uplink.fills(member, 5.0)
    clock.now += STUCK_S + 0.1
    assert uplink.part_for(joiner) == 1


def test_a_link_that_is_gone_fills_nothing() -> None:
    _, uplink, member, joiner = world()
    uplink.fills(member, 5.0)
    uplink.remove(member)
    assert joiner.told[-1] == 1 and uplink.part_for(joiner) == 1
