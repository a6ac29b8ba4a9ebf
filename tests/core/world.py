"""Nodes under virtual time: an in-memory network, workers and results that are symbols. One seed, one run.

A peer's gradient for a step is the symbol (peer, step, sample ranges); a result is the set of those; a
worker's state is the hash chain of the results it applied. So loss and double counting show exactly.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.core import actions as act
from chaos.core import events as ev
from chaos.core import worker_messages as wm
from chaos.core.codec import decode, encode, encode_words
from chaos.core.context import NodeConfig, Role
from chaos.core.data import held, subtract
from chaos.core.messages import Goodbye, Sealed
from chaos.core.node import Founding, Node
from chaos.core.types import Fingerprint, Layout, PeerInfo, SampleRange, StateManifest, View

FINGERPRINT = Fingerprint((), (), "sgd", "2", "")
LAYOUT = Layout(64, (), False)
SAMPLES = 10_000
BATCH = 4


def digest(*parts: Any) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()[:16]


def peer_id(index: int) -> str:
    return f"{index:016x}"


def info(index: int, incarnation: int = 1) -> PeerInfo:
    return PeerInfo(peer_id(index), incarnation, f"p{index}", "ab" * 32, bytes([index]) * 32, (f"h{index}:1",))


def sign(words: bytes) -> bytes:
    return hashlib.sha512(words).digest()


def verify(_key: bytes, signature: bytes, words: bytes) -> bool:
    return signature == sign(words)


@dataclass
class Round:
    """What one peer's reducer knows of one attempt."""

    known: dict[str, bool] = field(default_factory=dict)
    arrived: dict[str, Any] = field(default_factory=dict)
    finals: dict[str, Any] = field(default_factory=dict)
    finalised: bool = False


class Reducer:
    """Direct reduce-scatter and all-gather over symbols: every member is root of one share."""

    def __init__(self, peer: SimPeer) -> None:
        self.peer = peer
        self.views: tuple[View, ...] = ()
        self.finished = 0
        self.rounds: dict[tuple[int, int], Round] = {}
        self.results: dict[int, Any] = {}
        self.fetching: dict[int, int] = {}
        self.later: list[tuple[str, str, int, int, Any]] = []

    def view_for(self, step: int) -> View | None:
        return next((v for v in reversed(self.views) if step >= v.first_step), None)

    def set_views(self, views: tuple[View, ...], finished: int) -> None:
        self.views, self.finished = views, finished
        self.rounds = {
            (view, step): r
            for (view, step), r in self.rounds.items()
            if step > finished and (v := self.view_for(step)) is not None and v.id == view
        }
        later, self.later = self.later, []
        for item in later:
            self.receive(*item)

    def receive(self, kind: str, src: str, view_id: int, step: int, symbol: Any) -> None:
        if not self.views or view_id > self.views[-1].id:
            self.later.append((kind, src, view_id, step, symbol))
            return
        if kind == "result":
            if self.fetching.get(step) == view_id:
                self.complete(view_id, step, symbol)
            return
        view = self.view_for(step)
        if view is None or view.id != view_id or step <= self.finished or step in self.fetching:
            return
        current = self.rounds.setdefault((view_id, step), Round())
        if kind == "contribution":
            current.arrived[src] = symbol
        else:
            current.finals[src] = symbol
        self.check(view, step, current)

    def known(self, view_id: int, step: int, src: str, empty: bool) -> None:
        view = self.view_for(step)
        if view is None or view.id != view_id or step <= self.finished:
            return
        current = self.rounds.setdefault((view_id, step), Round())
        current.known[src] = empty
        self.check(view, step, current)

    def check(self, view: View, step: int, current: Round) -> None:
        members = view.member_ids()
        me = self.peer.node.ctx.id
        if me in members and not current.finalised and all(m in current.known for m in members):
            real = [m for m in members if not current.known[m]]
            if real and all(m in current.arrived for m in real):
                current.finalised = True
                symbol = frozenset(current.arrived[m] for m in real)
                for other in view.everybody():
                    self.peer.world.bulk(me, other.id, "final", view.id, step, symbol)
        if len(current.finals) == len(members) and step not in self.results:
            symbols = set(current.finals.values())
            assert len(symbols) == 1, "roots disagree"
            self.complete(view.id, step, symbols.pop())

    def complete(self, view_id: int, step: int, symbol: Any) -> None:
        self.results[step] = symbol
        event = ev.RoundComplete(view_id, step, step % 64, digest(sorted(symbol)), ())
        self.peer.world.later(0.0001, self.peer, event)


