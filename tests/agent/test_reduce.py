"""Rounds among members: what is summed, sent, sent again and refused."""

import asyncio
import random

import numpy as np
import pytest
from msgspec.structs import replace

from chaos.agent.reduce import Kind
from chaos.agent.transport import BulkHeader, Verdict
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import ResultComes
from chaos.core.types import Layout
from tests.agent.reducers import LAYOUT, Net, Peer, announce, check, start, view


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


def test_a_step_whose_only_holder_is_lost_is_made_anew_by_those_who_were_fetching_it():
    """Who had begun to fetch it took no frames of the next attempt, and the run stood still."""

    async def scenario() -> None:
        net, now = Net(6), view(1, [0, 1, 2])
        peers = start(net, 3, now)
        weights = {0: 1.0, 1: 2.0, 2: 3.0}
        for one in peers:
            one.begin(1, now, weights[one.index])
        announce(peers, now, 1, weights)
        await net.deliver(lambda header: not (header.kind == Kind.FINAL and header.dst != peers[0].id))
        peers[0].reducer.finish(1)
        fetching, anew = view(2, [0, 1, 2], first_step=2), view(3, [1, 2])
        for one in peers[1:]:
            one.reducer.set_views((now, fetching), 0)
            one.reducer.fetch(2, 1)
            one.reducer.set_views((now, fetching, anew), 0)
            one.begin(1, anew, weights[one.index])
        left = {1: 2.0, 2: 3.0}
        announce(peers[1:], anew, 1, left)
        await net.deliver(lambda header: header.dst != peers[0].id)
        assert [one.done[-1].view_id for one in peers[1:]] == [3, 3]
        check(peers[1:], left)

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
