"""A simulated peer: the real node, and the simulator's hands for its actions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chaos.core import actions as act
from chaos.core import events as ev
from chaos.core import worker_messages as wm
from chaos.core.codec import encode_words
from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import Goodbye, Seal, Sealed
from chaos.core.node import Founding, Node
from chaos.core.routes import ways
from chaos.sim.reducer import Reducer
from chaos.sim.symbols import Result, digest, info, sign
from chaos.sim.worker import Worker

if TYPE_CHECKING:
    from chaos.sim.world import World

TICK = ev.Tick()


@dataclass(frozen=True)
class ClockSkew:
    """How a host's monotonic clock differs from the simulation's: local = offset + rate * global."""

    offset: float = 0.0
    rate: float = 1.0


@dataclass(eq=False)
class Serving:
    """What a donor sends to one learner."""

    step: int
    queue: deque[int] = field(default_factory=deque)
    begun: set[int] = field(default_factory=set)
    busy: bool = False
    relayed: bool = False
    """Of the snapshot that this peer itself is receiving: each shard once it is here."""


class SimPeer:
    def __init__(
        self, world: World, index: int, incarnation: int, founding: Founding | None, clock: ClockSkew | None = None
    ) -> None:
        self.world = world
        self.index = index
        self.info = info(index, incarnation)
        self.clock = clock or ClockSkew()
        self.alive = True
        self.frozen = False
        self.lag_s = 0.0
        """A slow host: each event waits so long for its turn."""
        self.slowness = 1.0
        """Factor on the time its worker computes."""
        self.crash_after: int | None = None
        """The process dies after so many further actions."""
        self.node = Node(self.info, world.config(founding is not None), founding)
        self.reducer = Reducer(self.info.id, self, world.result_slots, world.disk_slots)
        self.node.handle(ev.ResultMemory(world.result_slots, world.disk_slots), world.now)
        self.worker = Worker(self)
        """The one whose socket the agent holds: a new one takes its place when the agent hears of it."""
        self.words: bytes | None = None
        self.trace: list[tuple[float, str, dict[str, Any]]] = []
        self.stopped: act.Stop | None = None
        self.seals = True
        """Whether its words can be sealed once it is dead."""
        self.former: list[Sealed] = []
        """Words of its own earlier incarnations, which it found when it started."""
        self.sealing: set[str] = set()
        self.wants: set[str] = set()
        """Peers to which its transport keeps a link."""
        self.buffer: int | None = None
        """The step whose gradient lies in the contribution buffer; None while the worker may write there."""
        self._flipped: set[int] = set()
        """Steps whose result arrived with a flipped bit."""
        self._inbox: deque[Callable[[], None]] = deque()
        self._busy_until = 0.0
        self._serving: dict[str, Serving] = {}
        self._stored: tuple[int, set[int]] = (0, set())
        """The step of the snapshot that is being received, and the shards that are here."""
        self._hashes: tuple[bytes, ...] = ()
        self._ways: dict[str, tuple[str, ...]] = {}
        """How each peer is reached: over whom, itself last."""
        self._routed_by: tuple[int, tuple[str, ...]] | None = None
        """What these were made of."""
        self.worker.start()
        self._tick()

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def run(self) -> str:
        return self.node.ctx.run

    @property
    def now(self) -> float:
        """What this host's monotonic clock shows."""
        return self.clock.offset + self.clock.rate * self.world.now

    # --- the process ---------------------------------------------------------------------------------------

    def post(self, do: Callable[[], None]) -> None:
        """Have the agent do this when its turn comes: at once, unless it is slow, frozen or dead."""
        heap = self.world.heap
        if self.lag_s or self._busy_until > heap.now:
            self._busy_until = max(heap.now, self._busy_until) + self.lag_s
            heap.at(self._busy_until - heap.now, lambda: self._take(do))
        elif self.frozen:
            self._inbox.append(do)
        elif self.alive:
            do()

    def _take(self, do: Callable[[], None]) -> None:
        if self.frozen:
            self._inbox.append(do)
        elif self.alive:
            do()

    def freeze(self) -> None:
        """SIGSTOP of the agent: its links stand, its kernel takes what comes."""
        self.frozen = True

    def wake(self) -> None:
        """SIGCONT: all that came meanwhile is handled at once, in order, at the present time."""
        self.frozen = False
        inbox, self._inbox = self._inbox, deque()
        for do in inbox:
            if self.alive:
                do()

    def _tick(self) -> None:
        if self.alive:
            if not self.frozen:
                self.post(self._on_tick)
            self.world.heap.at(self.node.ctx.config.tick_s / self.clock.rate, self._tick)

    def _on_tick(self) -> None:
        self.handle(TICK)

    def handle(self, event: ev.AnyEvent) -> None:
        """Let the node handle an event, then carry out its actions; the process may die between two of them."""
        if not self.alive:
            return
        if isinstance(event, ev.LinkUp):
            for sealed in self.former:
                self.world.control(self.info.id, event.info.id, Seal(sealed))
        elif isinstance(event, ev.WorkerSaid):
            self._note_boundary(event.message)
        elif isinstance(event, ev.ShardStored):
            self._note_shard(event)
        self.world.events += 1
        try:
            actions = self.node.handle(event, self.now)
        except RemoteProtocolError as error:
            self.world.refused_by(self, event, error)
            return
        if actions and not self._do_all(actions):
            return
        self._route()
        if self.alive:
            self.world.promises.after_event(self)

    def _do_all(self, actions: list[act.AnyAction]) -> bool:
        """False if the process died meanwhile."""
        for action in actions:
            self._do(action)
            if self.crash_after is not None:
                self.crash_after -= 1
                if self.crash_after <= 0:
                    self.world.crashed(self)
            if not self.alive:
                return False
        return True

    def _note_boundary(self, message: wm.FromWorker) -> None:
        match message:
            case wm.Boundary(applied, part, _) if part is not None:
                self.buffer = applied + 1

    def _note_shard(self, event: ev.ShardStored) -> None:
        """What came whole can be passed on, and stays on this host's disk."""
        if event.ok and event.step == self._stored[0]:
            self._stored[1].add(event.shard)
            self.world.disks[self.index].add(self._hashes[event.shard])
            for dst, serving in self._serving.items():
                self._send_next(dst, serving)

    def next_hop(self, dst: str) -> str | None:
        """Where this peer's transport sends what is for a peer without a direct link."""
        way = self._ways.get(dst, ())
        return way[0] if len(way) > 1 else None

    def _route(self) -> None:
        """Find the ways anew if what the node knows of links has changed, and tell it of those that are new."""
        liveness, linked = self.node.liveness, self.node.ctx.linked
        known = liveness.topology, tuple(linked)
        if self._routed_by == known:
            return
        before, self._routed_by = self._ways, known
        self._ways = ways(self.id, linked, liveness.neighbours)
        for peer in [peer for peer, way in self._ways.items() if len(way) > 1 and way != before.get(peer)]:
            self.handle(ev.PathChanged(peer))

    # --- the node's actions --------------------------------------------------------------------------------

    def _do(self, action: act.AnyAction) -> None:
        world = self.world
        match action:
            case act.Trace(kind, fields):
                self._note(kind, fields)
            case act.Send(dst, message):
                world.control(self.info.id, dst, message)
            case act.Persist(words):
                self.words = encode_words(words)
            case act.ToWorker(message):
                self._tell_worker(message)
            case act.Connect(other):
                self.wants.add(other.id)
                world.network.connect(self.info.id, other.id)
            case act.Disconnect(peer, reason):
                self.wants.discard(peer)
                world.network.close(self.info.id, peer, reason)
            case act.TrySeal(other):
                self.sealing.add(other.id)
                world.try_seal(self, other)
            case act.StopSeal(peer):
                self.sealing.discard(peer)
            case act.SendGoodbye(peers, reason, complete):
                if self.words is not None:
                    for peer in peers:
                        world.control(self.info.id, peer, Goodbye(self.sealed(), reason, complete))
            case act.Tell(text):
                self._note("told", {"text": text})
            case act.Stop():
                self.stopped = action
                world.heap.at(0.05, lambda: world.kill(self, gently=True))
            case _:
                self._do_bulk(action)

    def _do_bulk(self, action: act.AnyAction) -> None:
        reducer = self.reducer
        match action:
            case act.SetViews(views, finished):
                self.world.promises.stands_at(self, finished)
                reducer.set_views(views, finished)
            case act.SendContribution(view_id, step, _, empty):
                if not empty:
                    self._send_contribution(view_id, step)
            case act.ContributionKnown(view_id, step, peer, _, empty):
                reducer.known(view_id, step, peer, empty)
            case act.FetchRound(mark, step):
                reducer.fetch(mark, step)
            case act.Finish(step):
                reducer.finish(step)
            case act.ReleaseResults(step):
                reducer.release(step)
            case act.MoveResults(step):
                reducer.move(step)
            case act.ServeResult(dst, mark, step):
                self.send_frame(dst, "result", mark, step, self.result_of(step))
            case act.HashSnapshot(step, shard_bytes):
                chain = self._manifest(step) or self.worker.chain
                count = -(-self.world.state_bytes // shard_bytes)
                hashes = tuple(digest(chain, i) for i in range(count))
                self._later(0.003, ev.SnapshotHashed(step, shard_bytes, hashes))
            case act.ServeShards():
                self._serve(action)
            case act.WriteCheckpoint(step):
                self.world.promises.wrote_checkpoint(self, step)
                self._later(0.05, ev.SnapshotFreed(step))
            case act.ReceiveSnapshot(step, _, _, hashes):
                self._receive(step, hashes)
            case act.OpenRound() | act.ReleaseSnapshot():
                pass  # bytes in advance, and memory: there is neither

    def _later(self, delay: float, event: ev.AnyEvent) -> None:
        self.world.heap.at(delay, lambda: self.post(lambda: self.handle(event)))

    def _receive(self, step: int, hashes: tuple[bytes, ...]) -> None:
        """What of it lies on this host: in the file of an earlier process, or in the own snapshot."""
        donor = self.node.donor._snapshot
        own = self.node.learner._own_hashes or (donor.hashes if donor is not None else ())
        disk = self.world.disks.setdefault(self.index, set())
        found = {i for i, name in enumerate(hashes) if name in disk or name in own}
        self._stored, self._hashes = (step, found), hashes
        disk.clear()
        disk.update(hashes[i] for i in found)
        self._later(0.001, ev.ShardsHeld(step, tuple(sorted(found))))

    def _manifest(self, step: int) -> bytes | None:
        donor, learner = self.node.donor._snapshot, self.node.learner._own
        for manifest in (donor.manifest if donor else None, learner):
            if manifest is not None and manifest.step == step:
                return manifest.scalars
        return None

    def sealed(self) -> Sealed:
        assert self.words is not None
        return Sealed(self.words, sign(self.words))

    # --- the data plane ------------------------------------------------------------------------------------

    def _send_contribution(self, view_id: int, step: int) -> None:
        if self.buffer != step:
            self.world.promises.broken("I3", f"{self.info.name} sends step {step} from a buffer of {self.buffer}")
        own = self.node.steps._own.get(step)
        if own is None:
            return  # in one event it opened the step and then lost its place in the run
        part = (self.info.name, step, view_id, tuple((r.epoch, r.start, r.stop) for r in own.ranges))
        for member in self.reducer.members_for(view_id, step):
            self.send_frame(member, "contribution", view_id, step, (part,))

    def send_frame(self, dst: str, kind: str, view_id: int, step: int, parts: Result) -> None:
        self.world.frame(self, dst, kind, view_id, step, parts)

    def round_complete(self, view_id: int, step: int, result: Result) -> None:
        if (self.index, step) in self.world.corrupt:
            self._flipped.add(step)
        else:
            self._flipped.discard(step)
        body = digest("bit flip", self.index) if self.is_corrupt(step) else digest(result)
        self._later(0.0001, ev.RoundComplete(view_id, step, body, ()))

    def result_dropped(self, step: int) -> None:
        self._later(0.0, ev.ResultDropped(step, "the simulated memory is full"))

    def roots_disagree(self, step: int, results: list[Result]) -> None:
        self.world.promises.broken("I1", f"roots disagree on step {step}: {results}")

    def _serve(self, order: act.ServeShards) -> None:
        """A request replaces the former one, but for the shard that is being sent."""
        known = self._serving.get(order.dst)
        if known is None or known.step != order.step:
            known = self._serving[order.dst] = Serving(order.step)
        if order.afresh:
            known.begun.clear()
        known.queue = deque(shard for shard in order.shards if shard not in known.begun)
        known.relayed = order.received
        self._send_next(order.dst, known)

    def _send_next(self, dst: str, serving: Serving) -> None:
        """One shard after the other."""
        if serving.busy or self._serving.get(dst) is not serving:
            return
        here = self._stored[1] if self._stored[0] == serving.step else set()
        shard = next((s for s in serving.queue if not serving.relayed or s in here), None)
        if shard is None:
            return
        serving.busy = True
        serving.queue.remove(shard)
        serving.begun.add(shard)
        self.world.shards_sent += 1

        def sent() -> None:
            serving.busy = False
            if self.alive:
                self.world.shard(self, dst, serving.step, shard)
                self._send_next(dst, serving)

        self.world.carry(self, dst, self.world.shard_bytes, self.world.shard_s, sent)

    # --- the worker ----------------------------------------------------------------------------------------

    def _tell_worker(self, message: wm.FromAgent) -> None:
        worker, head = self.worker, b""
        if isinstance(message, wm.Proceed):
            self.buffer = None
        elif isinstance(message, wm.Commit):
            done = self.node.steps.history.get(message.step)
            head = done.head if done is not None else b""
        self.world.heap.at(0.0003, lambda: worker.hear(message, head))

    def from_worker(self, worker: Worker, message: wm.FromWorker, delay: float) -> None:
        def arrive() -> None:
            if isinstance(message, wm.Register):
                self.worker = worker
            if worker.alive and self.worker is worker:
                self.handle(ev.WorkerSaid(message))

        self.world.heap.at(delay, lambda: self.post(arrive))

    @property
    def samples(self) -> int:
        return self.world.samples

    @property
    def by_hand(self) -> bool:
        return self.world.by_hand

    @property
    def result_bytes(self) -> int:
        return self.world.result_bytes

    @property
    def state_bytes(self) -> int:
        return self.world.state_bytes

    @property
    def lacks_memory(self) -> bool:
        return self.index in self.world.without_memory

    def result_of(self, step: int) -> Result:
        found = self.reducer.results.get(step)
        if found is None:
            self.world.promises.broken("I3", f"{self.info.name} needs the result of step {step}, which it released")
        return found

    def is_corrupt(self, step: int) -> bool:
        """Whether the result arrived with a flipped bit: its digest is of the bytes that the worker applies."""
        return step in self._flipped

    def compute_s(self) -> float:
        seconds = self.world.random.uniform(0.5, 1.5) * self.world.compute * self.slowness
        if self.world.slow_steps and self.world.random.random() < self.world.slow_steps:
            seconds += self.world.random.choice([0.3, 1.0, 4.0])
        return seconds

    def ends_after(self, applied: int) -> bool:
        end = self.world.ends.get(self.index, self.world.steps)
        return bool(end) and applied >= end

    def applied(self, worker: Worker, head: bytes) -> None:
        step = worker.applied
        if step <= self.reducer.moves_to:
            self.world.promises.broken("I3", f"{self.info.name} reads the result of step {step} while it goes to disk")
        if not self._is_state_lost():
            self.world.promises.applied(self, worker.applied, head, worker.chain)

    def _is_state_lost(self) -> bool:
        """The worker still does what it was told before its place in the run was lost: another state comes instead.

        Meanwhile results of void attempts make room for others, so it may read anything.
        """
        known = self.node.worker.worker
        return known is not None and known.applied is None and known.former is None

    def out_of_order(self, worker: Worker, step: int) -> None:
        self.world.promises.broken("I3", f"{self.info.name} is to apply step {step} after {worker.applied}")

    # --- what it says of itself ----------------------------------------------------------------------------

    def _note(self, kind: str, fields: dict[str, Any]) -> None:
        self.trace.append((self.world.now, kind, fields))
        self.world.note(self, kind, fields)