class Worker:
    """A worker: computes for a while, contributes, applies."""

    def __init__(self, peer: SimPeer) -> None:
        self.peer = peer
        self.alive = True
        self.applied = 0
        self.chain = digest("initial", peer.index)
        self.handed: tuple[tuple[int, int], ...] = ()
        self.epoch = 0
        self.ended = False
        self.waiting: set[int] = set()
        self.at_boundary = False
        self.data = None

    def say(self, message: wm.FromWorker, delay: float = 0.0005) -> None:
        me = self
        peer = self.peer

        def arrive() -> None:
            if peer.alive and me.alive and peer.worker is me:
                peer.handle(ev.WorkerSaid(message))

        peer.world.at(delay, arrive)

    def start(self) -> None:
        self.say(wm.Register(1, FINGERPRINT, LAYOUT))

    def hear(self, message: wm.FromAgent) -> None:
        if not self.alive or self.ended:
            return
        match message:
            case wm.Welcome(founder=founder, step=step):
                self.applied = step
                if founder:
                    self.chain = digest("initial", 0)
                self.say(wm.DeclareData("shard", SAMPLES, 2 * BATCH))
            case wm.LoadState(manifest):
                self.applied, self.chain = manifest.step, manifest.scalars
                self.handed = ()
                self.say(wm.StateLoaded(manifest.step))
            case wm.Commit():
                self.apply(message)
            case wm.PrepareSnapshot():
                self.say(wm.SnapshotPrepared(64), 0.01)
            case wm.TakeSnapshot(step):
                if step < self.applied:
                    self.say(wm.SnapshotMissed(step, self.applied))
                else:
                    self.waiting.add(step)
                    self.snapshot()
            case wm.Proceed():
                self.proceed(message)
            case wm.Declined():
                self.ended = True

    def apply(self, message: wm.Commit) -> None:
        assert message.step == self.applied + 1, f"commit {message.step} after {self.applied}"
        self.applied = message.step
        if not message.skip:
            symbol = self.peer.reducer.results[message.step]
            self.chain = digest(self.chain, message.step, sorted(symbol))
        self.snapshot()

    def snapshot(self) -> None:
        if self.applied in self.waiting:
            self.waiting.discard(self.applied)
            manifest = StateManifest(self.applied, 64, (), self.chain)
            self.say(wm.SnapshotTaken(manifest, 0.0), 0.004)

    def proceed(self, message: wm.Proceed) -> None:
        self.data = message.data
        if message.leaving or (self.peer.world.steps and self.applied >= self.peer.world.steps):
            self.ended = True
            self.say(wm.Finished(self.applied))
            return
        compute = self.peer.world.random.uniform(0.01, 0.03)
        part = None if message.role == "learner" else self.contribution(message)
        self.say(wm.Boundary(self.applied, part, compute), compute)

    def contribution(self, message: wm.Proceed) -> wm.Contribution:
        data = message.data
        if data.epoch != self.epoch:
            self.epoch, self.handed = data.epoch, ()
        mine = subtract(held(data, self.peer.node.ctx.id), self.handed)
        taken: list[tuple[int, int]] = []
        need = BATCH
        for start, stop in mine:
            cut = min(stop, start + need)
            if cut > start:
                taken.append((start, cut))
                need -= cut - start
        self.handed = tuple([*self.handed, *taken])[-64:]
        count = sum(b - a for a, b in taken)
        ranges = tuple(SampleRange(data.epoch, a, b) for a, b in taken)
        return wm.Contribution(float(count), count == 0, 1.0, ranges, b"\1", b"", 2 * BATCH, False)


