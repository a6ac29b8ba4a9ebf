"""Results for learners: where they wait, for whom there is room, and what is sent of them."""

import asyncio
from pathlib import Path

import pytest

from chaos.agent import feed
from chaos.agent.shared_memory import results_on_disk
from chaos.agent.transport import BulkHeader, Verdict
from chaos.core.events import ResultDropped, ResultUnsent
from chaos.core.types import View
from tests.agent.reducers import LAYOUT, Net, Peer, announce, peer, until, view


def with_learner(disk: dict[int, Path], seed: int = 4) -> tuple[Net, View, list[Peer]]:
    """Two members and a learner; results of some may go to disk."""
    net, now = Net(seed), view(1, [0, 1], (2,))
    net.learners = {peer(2).id}
    peers = [Peer(net, i, disk=results_on_disk(disk[i], LAYOUT.nbytes, 2**27) if i in disk else None) for i in range(3)]
    for one in peers:
        one.reducer.set_views((now,), 0)
    return net, now, peers


async def steps(net: Net, now: View, peers: list[Peer], first: int, last: int) -> None:
    """The members make these steps, each with other weights; the learner follows, and lets nothing go."""
    for step in range(first, last + 1):
        weights = {0: 1.0, 1: float(step)}
        for one in peers[:2]:
            one.begin(step, now, weights[one.index])
        announce(peers, now, step, weights)
        await net.deliver()
        for one in peers[:2]:
            one.reducer.finish(step)
            one.reducer.release(step)
        if peers[2].done and peers[2].done[-1].step == step:
            peers[2].reducer.finish(step)


def test_a_learners_results_wait_on_disk_where_memory_is_full(tmp_path: Path):
    async def scenario() -> None:
        net, now, peers = with_learner({2: tmp_path})
        learner = peers[2]
        await steps(net, now, peers, 1, 9)
        assert not net.frames, "a lane of the members waits"
        assert [done.step for done in learner.done] == list(range(1, 10))
        assert [done.digest for done in learner.done] == [done.digest for done in peers[0].done]
        assert learner.ring.bytes_on_disk == 5 * learner.ring.stride
        for ours, theirs in zip(learner.done, peers[0].done, strict=True):
            assert ours.step == theirs.step
        last = learner.content()
        assert bytes(last) == bytes(peers[0].content())
        learner.reducer.release(9)
        assert learner.ring.bytes_on_disk == learner.ring.in_use == 0
        assert not list(tmp_path.iterdir()), "the file has a name, and would outlive a kill"

    asyncio.run(scenario())


def test_without_room_a_learner_drops_results_and_says_so_and_its_lanes_go_on():
    async def scenario() -> None:
        net, now, peers = with_learner({})
        learner = peers[2]
        await steps(net, now, peers, 1, 7)
        assert not net.frames, "a lane of the members waits"
        assert [done.step for done in learner.done] == [1, 2, 3, 4]
        dropped = [event for event in learner.events if isinstance(event, ResultDropped)]
        assert {event.step for event in dropped} == {5, 6, 7}
        assert "4 results" in dropped[0].reason
        learner.reducer.release(3)
        await steps(net, now, peers, 8, 8)
        assert learner.done[-1].step == 4, "a later result took the room of those that are to be fetched first"

    asyncio.run(scenario())


def test_a_new_member_has_room_for_what_it_lacks_although_later_results_fill_its_memory(tmp_path: Path):
    """They wait for it, and it found no room: a run stood still."""

    async def scenario() -> None:
        net, now, peers = with_learner({0: tmp_path, 2: tmp_path})
        donor, learner = peers[0], peers[2]
        for step in range(1, 8):
            for one in peers[:2]:
                one.begin(step, now, 1.0)
            announce(peers, now, step, {0: 1.0, 1: 1.0})
            await net.deliver(lambda header: header.dst != learner.id or header.step > 1)
            for one in peers[:2]:
                one.reducer.finish(step)
            peers[1].reducer.release(step)
            donor.reducer.move(step)
            await until(lambda: not donor.ring.in_use)
        learner.reducer.fetch(1, 1)
        assert [done.step for done in learner.done] == [2, 3, 4, 5, 6, 7] and learner.ring.in_use == 4
        net.learners, later = set(), view(2, [0, 1, 2], first_step=8)
        for one in peers:
            one.reducer.set_views((now, later), 0 if one is learner else 7)
        donor.reducer.serve(learner.id, 1, 1)
        await net.deliver()
        assert learner.done[-1].step == 1

    asyncio.run(scenario())


