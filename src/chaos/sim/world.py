"""A whole run in virtual time: peers, network and clock. One seed, one run."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from chaos.core import events as ev
from chaos.core.codec import decode, encode
from chaos.core.context import NodeConfig, Role
from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import PeerMessage
from chaos.core.node import Founding
from chaos.core.types import PeerInfo
from chaos.sim.bandwidth import Pipes
from chaos.sim.heap import EventHeap
from chaos.sim.network import Network
from chaos.sim.peer import ClockSkew, SimPeer
from chaos.sim.promises import CRASH, Promises, state_of
from chaos.sim.symbols import LAYOUT, Result, peer_id, verify
from chaos.sim.worker import Worker

SAMPLES = 10_000
RESEND_S = 0.5
"""A frame that has not arrived is sent again so often, should a link have broken under it."""
OVERHEARD = 64
"""So many of the last messages are remembered, for strangers to repeat."""


@dataclass(slots=True)
class Frame:
    """Bytes of a step on their way to one process. No function that schedules itself: such ones are cycles, and to
    look for garbage in cycles, one for each frame and message, took a seventh of a run's time."""

    world: World
    sender: SimPeer
    receiver: SimPeer
    step: int
    take: Callable[[], None]
    arrived: bool = False

    def send(self) -> None:
        sender, world = self.sender, self.world
        kept = self.step > sender.reducer.finished - sender.reducer.slots
        if sender.alive and self.receiver.alive and not self.arrived and kept:
            world.network.transfer(sender.id, self.receiver.id, f"bulk{world.random.randrange(2)}", self.arrive)
            world.heap.at(RESEND_S, self.send)

    def arrive(self, peer: Any) -> None:
        if peer is self.receiver and not self.arrived:
            self.arrived = True
            peer.post(self.take)