class SimPeer:
    def __init__(self, world: World, index: int, incarnation: int, founding: Founding | None) -> None:
        self.world = world
        self.index = index
        self.info = info(index, incarnation)
        self.alive = True
        self.node = Node(self.info, world.config(founding is not None), founding)
        self.reducer = Reducer(self)
        self.worker = Worker(self)
        self.words: bytes | None = None
        self.trace: list[tuple[float, str, dict[str, Any]]] = []
        self.stopped: act.Stop | None = None
        self.finished: dict[int, bytes] = {}
        self.stable: dict[int, bytes] = {}
        self.worker.start()
        self.tick()

    def tick(self) -> None:
        if self.alive:
            self.handle(ev.Tick())
            self.world.at(self.node.ctx.config.tick_s, self.tick)

    def handle(self, event: ev.AnyEvent) -> None:
        if not self.alive:
            return
        for action in self.node.handle(event, self.world.now):
            self.do(action)
            if not self.alive:
                return

    def do(self, action: act.AnyAction) -> None:
        world = self.world
        match action:
            case act.Persist(words):
                self.words = encode_words(words)
            case act.Send(dst, message):
                world.control(self.info.id, dst, encode(message))
            case act.Connect(other):
                world.connect(self.info.id, other.id)
            case act.Disconnect(peer):
                world.disconnect(self.info.id, peer)
            case act.TrySeal(other):
                world.try_seal(self, other)
            case act.ToWorker(message):
                world.at(0.0003, lambda w=self.worker, m=message: w.hear(m))
            case act.SetViews(views, finished):
                self.reducer.set_views(views, finished)
            case act.SendContribution(view_id, step, _, empty):
                if not empty:
                    self.send_contribution(view_id, step)
            case act.ContributionKnown(view_id, step, peer, _, empty):
                self.reducer.known(view_id, step, peer, empty)
            case act.FetchRound(view_id, step):
                self.reducer.fetching[step] = view_id
            case act.Finish(step):
                self.reducer.finished = step
                self.reducer.fetching.pop(step, None)
            case act.ServeResult(dst, view_id, step):
                world.bulk(self.info.id, dst, "result", view_id, step, self.reducer.results[step])
            case act.HashSnapshot(step, shard_bytes):
                chain = self.worker.chain if self.worker else b""
                manifest = self.manifest(step) or chain
                hashes = tuple(digest(manifest, i) for i in range(8))
                world.later(0.003, self, ev.SnapshotHashed(step, shard_bytes, hashes))
            case act.ServeShards(dst, step, shards):
                for i, shard in enumerate(shards):
                    world.shard(self.info.id, dst, step, shard, 0.002 * (i + 1))
            case act.WriteCheckpoint(step):
                world.later(0.05, self, ev.SnapshotFreed(step))
            case act.Trace(kind, fields):
                self.note(kind, fields)
            case act.SendGoodbye(peers, reason):
                if self.words is not None:
                    for peer in peers:
                        world.control(self.info.id, peer, encode(Goodbye(self.sealed(), reason)))
            case act.Stop():
                self.stopped = action
                world.at(0.05, lambda: world.kill(self, seal=True))
            case _:
                pass

    def manifest(self, step: int) -> bytes | None:
        donor, learner = self.node.donor._snapshot, self.node.learner._own
        for manifest in (donor.manifest if donor else None, learner):
            if manifest is not None and manifest.step == step:
                return manifest.scalars
        return None

    def sealed(self) -> Sealed:
        assert self.words is not None
        return Sealed(self.words, sign(self.words))

    def send_contribution(self, view_id: int, step: int) -> None:
        own = self.node.steps._own[step]
        symbol = (self.info.name, step, own.ranges)
        view = self.reducer.view_for(step)
        assert view is not None and view.id == view_id
        for member in view.members:
            self.world.bulk(self.info.id, member.id, "contribution", view_id, step, symbol)

    def note(self, kind: str, fields: dict[str, Any]) -> None:
        self.trace.append((self.world.now, kind, fields))
        if self.world.verbose:
            print(f"{self.world.now:8.4f} {self.info.name:4} {kind:16} {fields}")
        if kind == "commit":
            self.finished[fields["step"]] = bytes.fromhex(fields["head"])
            self.world.commits.setdefault(fields["head"], fields)
        elif kind == "stable":
            for step in range(1, fields["step"] + 1):
                if step in self.finished and step not in self.stable:
                    self.stable[step] = self.finished[step]
                    self.world.check_stable(self, step)


