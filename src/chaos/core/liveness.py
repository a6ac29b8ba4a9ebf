"""Who is alive. A lost link or silence raises a question; the answers of the others raise suspicion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos.core.actions import Connect, Disconnect, StopSeal, TrySeal
from chaos.core.context import Context, Role
from chaos.core.detector import Detector
from chaos.core.messages import Decide, Heartbeat, Probe, ProbeReply
from chaos.core.types import PeerInfo

if TYPE_CHECKING:
    from chaos.core.node import Node

RELAYED_BEATS = 2
"""A peer that another one hears has time for so many heartbeats until one must have come here by way of others."""


class Liveness:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._detector = Detector(ctx.config.detector)
        self._doubts: dict[str, float] = {}
        """Peers that I don't hear, and since when."""
        self._concluded: set[str] = set()
        """Those of them that are suspected by now."""
        self._denials: dict[str, set[str]] = {}
        """Who else says that it does not hear them."""
        self._vouched: dict[str, float] = {}
        """Peers in doubt of which another one said that it hears them, and when it first did."""
        self._renewed: set[str] = set()
        """Peers whose silent link was made anew and that have said nothing since: a link alone shows no life then."""
        self.neighbours: dict[str, tuple[str, ...]] = {}
        """What each peer last said of its own links."""
        self.topology = 0
        """Goes up whenever `neighbours` changes: ways through the overlay may be others then."""
        self.progress: dict[str, Heartbeat] = {}
        self._watched: dict[str, int] = {}
        """Everybody else in the view, with incarnation: only they owe heartbeats."""
        self._next_heartbeat = 0.0

    def tick(self) -> None:
        if self._ctx.now >= self._next_heartbeat and self._ctx.views:
            self._next_heartbeat = self._ctx.now + self._ctx.config.detector.heartbeat_s
            self._heartbeat()
        for peer in self._detector.overdue(self._ctx.now):
            if self._doubt(peer, f"silent for {self._detector.silence(peer, self._ctx.now):.1f} s"):
                self._renew_link(peer)
        for peer, since in list(self._doubts.items()):
            if self._ctx.now - since > self._ctx.config.probe_s and peer not in self._concluded:
                heard = peer in self._vouched
                self._conclude(peer, "others hear it, but nothing comes here" if heard else "nobody hears it")

    def _heartbeat(self) -> None:
        steps = self._node.steps
        links = tuple(sorted(self._ctx.linked))
        beat = Heartbeat(self._ctx.view.lineage, self._ctx.view.id, steps.finished, steps.running, links)
        peers = [p.id for p in self._ctx.view.everybody()]
        self._ctx.send_all([*peers, *sorted(self._ctx.linked)], beat)
        for peer in sorted(self._doubts.keys() - self._concluded):  # a question or its answer may have gone astray
            self._ctx.send_all(self._witnesses(peer), Probe(peer))

    # --- evidence ------------------------------------------------------------------------------------------

    def heard(self, peer: str) -> None:
        """Something came from `peer`: it lives."""
        if peer == self._ctx.id:
            return
        self._detector.heard(peer, self._ctx.now)
        self._concluded.discard(peer)
        self._vouched.pop(peer, None)
        self._renewed.discard(peer)
        if self._doubts.pop(peer, None) is not None:
            self._node.views.handling.heard(peer)
            self._ctx.emit(StopSeal(peer))
        self._denials.pop(peer, None)
        if self._ctx.views:
            self._node.views.trust(peer)

    def on_heartbeat(self, src: str, message: Heartbeat) -> None:
        view = self._ctx.view if self._ctx.views else None
        if view is None:
            return
        if self._node.force.is_foreign(src, message):
            return
        if self._ctx.takes_part(src):
            self.heard(src)
            self._learn_links(src, message.links)
            self.progress[src] = message
        elif self._node.pause.reason and src in self._ctx.linked:
            self._learn_links(src, message.links)  # those that this peer knows may have to be reached by way of others
        if message.view_id < view.id:
            self._ctx.send(src, Decide(view))

    def _learn_links(self, peer: str, links: tuple[str, ...]) -> None:
        if self.neighbours.get(peer) != links:
            self.neighbours[peer] = links
            self.topology += 1

    def _forget_links(self, peer: str) -> None:
        if self.neighbours.pop(peer, None) is not None:
            self.topology += 1

    def on_link_up(self, info: PeerInfo) -> None:
        """A link stands. To a newer incarnation, it shows that the one in the view runs no more."""
        self._next_heartbeat = self._ctx.now  # others find their ways by what I say of my links
        if self._ctx.is_present(info.id, info):
            if info.id not in self._renewed:
                self.heard(info.id)
        else:
            self._doubt(info.id, "restarted")
            self._conclude(info.id, "a newer incarnation of it is there")

    def on_link_down(self, peer: str, reason: str) -> None:
        self._next_heartbeat = self._ctx.now
        self._forget_links(peer)
        if not (self._ctx.views and self._ctx.view.is_cut(peer, self._ctx.id)):
            self._doubt(peer, f"link lost: {reason}")

    def installed(self) -> None:
        """Watch everybody in the view, nobody else. A new incarnation starts without doubts; an old doubt stays."""
        seated = (*self._ctx.view.everybody(), *self._ctx.departing())
        present = {p.id: p.incarnation for p in seated if p.id != self._ctx.id}
        for peer, incarnation in sorted(present.items()):
            if self._watched.get(peer) != incarnation:
                self.forget(peer)
                self._detector.watch(peer, self._ctx.now)
        self._watched = present
        for peer in [p for p in self.progress if p not in present]:
            self.forget(peer)
        for peer in [p for p in self._doubts if p not in present]:
            self.forget(peer)
        for peer in sorted(self._concluded):  # it may have another seat now, as a learner that was promoted has
            self._node.views.suspect(peer, "nobody hears it")

    def reset(self) -> None:
        """This peer starts over: nobody owes it heartbeats."""
        for peer in sorted(self._watched.keys() | self._doubts.keys()):
            self.forget(peer)
        self._watched = {}

    def forget(self, peer: str) -> None:
        self._detector.forget(peer)
        self._doubts.pop(peer, None)
        self._node.views.handling.heard(peer)
        self._vouched.pop(peer, None)
        self._renewed.discard(peer)
        self._concluded.discard(peer)
        self._denials.pop(peer, None)
        self._forget_links(peer)
        self.progress.pop(peer, None)

    # --- doubt, questions, answers -------------------------------------------------------------------------

    def _renew_link(self, peer: str) -> None:
        """Nothing comes by this link any more. The other end may not know: ended, both find a way around it."""
        info = self._ctx.seat(peer)
        if info is not None and peer in self._ctx.linked:
            self._renewed.add(peer)
            self._ctx.emit(Disconnect(peer, "silent for too long"))
            self._ctx.emit(Connect(info))

    def _doubt(self, peer: str, reason: str) -> bool:
        """False if it was in doubt already, or is of no concern."""
        if peer in self._doubts or not self._ctx.views:
            return False
        info = self._ctx.seat(peer)
        if info is None:
            self._detector.forget(peer)
            return False
        self._doubts[peer] = self._ctx.now
        self._node.views.handling.doubt(peer, self._ctx.now)
        self._ctx.trace("doubt", peer=info.name, reason=reason)
        self._ctx.emit(TrySeal(info))
        self._ctx.send_all(self._witnesses(peer), Probe(peer))
        self._weigh(peer)
        return True

    def _witnesses(self, peer: str) -> list[str]:
        """Members whose word counts: as far as known they have, or just had, a link to it, and are not in doubt."""
        return [
            other
            for other in self._ctx.view.member_ids()
            if other not in (peer, self._ctx.id) and other not in self._doubts and self._should_hear(other, peer)
        ]

    def _should_hear(self, other: str, peer: str) -> bool:
        """Whether `other` last said that it has a link to `peer`. Of a direct neighbour that said nothing, yes."""
        beat = self.progress.get(other)
        return other in self._ctx.linked if beat is None else peer in beat.links

    def hears(self, peer: str) -> bool:
        return peer in self._ctx.linked and peer not in self._doubts

    def on_probe(self, src: str, message: Probe) -> None:
        alive = message.target == self._ctx.id or self.hears(message.target)
        self._ctx.send(src, ProbeReply(message.target, alive))
        self._deny(src, message.target)

    def on_probe_reply(self, src: str, message: ProbeReply) -> None:
        if not message.alive:
            self._deny(src, message.target)
        elif message.target in self._doubts:
            first = self._vouched.setdefault(message.target, self._ctx.now)
            if self._ctx.now - first <= self._ctx.config.detector.ceiling_s:
                self._doubts[message.target] = self._ctx.now + RELAYED_BEATS * self._ctx.config.detector.heartbeat_s
            self._denials.get(message.target, set()).discard(src)

    def _deny(self, src: str, target: str) -> None:
        """`src` does not hear `target` either."""
        if target in self._doubts:
            self._denials.setdefault(target, set()).add(src)
            self._weigh(target)

    def _weigh(self, peer: str) -> None:
        witnesses = self._witnesses(peer)
        if witnesses and all(w in self._denials.get(peer, set()) for w in witnesses):
            self._conclude(peer, "nobody hears it")

    def _conclude(self, peer: str, reason: str) -> None:
        if self._ctx.role in (Role.MEMBER, Role.LEARNER) and peer in self._doubts:
            self._concluded.add(peer)
            self._node.views.suspect(peer, reason)
            self._node.learner.on_donor_lost(peer, reason)
