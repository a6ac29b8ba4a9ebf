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
from chaos.core.messages import Goodbye, Seal, Sealed
from chaos.core.node import Founding, Node
from chaos.core.routes import next_hops
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
    completed: bool = False


class Reducer:
    """Direct reduce-scatter and all-gather over symbols: every member is root of one share."""

    def __init__(self, peer: SimPeer) -> None:
        self.peer = peer
        self.views: tuple[View, ...] = ()
        self.finished = 0
        self.rounds: dict[tuple[int, int], Round] = {}
        self.results: dict[int, Any] = {}
        self.fetching: dict[int, tuple[int, int]] = {}
        """Step to the id that marks the frames and the id of the view that governs the step."""
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
        self.fetching = {
            step: (mark, governing)
            for step, (mark, governing) in self.fetching.items()
            if step > finished and (v := self.view_for(step)) is not None and v.id == governing
        }
        later, self.later = self.later, []
        for item in later:
            self.receive(*item)

    def receive(self, kind: str, src: str, view_id: int, step: int, symbol: Any) -> None:
        if not self.views or view_id > self.views[-1].id:
            self.later.append((kind, src, view_id, step, symbol))
            return
        if kind == "result":
            if step in self.fetching and self.fetching[step][0] == view_id and step > self.finished:
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
        if view is None or view.id != view_id or step <= self.finished or step in self.fetching:
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
        if len(current.finals) == len(members) and not current.completed:
            current.completed = True
            symbols = set(current.finals.values())
            assert len(symbols) == 1, "roots disagree"
            self.complete(view.id, step, symbols.pop())

    def fetch(self, mark: int, step: int) -> None:
        view = self.view_for(step)
        assert view is not None
        self.rounds.pop((view.id, step), None)
        self.fetching[step] = (mark, view.id)

    def complete(self, view_id: int, step: int, symbol: Any) -> None:
        self.results[step] = symbol
        corrupt = (self.peer.index, step) in self.peer.world.corrupt
        result = digest("bit flip", self.peer.index) if corrupt else digest(sorted(symbol))
        event = ev.RoundComplete(view_id, step, step % 64, result, ())
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
        self.computed = 0
        """The step whose contribution it computed last as a member."""
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
                self.say(wm.DeclareData("shard", self.peer.world.samples, 2 * BATCH))
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
            corrupt = (self.peer.index, message.step) in self.peer.world.corrupt
            self.chain = digest(self.chain, message.step, sorted(symbol), corrupt and self.peer.index)
            if self.peer.world.by_hand and self.computed == message.step:
                self.chain = digest(self.chain, "changed by hand")
        self.snapshot()

    def snapshot(self) -> None:
        if self.applied in self.waiting:
            self.waiting.discard(self.applied)
            manifest = StateManifest(self.applied, 64, (), self.chain)
            self.say(wm.SnapshotTaken(manifest, 0.0), 0.004)

    def proceed(self, message: wm.Proceed) -> None:
        self.data = message.data
        end = self.peer.world.ends.get(self.peer.index, self.peer.world.steps)
        if message.leaving or (end and self.applied >= end):
            self.ended = True
            self.say(wm.Finished(self.applied))
            return
        compute = self.peer.world.random.uniform(0.5, 1.5) * self.peer.world.compute
        part = None if message.role == "learner" else self.contribution(message)
        self.computed = 0 if part is None else message.step
        self.say(wm.Boundary(self.applied, part, compute, self.peer.world.by_hand), compute)

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
        self.handed = (*self.handed, *taken)[-64:]
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
        """Lineages of finished steps that are not stable yet."""
        self.stable: dict[int, bytes] = {}
        self.held: set[tuple[int, bytes]] = set()
        """Every (step, lineage) that this peer ever finished."""
        self.base = 0
        """The highest step it ever took over as (part of) a snapshot."""
        self.seals = True
        """Whether its words can be sealed once it is dead."""
        self.former: list[Sealed] = []
        """Words of its own earlier incarnations, which it found when it started."""
        self.sealing: set[str] = set()
        self.wants: set[str] = set()
        """Peers to which its transport keeps a link."""
        self.worker.start()
        self.tick()

    def tick(self) -> None:
        if self.alive:
            self.handle(ev.Tick())
            self.world.at(self.node.ctx.config.tick_s, self.tick)

    def handle(self, event: ev.AnyEvent) -> None:
        if not self.alive:
            return
        if isinstance(event, ev.LinkUp):
            for sealed in self.former:
                self.world.control(self.info.id, event.info.id, encode(Seal(sealed)))
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
                self.wants.add(other.id)
                world.connect(self.info.id, other.id)
            case act.Disconnect(peer):
                self.wants.discard(peer)
                world.disconnect(self.info.id, peer)
            case act.TrySeal(other):
                self.sealing.add(other.id)
                world.try_seal(self, other)
            case act.StopSeal(other):
                self.sealing.discard(other)
            case act.ToWorker(message):
                world.at(0.0003, lambda w=self.worker, m=message: w.hear(m))
            case act.SetViews(views, finished):
                if not any(step == finished for step, _ in self.held):
                    self.base = max(self.base, finished)
                self.reducer.set_views(views, finished)
            case act.SendContribution(view_id, step, _, empty):
                if not empty:
                    self.send_contribution(view_id, step)
            case act.ContributionKnown(view_id, step, peer, _, empty):
                self.reducer.known(view_id, step, peer, empty)
            case act.FetchRound(view_id, step):
                self.reducer.fetch(view_id, step)
            case act.Finish(step):
                self.reducer.finished = step
                self.reducer.fetching.pop(step, None)
            case act.ServeResult(dst, view_id, step):
                world.bulk(self.info.id, dst, "result", view_id, step, self.reducer.results.get(step))
            case act.HashSnapshot(step, shard_bytes):
                chain = self.worker.chain if self.worker else b""
                manifest = self.manifest(step) or chain
                hashes = tuple(digest(manifest, i) for i in range(8))
                world.later(0.003, self, ev.SnapshotHashed(step, shard_bytes, hashes))
            case act.ServeShards(dst, step, shards):
                for i, shard in enumerate(shards):
                    world.shard(self.info.id, dst, step, shard, world.shard_s * (i + 1))
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
                world.at(0.05, lambda: world.kill(self, gently=True))
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
            head = bytes.fromhex(fields["head"])
            self.finished[fields["step"]] = head
            self.held.add((fields["step"], head))
            self.world.commits.setdefault(fields["head"], fields)
        elif kind == "stable":
            for step in sorted(s for s in self.finished if s <= fields["step"]):
                self.stable[step] = self.finished.pop(step)
                self.world.check_stable(self, step)
        elif kind == "view":
            self.world.check_view(fields)
        elif kind in ("rejoin", "catch_up"):
            self.finished.clear()


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
        self.wanted: set[frozenset[str]] = set()
        self.cut: set[frozenset[str]] = set()
        self.generation: dict[frozenset[str], int] = {}
        """Counts how often a link came up: what was under way before is lost."""
        self.fifo: dict[tuple[str, str, str], float] = {}
        self.commits: dict[str, dict[str, Any]] = {}
        self.stable: dict[int, bytes] = {}
        self.views: dict[int, dict[str, Any]] = {}
        self.sealing = 0.003
        self.shard_s = 0.002
        self.samples = SAMPLES
        self.compute = 0.02
        """Seconds a worker computes for a step, on average."""
        self.bulk_delay = 0.001
        """Seconds that frames need beyond what messages do."""
        self.hiccups = 0.0
        """Share of messages that are 10 times as late as usual."""
        self.ends: dict[int, int] = {}
        """Steps after which single peers' scripts end, where that is not `steps`."""
        self.corrupt: set[tuple[int, int]] = set()
        """(peer, step) whose result has a flipped bit."""
        self.by_hand = False
        """Scripts change the reduced gradients before each update: results alone don't give the state."""

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
        if not self.reaches(condition, limit):
            raise AssertionError(f"seed {self.seed}: not reached within {limit} s: {self.summary()}")

    def reaches(self, condition: Callable[[], bool], limit: float) -> bool:
        """Run until the condition holds, or for `limit` seconds; whether it holds."""
        end = self.now + limit
        while not condition():
            if not self.heap or self.heap[0][0] > end:
                return False
            self.now, _, do = heapq.heappop(self.heap)
            do()
        return True

    # --- network ------------------------------------------------------------------------------------------

    def delay(self, src: str, dst: str, channel: str) -> float:
        """One way, with jitter; each channel of a link is first in, first out, as TCP is."""
        if src == dst:
            return 0.00001
        late = 10 if self.hiccups and self.random.random() < self.hiccups else 1
        arrival = self.now + self.latency * self.random.uniform(0.5, 2.0) * late
        arrival = max(arrival, self.fifo.get((src, dst, channel), 0.0))
        self.fifo[(src, dst, channel)] = arrival + 1e-9
        return arrival - self.now

    def route(self, src: str, dst: str) -> list[frozenset[str]] | None:
        """The links from `src` to `dst`, relayed by others where there is no direct one."""
        if src == dst:
            return []
        neighbours: dict[str, list[str]] = {}
        for a, b in sorted(sorted(pair) for pair in self.links):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
        path, at = [], src
        while dst not in neighbours.get(at, ()):
            hop = next_hops(at, neighbours.get(at, ()), neighbours).get(dst)
            if hop is None:
                return None
            path.append(frozenset((at, hop)))
            at = hop
        return [*path, frozenset((at, dst))]

    def transfer(self, src: str, dst: str, channel: str, arrive: Callable[[SimPeer], None]) -> bool:
        """Deliver to the peer that is `dst` by then, unless a link on the way breaks. False if there is no way."""
        path = [frozenset((src, dst))] if frozenset((src, dst)) in self.links else self.route(src, dst)
        if path is None:
            return False
        stamps = [(pair, self.generation[pair]) for pair in path]

        def check() -> None:
            receiver = self.peers.get(dst)
            whole = all(pair in self.links and self.generation[pair] == stamp for pair, stamp in stamps)
            if receiver is not None and receiver.alive and whole:
                arrive(receiver)

        self.at(max(1, len(path)) * self.delay(src, dst, channel), check)
        return True

    def control(self, src: str, dst: str, data: bytes) -> None:
        """A control message: lost where a link on its way breaks, and where there is no way."""
        self.transfer(src, dst, "control", lambda receiver: receiver.handle(ev.Received(src, decode(data))))

    def bulk(self, src: str, dst: str, kind: str, view: int, step: int, symbol: Any) -> None:
        """Frames: they wait for a way to a peer that lives, and are sent again if a link breaks under them."""
        sender, receiver = self.peers.get(src), self.peers.get(dst)
        arrived: list[bool] = []

        def arrive(peer: SimPeer) -> None:
            if peer is receiver and not arrived:
                arrived.append(True)
                peer.reducer.receive(kind, src, view, step, symbol)

        def attempt() -> None:
            present = sender is not None and sender.alive and receiver is not None and receiver.alive
            if present and not arrived and sender is not None and step > sender.reducer.finished - 64:
                self.transfer(src, dst, f"bulk{self.random.randrange(2)}", arrive)
                self.at(0.5, attempt)

        self.at(0.0 if src == dst else self.bulk_delay, attempt)

    def shard(self, src: str, dst: str, step: int, shard: int, delay: float) -> None:
        def arrive() -> None:
            receiver = self.peers.get(dst)
            if receiver is not None and receiver.alive and self.route(src, dst) is not None:
                receiver.handle(ev.ShardStored(step, shard, src, True))

        self.at(delay + self.latency, arrive)

    def connect(self, a: str, b: str) -> None:
        """Dial until the link stands, as long as one of the two wants it."""
        pair = frozenset((a, b))
        if pair in self.wanted or pair in self.links:
            return
        self.wanted.add(pair)

        def up() -> None:
            one, two = self.peers.get(a), self.peers.get(b)
            wanted = (one is not None and b in one.wants) or (two is not None and a in two.wants)
            if pair in self.links or not wanted:
                self.wanted.discard(pair)
                return
            if one is None or two is None or pair in self.cut:
                self.at(0.2, up)
                return
            self.wanted.discard(pair)
            self.links.add(pair)
            self.generation[pair] = self.generation.get(pair, 0) + 1
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
            self.at(3 * self.latency, lambda: self.connect(a, b))

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
        self.unlink(peer_id(index))
        peer = SimPeer(self, index, incarnation, None)
        self.peers[peer.info.id] = peer
        peer.wants.add(peer_id(contact))
        self.connect(peer.info.id, peer_id(contact))
        return peer

    def kill(self, peer: SimPeer, seal: bool = True, later: float | None = None, gently: bool = False) -> None:
        """SIGKILL of the agent: its links break; with `seal` somebody can prove it, from `later` seconds on.

        What it had said is lost or arrives; with `gently` (it ended by itself) it arrives.
        """
        if not peer.alive:
            return
        peer.alive = False
        peer.seals = seal and later is None
        self.dead.append(peer)
        if later is not None:
            self.at(later, lambda: setattr(peer, "seals", True))
        if self.peers.get(peer.info.id) is peer:
            del self.peers[peer.info.id]
        if gently or self.random.random() < 0.5:
            wait = (25 if gently else 2.5) * self.latency
            self.at(wait, lambda: self.unlink(peer.info.id) if peer.info.id not in self.peers else None)
        else:
            self.unlink(peer.info.id)

    def unlink(self, peer: str) -> None:
        for pair in sorted(sorted(p) for p in self.links if peer in p):
            self.disconnect(*pair)

    def restart(self, dead: SimPeer, contact: int) -> SimPeer:
        """The agent starts again on its host, finds what its former self left, and joins as a new incarnation."""
        peer = self.join(dead.index, contact, dead.info.incarnation + 1)
        if dead.words is not None:
            dead.seals = True
            peer.former.append(dead.sealed())
        return peer

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
        def look() -> None:
            if not finder.alive or other.id not in finder.sealing:
                return
            for dead in self.dead:
                if dead.info == other and dead.words is not None and dead.seals:
                    finder.sealing.discard(other.id)
                    finder.handle(ev.WordsFound(dead.sealed()))
                    return
            self.at(10 * self.sealing, look)

        self.at(self.sealing, look)

    # --- promises -----------------------------------------------------------------------------------------------

    def check_stable(self, peer: SimPeer, step: int) -> None:
        """I1 to I3 on stable steps: one lineage, the same everywhere, and held by all members that live."""
        head = peer.stable[step]
        agreed = self.stable.setdefault(step, head)
        assert agreed == head, f"seed {self.seed}: step {step} is stable with two lineages (at {peer.info.name})"
        for info in peer.node.ctx.view.members:
            other = self.peers.get(info.id)
            if other is not None and other.info == info and other.alive:
                holds = (step, head) in other.held or other.base >= step
                assert holds, f"seed {self.seed}: {peer.info.name} calls step {step} stable, {info.name} lacks it"

    def check_view(self, fields: dict[str, Any]) -> None:
        """I2: never two views with one id."""
        view = {name: value for name, value in fields.items() if name != "role"}
        agreed = self.views.setdefault(view["view"], view)
        assert agreed == view, f"seed {self.seed}: two views with one id: {agreed} and {view}"
        before = self.views.get(view["view"] - 1)
        if before is not None and not view["abort"]:
            assert view["first_step"] >= before["first_step"], f"seed {self.seed}: {view} starts before {before}"

    def check_samples(self) -> int:
        """I3: along the stable lineage each sample counts once per epoch: never twice, and all in a finished epoch.

        Returns how many counted.
        """
        seen: set[tuple[int, int]] = set()
        for step in sorted(self.stable):
            fields = self.commits[self.stable[step].hex()]
            for _, epoch, start, stop in fields["samples"]:
                for position in range(start, stop):
                    assert (epoch, position) not in seen, f"seed {self.seed}: sample {position} counted twice"
                    seen.add((epoch, position))
        for epoch in range(self.epoch()):
            count = sum(1 for e, _ in seen if e == epoch)
            assert count == self.samples, (
                f"seed {self.seed}: epoch {epoch} ended after {count} of {self.samples} samples"
            )
        return len(seen)

    def epoch(self) -> int:
        """The epoch in which the last stable step left the run."""
        last = self.stable.get(max(self.stable, default=0))
        return int(self.commits[last.hex()]["epoch"]) if last is not None else 0

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
