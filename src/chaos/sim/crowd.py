"""A run of many peers that stands already, and what its control messages are."""

from __future__ import annotations

from collections import Counter

from chaos.core import events as ev
from chaos.core.context import NodeConfig
from chaos.core.lineage import first_head
from chaos.core.messages import PeerMessage
from chaos.core.types import DataState, PeerInfo, View
from chaos.sim.network import Link, pair_of
from chaos.sim.peer import SimPeer
from chaos.sim.symbols import digest, info, verify
from chaos.sim.world import World

REGISTERED_S = 0.01
DETECTOR = ("Heartbeat", "Probe", "ProbeReply")
DECISION = ("Prepare", "Promise", "Nack", "Accept", "Vote", "Decide")
STEP = ("StepContribution", "Ack")


class Crowd(World):
    """`size` members of one view that hold the initial state, with all links: as if they had joined one by one.

    Each peer has a host of its own, so what one of them left behind when it died is found by one launcher, which
    hands it to one member.
    """

    def __init__(self, size: int, seed: int = 0, compute: float = 1e6, latency: float = 0.01) -> None:
        super().__init__(seed, latency)
        self.compute = compute
        self.said: Counter[str] = Counter()
        """Control messages by type."""
        self.handled: Counter[tuple[str, str]] = Counter()
        """(type, peer): those that it sent or was sent."""
        self.frames = 0
        self._finders: dict[str, str] = {}
        infos = [info(index) for index in range(size)]
        for index in range(size):
            self.peers[infos[index].id] = SimPeer(self, index, 1, None)
        self._link(infos)
        self.run(self.now + REGISTERED_S)
        first = View("one", 1, tuple(infos), (), 1, False, (), "founded")
        for peer in list(self.peers.values()):
            self._seat(peer, first, infos)

    def config(self, founder: bool) -> NodeConfig:
        return NodeConfig(verify=verify, straggler_limit_s=0.0 if founder else None)

    def _link(self, infos: list[PeerInfo]) -> None:
        for number, one in enumerate(infos):
            for other in infos[number + 1 :]:
                self.network.links[pair_of(one.id, other.id)] = Link({one.id, other.id})

    def _seat(self, peer: SimPeer, view: View, infos: list[PeerInfo]) -> None:
        """What a founder does, for one of many."""
        node, desk = peer.node, peer.node.worker.worker
        assert desk is not None, "its worker has registered"
        node.ctx.now, node.ctx.run = peer.now, "run"
        node.ctx.linked.update({other.id: other for other in infos if other is not peer.info})
        node.worker.welcome(founder=True, seed=0)
        node.steps.adopt(0, first_head("run", "one"), DataState())
        peer.worker.chain = digest("initial", 0)
        node.views.install(view)
        peer.handle(ev.Tick())

    # --- what is counted -----------------------------------------------------------------------------------

    def control(self, src: str, dst: str, said: PeerMessage) -> None:
        kind = type(said).__name__
        self.said[kind] += 1
        self.handled[kind, src] += 1
        self.handled[kind, dst] += 1
        super().control(src, dst, said)

    def frame(self, sender: SimPeer, dst: str, kind: str, view: int, step: int, parts: object) -> None:
        self.frames += sender.id != dst
        super().frame(sender, dst, kind, view, step, parts)  # type: ignore[arg-type]

    def count(self, kinds: tuple[str, ...]) -> int:
        return sum(self.said[kind] for kind in kinds)

    def busiest(self, kinds: tuple[str, ...]) -> int:
        """Messages of these kinds that the peer with most of them sent or was sent."""
        per_peer: Counter[str] = Counter()
        for (kind, peer), number in self.handled.items():
            if kind in kinds:
                per_peer[peer] += number
        return max(per_peer.values(), default=0)

    def forget_counts(self) -> None:
        self.said.clear()
        self.handled.clear()
        self.frames = 0

    def try_seal(self, finder: SimPeer, other: PeerInfo) -> None:
        if self._finders.setdefault(other.id, finder.id) == finder.id:
            super().try_seal(finder, other)