class World:
    """Network, clock and faults."""

    def __init__(self, seed: int = 0, latency: float = 0.001, steps: int = 0, verbose: bool = False) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.latency = latency
        self.steps = steps
        self.verbose = verbose
        self.min_peers = 1
        self.checkpoint_every = 0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = 0
        self.peers: dict[str, SimPeer] = {}
        self.dead: list[SimPeer] = []
        self.links: set[frozenset[str]] = set()
        self.cut: set[frozenset[str]] = set()
        self.fifo: dict[tuple[str, str, str], float] = {}
        self.commits: dict[str, dict[str, Any]] = {}
        self.stable: dict[int, bytes] = {}
        self.sealing = 0.003

    def config(self, founder: bool) -> NodeConfig:
        return NodeConfig(
            verify=verify, min_peers=self.min_peers if founder else 1, checkpoint_every=self.checkpoint_every
        )

    # --- time ---------------------------------------------------------------------------------------------

    def at(self, delay: float, do: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (self.now + delay, self.order, do))

    def later(self, delay: float, peer: SimPeer, event: ev.AnyEvent) -> None:
        self.at(delay, lambda: peer.handle(event))

    def run(self, until: float) -> None:
        while self.heap and self.heap[0][0] <= until:
            self.now, _, do = heapq.heappop(self.heap)
            do()
        self.now = until

    def run_until(self, condition: Callable[[], bool], limit: float = 60.0) -> None:
        end = self.now + limit
        while not condition():
            if not self.heap or self.heap[0][0] > end:
                raise AssertionError(f"seed {self.seed}: not reached within {limit} s: {self.summary()}")
            self.now, _, do = heapq.heappop(self.heap)
            do()

    # --- network ------------------------------------------------------------------------------------------

    def delay(self, src: str, dst: str, channel: str) -> float:
        """One way, with jitter; each channel of a link is first in, first out, as TCP is."""
        if src == dst:
            return 0.00001
        arrival = self.now + self.latency * self.random.uniform(0.5, 2.0)
        arrival = max(arrival, self.fifo.get((src, dst, channel), 0.0))
        self.fifo[(src, dst, channel)] = arrival + 1e-9
        return arrival - self.now

    def linked(self, a: str, b: str) -> bool:
        return a == b or frozenset((a, b)) in self.links

    def control(self, src: str, dst: str, data: bytes) -> None:
        if not self.linked(src, dst):
            return
        sender = self.peers.get(src)

        def arrive() -> None:
            receiver = self.peers.get(dst)
            if receiver is not None and receiver.alive and self.linked(src, dst) and self.peers.get(src) is sender:
                receiver.handle(ev.Received(src, decode(data)))

        self.at(self.delay(src, dst, "control"), arrive)

    def bulk(self, src: str, dst: str, kind: str, view: int, step: int, symbol: Any) -> None:
        if not self.linked(src, dst):
            return

        def arrive() -> None:
            receiver = self.peers.get(dst)
            if receiver is not None and receiver.alive and self.linked(src, dst):
                receiver.reducer.receive(kind, src, view, step, symbol)

        self.at(self.delay(src, dst, f"bulk{self.random.randrange(2)}") + 0.001, arrive)

    def shard(self, src: str, dst: str, step: int, shard: int, delay: float) -> None:
        def arrive() -> None:
            receiver = self.peers.get(dst)
            if receiver is not None and receiver.alive and self.linked(src, dst):
                receiver.handle(ev.ShardStored(step, shard, src, True))

        self.at(delay + self.latency, arrive)

    def connect(self, a: str, b: str) -> None:
        pair = frozenset((a, b))

        def up() -> None:
            one, two = self.peers.get(a), self.peers.get(b)
            if one is None or two is None or not one.alive or not two.alive:
                return
            if pair in self.links or pair in self.cut:
                return
            self.links.add(pair)
            one.handle(ev.LinkUp(two.info, two.node.ctx.run))
            two.handle(ev.LinkUp(one.info, one.node.ctx.run))

        self.at(2 * self.latency, up)

    def disconnect(self, a: str, b: str) -> None:
        pair = frozenset((a, b))
        if pair in self.links:
            self.links.discard(pair)
            for one, other in ((a, b), (b, a)):
                peer = self.peers.get(one)
                if peer is not None:
                    self.later(self.latency, peer, ev.LinkDown(other, "closed"))

    def cut_link(self, a: int, b: int) -> None:
        self.cut.add(frozenset((peer_id(a), peer_id(b))))
        self.disconnect(peer_id(a), peer_id(b))

    def restore_link(self, a: int, b: int) -> None:
        self.cut.discard(frozenset((peer_id(a), peer_id(b))))
        self.connect(peer_id(a), peer_id(b))

    # --- peers and faults -------------------------------------------------------------------------------------

    def found(self, index: int = 0) -> SimPeer:
        peer = SimPeer(self, index, 1, Founding(run="run", lineage="one"))
        self.peers[peer.info.id] = peer
        return peer

    def join(self, index: int, contact: int, incarnation: int = 1) -> SimPeer:
        peer = SimPeer(self, index, incarnation, None)
        self.peers[peer.info.id] = peer
        self.connect(peer.info.id, peer_id(contact))
        return peer

    def kill(self, peer: SimPeer, seal: bool) -> None:
        """SIGKILL of the agent: its links break; with `seal` somebody can prove it."""
        if not peer.alive:
            return
        peer.alive = False
        self.dead.append(peer)
        if not seal:
            peer.words = None
        for pair in sorted(sorted(p) for p in self.links if peer.info.id in p):
            self.disconnect(*pair)
        if self.peers.get(peer.info.id) is peer:
            del self.peers[peer.info.id]

    def kill_worker(self, peer: SimPeer, restart: float | None = 0.1) -> None:
        peer.worker.alive = False
        self.later(0.001, peer, ev.WorkerDied("killed by signal 9"))
        if restart is not None:

            def again() -> None:
                if peer.alive:
                    peer.worker = Worker(peer)
                    peer.worker.start()

            self.at(restart, again)

    def try_seal(self, finder: SimPeer, other: PeerInfo) -> None:
        def found() -> None:
            for dead in self.dead:
                if dead.info == other and dead.words is not None:
                    finder.handle(ev.WordsFound(dead.sealed()))

        for delay in (self.sealing, 10 * self.sealing, 100 * self.sealing):
            self.at(delay, found)

    # --- promises -----------------------------------------------------------------------------------------------

    def check_stable(self, peer: SimPeer, step: int) -> None:
        """I1 to I3 on stable steps: one lineage, the same everywhere."""
        head = peer.stable[step]
        agreed = self.stable.setdefault(step, head)
        assert agreed == head, f"seed {self.seed}: step {step} is stable with two lineages (at {peer.info.name})"

    def check_samples(self) -> int:
        """I3: along the stable lineage no sample counts twice. Returns how many counted."""
        seen: set[tuple[int, int]] = set()
        for step in sorted(self.stable):
            fields = self.commits[self.stable[step].hex()]
            for _, epoch, start, stop in fields["samples"]:
                for position in range(start, stop):
                    assert (epoch, position) not in seen, f"seed {self.seed}: sample {position} counted twice"
                    seen.add((epoch, position))
        return len(seen)

    def members(self) -> list[SimPeer]:
        return [p for p in self.peers.values() if p.alive and p.node.ctx.role == Role.MEMBER]

    def check_equal_state(self) -> None:
        """All members' workers that stand at one step have the same bytes."""
        chains: dict[int, bytes] = {}
        for peer in self.members():
            worker = peer.worker
            known = peer.node.worker.worker
            if worker.alive and known is not None and known.applied is not None and not known.loading:
                agreed = chains.setdefault(worker.applied, worker.chain)
                assert agreed == worker.chain, f"seed {self.seed}: {peer.info.name} differs at {worker.applied}"

    def summary(self) -> list[Any]:
        return [
            (p.info.name, str(p.node.ctx.role), p.node.steps.finished, str(p.node.learner.phase),
             p.node.ctx.views[-1].id if p.node.ctx.views else None)
            for p in self.peers.values()
        ]  # fmt: skip
