"""Several reducers over an outlet that delivers in an order drawn from a seed."""

import asyncio
import random
from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from chaos.agent.arithmetic import widen
from chaos.agent.reduce import Reducer
from chaos.agent.shared_memory import ResultRing, SharedMemory
from chaos.agent.transport import BulkHeader, Verdict
from chaos.core.events import RoundComplete
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


async def until(done: Callable[[], bool]) -> None:
    """Let the event loop, and threads that write for it, go on until `done`; 10 s at most."""
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.001)