class World:
    """Peers on a network. Tests and fault schedules act on it; its `promises` watch.

    Args:
        seed: of the delays and computing times.
        latency: seconds one way, on average.
        steps: after which all scripts end; 0: never.
        verbose: print what every peer does.
    """

    def __init__(self, seed: int = 0, latency: float = 0.001, steps: int = 0, verbose: bool = False) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.heap = EventHeap()
        self.peers: dict[str, SimPeer] = {}
        self.network = Network(self.heap, self.random, self.peers, latency)  # type: ignore[arg-type]
        self.pipes: Pipes | None = None
        """Bandwidth to be shared; None: frames take `bulk_delay`, shards `shard_s`."""
        self.promises = Promises(self)
        self.steps = steps
        self.verbose = verbose
        self.min_peers = 1
        self.checkpoint_every = 0
        self.dead: list[SimPeer] = []
        self.events = 0
        """Events handled by nodes so far."""
        self.strangers: set[str] = set()
        self.overheard: deque[PeerMessage] = deque(maxlen=OVERHEARD)
        self.sealing = 0.003
        """Seconds until the words of a dead peer on this host are found."""
        self.shard_s = 0.002
        """Seconds that a shard takes."""
        self.result_bytes = LAYOUT.nbytes
        """Of a result that is fetched: where there are `pipes`, it takes its time. Other frames take 64 bytes."""
        self.state_bytes = 64
        self.shard_bytes = 8
        self.without_memory: set[int] = set()
        """Hosts that have no memory for a snapshot."""
        self.disks: dict[int, set[bytes]] = {}
        """By host: hashes of the shards that lie in its file of the last snapshot."""
        self.shards_sent = 0
        """Shards that donors have begun to send so far, to anybody."""
        self.result_slots = 64
        """Results for which there is memory, as in the agent: frames of further steps wait in their connection."""
        self.disk_slots = 64
        """Further results for which there is disk, where only learners need them."""
        self.samples = SAMPLES
        self.compute = 0.02
        """Seconds a worker computes for a step, on average."""
        self.ends: dict[int, int] = {}
        """Steps after which single peers' scripts end, where that is not `steps`."""
        self.corrupt: set[tuple[int, int]] = set()
        """(peer, step) whose result has a flipped bit."""
        self.by_hand = False
        """Scripts change the reduced gradients before each update: results alone don't give the state."""
        self.straggler_limit_s = 0.0
        """What the founder says: 0, or so many seconds until a late worker is left out of a step."""
        self.slow_steps = 0.0
        """How often a worker computes for 0.3 to 4 s more than usual."""
        self.corrupt_shards = 0
        """So many of the next shards arrive damaged."""
        self.trouble: float | None = None
        """When the last fault was, for those who may expect calm; None: there was none."""
        self._trace = hashlib.blake2b(digest_size=16)
        self._said: PeerMessage | None = None
        """The last control message, and what its receivers decode."""
        self._heard: PeerMessage

    def config(self, founder: bool) -> NodeConfig:
        return NodeConfig(
            verify=verify,
            min_peers=self.min_peers if founder else 1,
            straggler_limit_s=self.straggler_limit_s if founder else None,
            checkpoint_every=self.checkpoint_every,
            shard_bytes=self.shard_bytes,
        )

    # --- time ------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.heap.now

    def run(self, until: float) -> None:
        self.heap.run(until)

    def run_until(self, condition: Callable[[], bool], limit: float = 60.0) -> None:
        """Run until the condition holds. Raises PromiseBroken (I4) if it does not within `limit` seconds."""
        if not self.heap.reaches(condition, limit):
            self.promises.broken("I4", f"not reached within {limit} s: {self.summary()}")

    def reaches(self, condition: Callable[[], bool], limit: float) -> bool:
        """Run until the condition holds, or for `limit` seconds; whether it holds."""
        return self.heap.reaches(condition, limit)

    def is_calm(self, since: float) -> bool:
        """Whether nothing has failed since then, nor shortly before, nor does still."""
        return self.trouble is None or self.trouble < since - 5.0

    # --- messages and bytes ----------------------------------------------------------------------------------

    def control(self, src: str, dst: str, said: PeerMessage) -> None:
        """A control message: lost where a link on its way breaks, and where there is no way.

        It goes through the codec once, however many it is said to: messages are immutable.
        """
        if said is not self._said:
            self._said, self._heard = said, decode(encode(said))
        message = self._heard

        def arrive(receiver: Any) -> None:
            self.overheard.append(message)
            receiver.post(lambda: receiver.handle(ev.Received(src, message)))

        self.network.transfer(src, dst, "control", arrive)

    def carry(self, sender: SimPeer, dst: str, nbytes: int, fixed_s: float, done: Callable[[], None]) -> None:
        """Call `done` when so many bytes have left for `dst`."""
        if self.pipes is None or sender.id == dst:
            self.heap.at(fixed_s, done)
        else:
            self.pipes.start(sender.id, dst, nbytes, done)

    def frame(self, sender: SimPeer, dst: str, kind: str, view: int, step: int, parts: Result) -> None:
        """Frames wait for a way to a peer that lives, and are sent again if a link breaks under them."""
        receiver = self.peers.get(dst)
        if receiver is None:
            return
        if receiver is sender:
            self.heap.at(1e-5, lambda: sender.post(lambda: sender.reducer.receive(kind, dst, view, step, parts)))
            return
        take = partial(receiver.reducer.receive, kind, sender.id, view, step, parts)
        nbytes = self.result_bytes if kind == "result" else 64
        self.carry(sender, dst, nbytes, self.network.bulk_delay, Frame(self, sender, receiver, step, take).send)

    def shard(self, sender: SimPeer, dst: str, step: int, shard: int) -> None:
        """A shard, damaged or not. One that is lost with a link is asked for again by the core."""
        whole = self.corrupt_shards == 0
        self.corrupt_shards -= not whole

        def arrive(receiver: Any) -> None:
            receiver.post(lambda: receiver.handle(ev.ShardStored(step, shard, sender.id, whole)))

        self.network.transfer(sender.id, dst, "bulk0", arrive)

    # --- peers -----------------------------------------------------------------------------------------------

    def found(self, index: int = 0, clock: ClockSkew | None = None) -> SimPeer:
        peer = SimPeer(self, index, 1, Founding(run="run", lineage="one"), clock)
        self.peers[peer.info.id] = peer
        return peer

    def join(self, index: int, contact: int, incarnation: int = 1, clock: ClockSkew | None = None) -> SimPeer:
        self.network.lighten(peer_id(index))
        self.network.peer_ended(peer_id(index), orderly=False)
        peer = SimPeer(self, index, incarnation, None, clock)
        self.peers[peer.info.id] = peer
        self.contact(peer, peer_id(contact))
        return peer

    def contact(self, joiner: SimPeer, member: str) -> None:
        """The joiner's user names a member (`--join`)."""
        joiner.wants.add(member)
        self.network.connect(joiner.info.id, member)

    def restart(self, dead: SimPeer, contact: int) -> SimPeer:
        """The agent starts again on its host, finds what its former self left, and joins as a new incarnation."""
        peer = self.join(dead.index, contact, dead.info.incarnation + 1, dead.clock)
        if dead.words is not None:
            dead.seals = True
            peer.former.append(dead.sealed())
        return peer

    def members(self) -> list[SimPeer]:
        return [p for p in self.peers.values() if p.alive and p.node.ctx.role == Role.MEMBER]

    # --- what happens to them --------------------------------------------------------------------------------

    def kill(
        self, peer: SimPeer, seal: bool = True, later: float | None = None, gently: bool = False, dark: bool = False
    ) -> None:
        """SIGKILL of the agent: its links end; with `seal` somebody can prove it, from `later` seconds on.

        What it had said is lost or arrives; with `gently` (it ended by itself) it arrives. With `dark` the whole
        host is lost: nobody can prove it, and its links hang.
        """
        if not peer.alive:
            return
        self.disturb()
        peer.alive = peer.worker.alive = False
        peer.seals = seal and later is None and not dark
        self.dead.append(peer)
        if later is not None:
            self.heap.at(later, lambda: setattr(peer, "seals", True))
        if self.peers.get(peer.info.id) is peer:
            del self.peers[peer.info.id]
        if dark:
            self.network.darken(peer.info.id)
        self.network.peer_ended(peer.info.id, orderly=gently or self.random.random() < 0.5)

    def disturb(self, seconds: float = 0.0) -> None:
        """Something fails now, for so long: nobody may expect calm until a while after it."""
        self.trouble = max(self.trouble or 0.0, self.now + seconds)

    def crashed(self, peer: SimPeer) -> None:
        """The process died between two actions."""
        peer.crash_after = None
        self.kill(peer)

    def kill_worker(self, peer: SimPeer, restart: float | None = 0.1) -> None:
        self.disturb()
        peer.worker.alive = False
        self.heap.at(0.001, lambda: peer.post(lambda: peer.handle(ev.WorkerDied("killed by signal 9"))))
        if restart is not None:

            def again() -> None:
                if peer.alive:
                    Worker(peer).start()

            self.heap.at(restart, again)

    def try_seal(self, finder: SimPeer, other: PeerInfo) -> None:
        def look() -> None:
            if not finder.alive or other.id not in finder.sealing:
                return
            dead = next((d for d in self.dead if d.info == other and d.words is not None and d.seals), None)
            if dead is None:
                self.heap.at(10 * self.sealing, look)
                return
            found = ev.WordsFound(dead.sealed())
            finder.sealing.discard(other.id)
            finder.post(lambda: finder.handle(found))

        self.heap.at(self.sealing, look)

    def cut_link(self, a: int, b: int) -> None:
        self.disturb()
        self.network.cut(peer_id(a), peer_id(b))

    def restore_link(self, a: int, b: int) -> None:
        self.disturb()
        self.network.restore(peer_id(a), peer_id(b))

    def stranger_says(self, victim: SimPeer, message: PeerMessage, stranger: str) -> None:
        """One who has no part in the run, nor a link, says something to `victim`."""
        self.strangers.add(stranger)
        victim.handle(ev.Tick())  # what time alone has made due would be done at any event
        if not victim.alive:
            return
        before = state_of(victim)
        victim.handle(ev.Received(stranger, message))
        if victim.alive:
            self.promises.unchanged(victim, message, before)

    # --- what is noted ---------------------------------------------------------------------------------------

    def refused_by(self, peer: SimPeer, event: ev.AnyEvent, error: RemoteProtocolError) -> None:
        """A node took an event for a breach of the protocol: right with strangers, wrong among honest peers."""
        if isinstance(event, ev.Received) and event.src in self.strangers:
            return
        self.promises.broken(CRASH, f"{peer.info.name} refuses what an honest peer said: {error}")

    def note(self, peer: SimPeer, kind: str, fields: dict[str, Any]) -> None:
        """A line of a peer's trace."""
        line = f"{self.now!r} {peer.info.name}.{peer.info.incarnation} {kind} {fields}"
        self._trace.update(line.encode())
        if self.verbose:
            print(line)
        self.promises.note(peer, kind, fields)

    @property
    def trace_digest(self) -> bytes:
        """Of all lines of all peers' traces so far: equal for two runs exactly if they went alike."""
        return self._trace.digest()

    def epoch(self) -> int:
        """The epoch in which the last stable step left the run."""
        stable = self.promises.stable
        return int(self.promises.commits[stable[max(stable)]].fields["epoch"]) if stable else 0

    def summary(self) -> list[Any]:
        return [
            (p.info.name, str(p.node.ctx.role), p.node.steps.finished, str(p.node.learner.phase),
             p.node.ctx.views[-1].id if p.node.ctx.views else None)
            for p in self.peers.values()
        ]  # fmt: skip
