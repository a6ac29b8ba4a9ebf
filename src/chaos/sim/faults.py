"""What can go wrong, one verb each. Every fault that lasts ends by itself, or with `cease`."""

from __future__ import annotations

from collections.abc import Iterable

from chaos.core import events as ev
from chaos.core.context import Role
from chaos.core.messages import Goodbye, PeerMessage, Seal
from chaos.sim.network import Pair
from chaos.sim.peer import ClockSkew, SimPeer
from chaos.sim.symbols import peer_id
from chaos.sim.world import World

STRANGER = "f" * 16


class Faults:
    """Breaks things in a world. Peers are named by their index; `seconds` is how long a fault lasts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leavers: list[SimPeer] = []
        """Peers that were asked to leave."""
        self.lost_hosts: list[SimPeer] = []
        """Peers that nobody can ever prove dead: their votes are lost."""

    def living(self) -> list[SimPeer]:
        return [p for p in self.world.peers.values() if p.alive and p.stopped is None]

    def staying(self) -> list[SimPeer]:
        return [p for p in self.living() if p not in self.leavers]

    # --- peers ---------------------------------------------------------------------------------------------

    def join(self, index: int, contact: int, clock: ClockSkew | None = None) -> None:
        self.world.join(index, contact, clock=clock)

    def crash(self, peer: SimPeer, sealed_after: float | None = None) -> None:
        """SIGKILL of the agent; somebody proves it at once, or after some seconds."""
        self.world.kill(peer, later=sealed_after)

    def crash_between(self, peer: SimPeer, actions: int) -> None:
        """The agent dies after so many further actions, be it in the midst of what one event asks for."""
        self.world.disturb()
        peer.crash_after = actions

    def lose_host(self, peer: SimPeer, dark: bool) -> None:
        """The host is gone for good, and its words with it; with `dark`, its links hang."""
        self.world.kill(peer, seal=False, dark=dark)
        self.lost_hosts.append(peer)

    def restart(self, dead: SimPeer, contact: int, after: float) -> None:
        """The agent is killed and starts anew on its host, as a new incarnation."""
        self.crash(dead)

        def again() -> None:
            if dead.info.id not in self.world.peers:
                there = self.world.peers.get(peer_id(contact))
                members = [p for p in self.staying() if p.node.ctx.role == Role.MEMBER]
                if there is None and members:
                    there = members[0]
                if there is not None:
                    self.world.restart(dead, there.index)

        self.world.heap.at(after, again)

    def kill_worker(self, peer: SimPeer, restart: float | None) -> None:
        self.world.kill_worker(peer, restart)

    def leave(self, peer: SimPeer) -> None:
        self.leavers.append(peer)
        peer.post(lambda: peer.handle(ev.LeaveRequested("asked to")))

    def freeze(self, peer: SimPeer, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.world.disturb(seconds)
        peer.freeze()

        def wake() -> None:
            if peer.alive and peer.frozen:
                self.world.disturb()
                peer.wake()

        self.world.heap.at(seconds, wake)

    def slow(self, peer: SimPeer, lag_s: float, factor: float, seconds: float) -> None:
        """A busy host: each event waits `lag_s`, the worker computes `factor` times as long."""
        self.world.disturb(seconds)
        peer.lag_s, peer.slowness = lag_s, factor

        def ends() -> None:
            peer.lag_s, peer.slowness = 0.0, 1.0

        self.world.heap.at(seconds, ends)

    # --- network -------------------------------------------------------------------------------------------

    def reset(self, pairs: Iterable[Pair]) -> None:
        """Connections are lost, with the messages in them."""
        self.world.disturb()
        for pair in pairs:
            self.world.network.reset(*pair)

    def cut(self, pairs: Iterable[Pair], seconds: float) -> None:
        """Links break, both ends know, and can't be made again for a while."""
        self.world.disturb(seconds)
        for a, b in pairs:
            self.world.network.cut(a, b)
            self.world.heap.at(seconds, lambda a=a, b=b: self.world.network.restore(a, b))  # type: ignore[misc]

    def flap(self, pair: Pair, times: int, period: float) -> None:
        """A link that breaks again and again."""
        for turn in range(times):
            self.world.heap.at(turn * period, lambda: self.cut([pair], period / 2))

    def block(self, directions: Iterable[Pair], seconds: float) -> None:
        """Nothing arrives in these directions (from, to), and nobody is told."""
        self.world.disturb(seconds)
        for src, dst in directions:
            self.world.network.block(src, dst)
            self.world.heap.at(seconds, lambda src=src, dst=dst: self._unblock(src, dst))  # type: ignore[misc]

    def _unblock(self, src: str, dst: str) -> None:
        self.world.disturb()
        self.world.network.unblock(src, dst)

    def partition(self, group: Iterable[str], seconds: float) -> None:
        """These peers and the others don't hear each other."""
        inside = list(group)
        outside = [p.id for p in self.living() if p.id not in inside]
        self.block([d for a in inside for b in outside for d in ((a, b), (b, a))], seconds)

    def delay(self, directions: Iterable[Pair], extra: float, seconds: float) -> None:
        self.world.disturb(seconds)
        self.world.network.spike(directions, extra, seconds)

    def order_link(self, one: SimPeer, other: str, seconds: float) -> None:
        """The operator of `one` has its link to `other` cut, and after a while both ends' have it made again."""
        self.world.disturb()
        one.handle(ev.LinkWanted(other, False))
        self.world.heap.at(seconds, lambda: self._want_back((one.id, other)))

    def _want_back(self, ends: Pair) -> None:
        for peer, other in (ends, ends[::-1]):
            if (end := self.world.peers.get(peer)) is not None and end.alive and not end.frozen:
                end.handle(ev.LinkWanted(other, True))

    # --- bytes, strangers ----------------------------------------------------------------------------------

    def corrupt_shards(self, count: int) -> None:
        self.world.disturb()
        self.world.corrupt_shards += count

    def flip_bit(self, peer: SimPeer, ahead: int) -> None:
        """In the result of a step to come, at this peer only."""
        self.world.disturb()
        self.world.corrupt.add((peer.index, peer.node.steps.finished + ahead))

    def strange(self, victim: SimPeer, count: int) -> None:
        """One who has no part in the run repeats to `victim` what was said lately."""
        said: list[PeerMessage] = [m for m in self.world.overheard if not isinstance(m, Seal | Goodbye)]
        for message in said[-count:]:
            if victim.alive and not victim.frozen:
                self.world.stranger_says(victim, message, STRANGER)

    def cease(self) -> None:
        """All that is not lost for ever works again."""
        world = self.world
        world.network.heal()
        world.corrupt_shards = 0
        world.slow_steps = 0.0
        world.corrupt.clear()
        for ends in sorted({ends for p in self.living() for v in p.node.ctx.views[-1:] for ends in v.cut}):
            self._want_back(ends)
        for peer in list(world.peers.values()):
            peer.lag_s, peer.slowness, peer.crash_after = 0.0, 1.0, None
            if peer.frozen:
                peer.wake()

    def contact(self, peer: SimPeer, contact: int) -> None:
        """A joiner's user tries another member."""
        self.world.contact(peer, peer_id(contact))
