"""Who gives way on a shared uplink, and how far."""

from chaos.agent.transport.uplink import FILLS_S, HELD_PART, STUCK_S, Uplink


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
