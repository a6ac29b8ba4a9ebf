"""Several reducers over an outlet that delivers in an order drawn from a seed."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from chaos.agent import feed
from chaos.agent.arithmetic import widen
from chaos.agent.reduce import Kind, Reducer
from chaos.agent.shared_memory import ResultRing, SharedMemory, results_on_disk
from chaos.agent.transport import BulkHeader, Verdict
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import ResultComes, ResultDropped, ResultUnsent, RoundComplete
from chaos.core.types import Layout, PeerInfo, Segment, View

FLOATS = 400_000
LAYOUT = Layout(
    FLOATS * 4 + 64 + 64,
    (
        Segment(0, FLOATS * 4, "float32", "mean"),
        Segment(FLOATS * 4, 64, "float64", "mean"),
        Segment(FLOATS * 4 + 64, 64, "int64", "max"),
    ),
    False,
)


def peer(index: int) -> PeerInfo:
    return PeerInfo(f"{index:016x}", 1, f"p{index}", "0" * 64, bytes(32), ())


def view(number: int, members: list[int], learners: tuple[int, ...] = (), first_step: int = 1) -> View:
    return View("l", number, tuple(map(peer, members)), tuple(map(peer, learners)), first_step, number > 1, (), "")


Frame = tuple[str, BulkHeader, memoryview | bytes, Callable[[], None] | None]


class Net:
    """All frames of all peers; `deliver` takes them in random order, asking again after PAUSE."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.frames: list[Frame] = []
        self.peers: dict[str, Peer] = {}
        self.learners: set[str] = set()

    async def deliver(self, keep: Callable[[BulkHeader], bool] = lambda _: True) -> None:
        idle = 0
        while idle < 3:
            await asyncio.sleep(0)
            progress = False
            self.random.shuffle(self.frames)
            frames, self.frames = self.frames, []
            for frame in frames:
                dst, header, payload, on_sent = frame
                if not keep(header) or dst not in self.peers:
                    continue
                target = self.peers[dst].reducer.sink(header)
                if target is Verdict.PAUSE:
                    self.frames.append(frame)
                    continue
                progress = True
                if isinstance(target, memoryview):
                    target[:] = payload
                    self.peers[dst].reducer.received(header, target)
                if on_sent is not None:
                    on_sent()
            idle = 0 if progress else idle + 1