def test_a_members_results_for_learners_leave_its_memory_and_are_served_from_disk(tmp_path: Path):
    async def scenario() -> None:
        net, now, peers = with_learner({0: tmp_path, 2: tmp_path})
        weights = {0: 1.0, 1: 2.0}
        for one in peers[:2]:
            one.begin(1, now, weights[one.index])
        announce(peers, now, 1, weights)
        await net.deliver(lambda header: header.dst != peers[2].id)
        donor, learner = peers[0], peers[2]
        donor.reducer.finish(1)
        assert donor.ring.in_use == 1
        donor.reducer.move(1)
        await until(lambda: not donor.ring.in_use)
        donor.ring.memory.view[:] = bytes(donor.ring.memory.nbytes)  # the next step writes there
        assert bytes(donor.content()) == bytes(peers[1].content()), "a worker that needs it again gets another"
        learner.reducer.fetch(1, 1)
        donor.reducer.serve(learner.id, 1, 1)
        await net.deliver()
        assert learner.done[-1].digest == donor.done[-1].digest
        donor.reducer.release(1)
        assert donor.ring.bytes_on_disk == 0
        await until(lambda: not donor.ring.has_stale_pages)  # they are given back in turn with all else

    asyncio.run(scenario())


def test_a_result_that_the_own_worker_needs_again_stays_where_it_is_although_it_is_being_written(tmp_path: Path):
    async def scenario() -> None:
        net, now, peers = with_learner({0: tmp_path})
        donor, weights = peers[0], {0: 1.0, 1: 2.0}
        for step in (1, 2):
            for one in peers[:2]:
                one.begin(step, now, weights[one.index])
            announce(peers, now, step, weights)
            await net.deliver()
            donor.reducer.finish(step)
        before = [donor.reducer.slot(step) for step in (1, 2)]
        donor.reducer.move(2)
        await asyncio.sleep(0)
        assert donor.ring.bytes_on_disk == donor.ring.stride, "the first is being written"
        donor.reducer.move(0)
        await until(lambda: not donor.ring.bytes_on_disk)
        assert [donor.reducer.slot(step) for step in (1, 2)] == before

    asyncio.run(scenario())


def test_who_asked_for_a_result_that_is_let_go_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feed, "AHEAD_BYTES", 600_000)
    monkeypatch.setattr(feed, "COPIED_BYTES", 0)

    async def scenario() -> None:
        net, now, peers = with_learner({})
        await steps(net, now, peers, 1, 1)
        donor, slow = peers[0], peers[2]
        for one in peers[:2]:
            one.begin(2, now, 1.0)
        announce(peers, now, 2, {0: 1.0, 1: 1.0})
        await net.deliver()
        donor.reducer.finish(2)
        del net.peers[slow.id]
        donor.reducer.serve(slow.id, 1, 2)
        donor.reducer.release(2)
        await asyncio.sleep(0)
        assert ResultUnsent(slow.id, 2) in donor.events

    asyncio.run(scenario())


def test_little_of_what_a_slow_learner_is_to_get_is_in_the_transport(monkeypatch: pytest.MonkeyPatch):
    """The rest waits by name; what is let go meanwhile is copied, and beyond the bound for copies it is not sent."""
    monkeypatch.setattr(feed, "AHEAD_BYTES", 600_000)
    monkeypatch.setattr(feed, "COPIED_BYTES", 3_000_000)

    async def scenario() -> None:
        net, now, peers = with_learner({})
        slow = peers[2]
        del net.peers[slow.id]
        weights = {0: 1.0, 1: 1.0}
        for step in range(1, 5):
            for one in peers[:2]:
                one.begin(step, now, 1.0)
            announce(peers[:2], now, step, weights)
            await net.deliver(lambda header: header.dst != slow.id or keep(header))
            for one in peers[:2]:
                one.reducer.finish(step)
                one.reducer.release(step)
        for one in peers[:2]:
            sent = sum(nbytes for src, nbytes in taken if src == one.id)
            assert 0 < sent < 600_000 + 2**19 + 2**10
            assert 0 < one.reducer._feed.copied_bytes <= 3_000_000

    taken: list[tuple[str, int]] = []

    def keep(header: BulkHeader) -> bool:
        taken.append((header.src, header.length))
        return False

    asyncio.run(scenario())


@pytest.mark.parametrize("lost", [False, True], ids=["", "another way led to it meanwhile"])
def test_what_a_new_member_still_lacks_goes_before_other_things(monkeypatch: pytest.MonkeyPatch, lost: bool):
    """All wait for its first contribution, and it for the result before that: it came at half of the link's rate, as
    what is for learners does, and not at all if the link broke then."""
    monkeypatch.setattr(feed, "AHEAD_BYTES", 2**20)

    async def scenario() -> None:
        net, now, peers = with_learner({})
        with monkeypatch.context() as patch:
            patch.setattr(peers[2].reducer, "sink", lambda _header: Verdict.PAUSE)
            for one in peers[:2]:
                one.begin(1, now, 1.0)
            announce(peers, now, 1, {0: 1.0, 1: 1.0})
            await net.deliver()
        queued = list(net.frames)
        net.learners = set()
        for one in peers:
            one.reducer.set_views((now, view(2, [0, 1, 2], first_step=2)), 0)
        assert queued and not {id(frame) for frame in queued} & {id(frame) for frame in net.frames}, "in the old place"
        if lost:
            net.frames.clear()
            for one in peers[:2]:
                one.reducer.path_changed(peers[2].id, 0)
        await net.deliver()
        assert peers[2].done and peers[2].done[-1].digest == peers[0].done[-1].digest

    asyncio.run(scenario())