class Peer:
    def __init__(self, net: Net, index: int, layout: Layout = LAYOUT, disk: SharedMemory | None = None) -> None:
        self.net, self.index = net, index
        self.id = peer(index).id
        self.layout = layout
        self.done: list[RoundComplete] = []
        self.contribution = SharedMemory.create("c", layout.nbytes)
        self.ring = ResultRing(layout.nbytes, 4, disk)
        self.events: list[object] = []
        self.reducer = Reducer(self.id, self, self.happened, lambda _kind, _fields: None)
        self.reducer.configure(layout, self.contribution, self.ring)
        net.peers[self.id] = self
        values = np.random.default_rng(index)
        self.floats = values.normal(size=FLOATS).astype(np.float32)
        self.doubles = values.normal(size=8)
        self.integers = values.integers(0, 100, 8)
        content = self.floats.tobytes() + self.doubles.tobytes() + self.integers.tobytes()
        self.contribution.view[: len(content)] = content

    def happened(self, event: object) -> None:
        if isinstance(event, RoundComplete):
            self.done.append(event)
        else:
            self.events.append(event)

    def send_bulk(
        self,
        dst: str,
        header: BulkHeader,
        payload: memoryview | bytes,
        urgent: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> bool:
        assert urgent == (dst not in self.net.learners), "a learner's shards come first"
        whole = replace(header, src=self.id, dst=dst, length=len(payload))
        self.net.frames.append((dst, whole, payload, on_sent))
        return True

    def drop_bulk(self, predicate: Callable[[BulkHeader], bool]) -> int:
        before = len(self.net.frames)
        self.net.frames = [f for f in self.net.frames if not (f[1].src == self.id and predicate(f[1]))]
        return before - len(self.net.frames)

    def resume_bulk(self) -> None:
        pass

    def begin(self, step: int, now: View, weight: float) -> None:
        """What the core does when a worker's contribution is complete and the round open."""
        self.reducer.open_round(now.id, step)
        self.reducer.send_contribution(now.id, step, weight, weight == 0)

    def content(self) -> memoryview:
        """The bytes of the newest result."""
        return self.ring.slot_view(self.reducer.slot(self.done[-1].step))

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        content = self.content()
        a, b = FLOATS * 4, FLOATS * 4 + 64
        return (
            widen(content[:a], "float32").copy(),
            widen(content[a:b], "float64").copy(),
            widen(content[b : b + 64], "int64").copy(),
        )


def start(net: Net, count: int, now: View, learners: int = 0) -> list[Peer]:
    peers = [Peer(net, i) for i in range(count + learners)]
    net.learners = {learner.id for learner in now.learners}
    for one in peers:
        one.reducer.set_views((now,), 0)
    return peers


def announce(peers: list[Peer], now: View, step: int, weights: dict[int, float]) -> None:
    for one in peers:
        for index, weight in weights.items():
            one.reducer.contribution_known(now.id, step, peer(index).id, weight == 0)


def check(peers: list[Peer], weights: dict[int, float]) -> None:
    by_index = {one.index: one for one in peers[0].net.peers.values()}
    total = sum(weights.values())
    real = {i: w for i, w in weights.items() if w}
    floats = sum(by_index[i].floats.astype(np.float64) * w for i, w in real.items()) / total
    doubles = sum(by_index[i].doubles * w for i, w in real.items()) / total
    integers = np.max([by_index[i].integers for i in real], axis=0)
    for one in peers:
        got = one.result()
        np.testing.assert_allclose(got[0], floats, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(got[1], doubles, rtol=1e-14)
        np.testing.assert_array_equal(got[2], integers)
        assert one.done[-1].digest == peers[0].done[-1].digest
        assert bytes(one.content()) == bytes(peers[0].content())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_everybody_gets_the_weighted_mean(count: int):
    async def scenario() -> None:
        net, now = Net(count), view(1, list(range(count)), (count,))
        peers = start(net, count, now, learners=1)
        weights = {i: float(i + 1) for i in range(count)}
        for one in peers[:count]:
            one.begin(1, now, weights[one.index])
        announce(peers, now, 1, weights)
        await net.deliver()
        check(peers, weights)

    asyncio.run(scenario())


def test_empty_contributions_are_not_waited_for():
    async def scenario() -> None:
        net, now = Net(7), view(1, [0, 1, 2])
        peers = start(net, 3, now)
        weights = {0: 0.0, 1: 2.0, 2: 5.0}
        for one in peers:
            one.begin(1, now, weights[one.index])
        announce(peers, now, 1, weights)
        await net.deliver()
        check(peers, weights)

    asyncio.run(scenario())


def test_it_says_that_the_next_result_comes_and_of_no_other_and_not_at_each_chunk():
    async def scenario() -> None:
        net, now = Net(4), view(1, [0, 1], (2,))
        peers = start(net, 2, now, learners=1)
        learner, slow = peers[2], peers[1]
        announce(peers, now, 1, {0: 1.0, 1: 1.0})
        announce(peers, now, 2, {0: 1.0, 1: 1.0})
        for step in (2, 1):
            for one in peers[:2]:
                one.begin(step, now, 1.0)
            await net.deliver(lambda header: (header.src, header.dst, header.step) != (slow.id, learner.id, 1))
            comes = [event for event in learner.events if isinstance(event, ResultComes)]
            assert comes == ([ResultComes(1)] if step == 1 else [])
        assert [done.step for done in learner.done] == [2]

    asyncio.run(scenario())


def test_on_a_new_way_goes_what_its_end_does_not_hold_yet():
    """All results that are kept went again, over slow links for seconds, to peers that had them, or had left."""

    async def scenario() -> None:
        net, now = Net(6), view(1, [0, 1])
        peers = start(net, 2, now)
        for step in (1, 2, 3):
            for one in peers:
                one.begin(step, now, 1.0)
            announce(peers, now, step, {0: 1.0, 1: 1.0})
            await net.deliver(lambda header: header.kind == Kind.CONTRIBUTION or header.step < 3)
            if step < 3:
                for one in peers:
                    one.reducer.finish(step)
        assert [len(one.done) for one in peers] == [2, 2], "the third step's results were lost with their way"
        for held, again in ((0, {1, 2, 3}), (1, {2, 3}), (2, {3}), (3, set())):
            net.frames.clear()
            peers[0].reducer.path_changed(peers[1].id, held)
            assert {header.step for _, header, _, _ in net.frames if header.kind == Kind.FINAL} == again
        net.frames.clear()
        peers[0].reducer.path_changed(peers[1].id, 2)
        peers[1].reducer.path_changed(peers[0].id, 2)
        await net.deliver()
        check(peers, {0: 1.0, 1: 1.0})
        assert [one.done[-1].step for one in peers] == [3, 3]

    asyncio.run(scenario())


def test_nothing_is_final_before_all_parts_are_known():
    async def scenario() -> None:
        net, now = Net(1), view(1, [0, 1])
        peers = start(net, 2, now)
        for one in peers:
            one.begin(1, now, 1.0)
        await net.deliver()
        assert not any(one.done for one in peers)
        announce(peers, now, 1, {0: 1.0, 1: 1.0})
        await net.deliver()
        check(peers, {0: 1.0, 1: 1.0})

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(5))
def test_a_round_without_the_dead_is_reduced_anew(seed: int):
    """Frames of the old attempt that arrive late are in no sum of the new one."""

    async def scenario() -> None:
        net, old = Net(seed), view(1, [0, 1, 2])
        peers = start(net, 3, old)
        weights = {i: 1.0 + i for i in range(3)}
        for one in peers:
            one.begin(1, old, weights[one.index])
        announce(peers, old, 1, weights)
        drop = random.Random(seed)
        await net.deliver(lambda header: header.src != peers[2].id and drop.random() < 0.7)
        del net.peers[peers[2].id]
        new = view(2, [0, 1])
        for one in peers[:2]:
            one.done.clear()
            one.reducer.set_views((new,), 0)
            one.begin(1, new, weights[one.index])
        late = BulkHeader(Kind.CONTRIBUTION, 1, 1, 0, 0, 9.0, 0, 0, 64, peers[2].id, peers[0].id)
        assert peers[0].reducer.sink(late) is Verdict.DISCARD
        announce(peers[:2], new, 1, {0: 1.0, 1: 2.0})
        await net.deliver()
        net.peers[peers[2].id] = peers[2]
        check(peers[:2], {0: 1.0, 1: 2.0})

    asyncio.run(scenario())


def test_frames_of_a_view_to_come_wait():
    async def scenario() -> None:
        net, old, new = Net(3), view(1, [0]), view(2, [0, 1])
        peers = start(net, 2, old)
        peers[1].reducer.set_views((new,), 0)
        peers[1].begin(1, new, 1.0)
        announce(peers[1:], new, 1, {0: 1.0, 1: 1.0})
        await net.deliver()
        assert net.frames and not peers[0].done
        peers[0].reducer.set_views((new,), 0)
        peers[0].begin(1, new, 1.0)
        announce(peers[:1], new, 1, {0: 1.0, 1: 1.0})
        await net.deliver()
        check(peers, {0: 1.0, 1: 1.0})

    asyncio.run(scenario())


def test_a_finished_result_is_fetched_whole():
    async def scenario() -> None:
        net, now = Net(5), view(1, [0, 1, 2])
        peers = start(net, 3, now)
        weights = {0: 1.0, 1: 2.0, 2: 3.0}
        for one in peers:
            one.begin(1, now, weights[one.index])
        announce(peers, now, 1, weights)
        await net.deliver(lambda header: not (header.kind == Kind.FINAL and header.dst == peers[2].id))
        peers[0].reducer.finish(1)
        assert not peers[2].done
        after = view(2, [0, 2], first_step=2)
        for one in (peers[0], peers[2]):
            one.reducer.set_views((now, after), 0 if one is peers[2] else 1)
        peers[2].reducer.fetch(2, 1)
        peers[0].reducer.serve(peers[2].id, 2, 1)
        await net.deliver()
        assert peers[2].done[-1].view_id == 2
        check([peers[0], peers[2]], weights)

    asyncio.run(scenario())


def test_overlapped_segments_are_sent_once():
    async def scenario() -> None:
        net, now = Net(9), view(1, [0, 1])
        peers = start(net, 2, now)
        for one in peers:
            one.reducer.open_round(1, 1)
            one.reducer.bucket_ready(1, 0, 2.0)
        sent = len(net.frames)
        assert sent > 0
        for one in peers:
            one.reducer.send_contribution(1, 1, 2.0, False)
        pieces = {(h.src, h.index) for _, h, *_ in net.frames if h.kind == Kind.CONTRIBUTION}
        assert len(pieces) == sum(1 for _, h, *_ in net.frames if h.kind == Kind.CONTRIBUTION)
        announce(peers, now, 1, {0: 2.0, 1: 2.0})
        await net.deliver()
        check(peers, {0: 2.0, 1: 2.0})

    asyncio.run(scenario())


def test_buckets_wait_for_the_whole_where_late_workers_are_left_out():
    """One that sent a bucket and is then left out would be in the sum of that bucket, and in no other."""

    async def scenario():
        net, now = Net(0), replace(view(1, [0, 1, 2]), straggler_limit_s=3.0)
        peers = start(net, 3, now)
        for one in peers:
            one.reducer.open_round(1, 1)
            one.reducer.bucket_ready(1, 0, 2.0)
        assert not net.frames
        await net.deliver()
        weights = {0: 2.0, 1: 2.0, 2: 0.0}
        for one in peers:
            one.reducer.send_contribution(1, 1, weights[one.index], weights[one.index] == 0)
        announce(peers, now, 1, weights)
        await net.deliver()
        check(peers, weights)

    asyncio.run(scenario())


def test_the_peer_with_the_bad_gradient_is_named_everywhere():
    async def scenario() -> None:
        net, now = Net(2), view(1, [0, 1, 2])
        peers = start(net, 3, now)
        np.frombuffer(peers[1].contribution.view, np.float32)[12345] = np.nan
        for one in peers:
            one.begin(1, now, 1.0)
        announce(peers, now, 1, {0: 1.0, 1: 1.0, 2: 1.0})
        await net.deliver()
        assert all(one.done[-1].nonfinite == (peers[1].id,) for one in peers)

    asyncio.run(scenario())


def test_bfloat16_on_the_wire_gives_all_the_same_bytes():
    async def scenario() -> None:
        net, now = Net(4), view(1, [0, 1, 2])
        layout = Layout(LAYOUT.nbytes, LAYOUT.segments, True)
        peers = [Peer(net, i, layout) for i in range(3)]
        for one in peers:
            one.reducer.set_views((now,), 0)
            one.begin(1, now, 1.0)
        announce(peers, now, 1, {0: 1.0, 1: 1.0, 2: 1.0})
        await net.deliver()
        mean = np.mean([one.floats for one in peers], axis=0)
        for one in peers:
            np.testing.assert_allclose(one.result()[0], mean, rtol=2**-6, atol=2**-6)
            assert one.done[-1].digest == peers[0].done[-1].digest
            assert bytes(one.content()) == bytes(peers[0].content())

    asyncio.run(scenario())


def test_slots_come_back_and_results_outlive_their_round():
    async def scenario() -> None:
        net, now = Net(6), view(1, [0, 1])
        peers = start(net, 2, now)
        for step in range(1, 12):
            for one in peers:
                one.begin(step, now, 1.0)
            announce(peers, now, step, {0: 1.0, 1: 1.0})
            await net.deliver()
            check(peers, {0: 1.0, 1: 1.0})
            for one in peers:
                one.reducer.finish(step)
                one.reducer.release(step - 1)
        assert peers[0].ring.in_use == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "header",
    [
        BulkHeader(Kind.CONTRIBUTION, 1, 1, 10_000, 0, 1.0, 0, 0, 64),
        BulkHeader(Kind.CONTRIBUTION, 1, 1, 0, 0, 1.0, 0, 0, 63),
        BulkHeader(Kind.CONTRIBUTION, 1, 1, 1, 0, 1.0, 0, 0, 64),
        BulkHeader(Kind.FINAL, 1, 1, 0, 0, 1.0, 0, 0, 64),
        BulkHeader(Kind.CONTRIBUTION, 1, 1, 0, 0, float("nan"), 0, 0, 64),
    ],
)
def test_frames_that_no_honest_peer_sends_are_refused(header: BulkHeader):
    net, now = Net(0), view(1, [0, 1])
    peers = start(net, 2, now)
    with pytest.raises(RemoteProtocolError):
        peers[0].reducer.sink(replace(header, src=peers[1].id, dst=peers[0].id))


# --- a learner that is behind ---------------------------------------------------------------------------------------


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
            while donor.ring.in_use:
                await asyncio.sleep(0.001)
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
        while donor.ring.in_use:
            await asyncio.sleep(0.01)
        donor.ring.memory.view[:] = bytes(donor.ring.memory.nbytes)  # the next step writes there
        assert bytes(donor.content()) == bytes(peers[1].content()), "a worker that needs it again gets another"
        learner.reducer.fetch(1, 1)
        donor.reducer.serve(learner.id, 1, 1)
        await net.deliver()
        assert learner.done[-1].digest == donor.done[-1].digest
        donor.reducer.release(1)
        assert donor.ring.bytes_on_disk == 0
        while donor.ring.has_stale_pages:  # they are given back in turn with all else
            await asyncio.sleep(0)

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
        while donor.ring.bytes_on_disk:
            await asyncio.sleep(0.01)
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
