"""Who is alive. A lost link or silence raises a question; the answers of the others raise suspicion.

In a large view a peer asks only about those that it watches (`watch.py`), and asks only who watches them too. What
these find they tell everybody; the others believe it once half of a peer's watchers say so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec.structs import replace

from chaos.core.actions import Connect, Disconnect, StopSeal, TrySeal
from chaos.core.context import Context, Role
from chaos.core.detector import Detector
from chaos.core.links_said import LinksSaid, complete, has
from chaos.core.messages import AskLinks, Decide, Heartbeat, Probe, ProbeReply
from chaos.core.types import PeerInfo, View
from chaos.core.watch import is_small, watchers

if TYPE_CHECKING:
    from chaos.core.node import Node

PROPOSERS = 3
"""A learner's heartbeats go to so many of the lowest ranks too: whoever promotes it has to know where it stands."""
RELAYED_BEATS = 2
"""A peer that another one hears has time for so many heartbeats until one must have come here by way of others."""

ONE_SIDED_BEATS = 3
"""For so many heartbeats a peer may say that it has no link to me where I have one: what it said before the link was
made may still be under way, over relays."""


class Liveness:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._detector = Detector(ctx.config.detector)
        self._doubts: dict[str, float] = {}
        """Peers that I don't hear, and since when; infinite where others watch them, whose word I wait for."""
        self._concluded: set[str] = set()
        """Those of them that are suspected by now."""
        self._denials: dict[str, set[str]] = {}
        """Who else says that it does not hear them."""
        self._vouched: dict[str, float] = {}
        """Peers in doubt of which another one said that it hears them, and when it first did."""
        self._renewed: set[str] = set()
        """Peers whose silent link was made anew and that have said nothing since: a link alone shows no life then."""
        self._one_sided: dict[str, float] = {}
        """Linked peers that say they have no link to me, and since when: what I send them this way is lost."""
        self.neighbours: dict[str, tuple[str, ...]] = {}
        """What each peer last said of its own links."""
        self.links_said = LinksSaid()
        self.topology = 0
        """Goes up whenever `neighbours` changes: ways through the overlay may be others then."""
        self.progress: dict[str, Heartbeat] = {}
        self._present: dict[str, int] = {}
        """Everybody else in the view, with incarnation."""
        self._watched: set[str] = set()
        """Those of them that owe heartbeats to this peer."""
        self._next_heartbeat = self._installed_at = 0.0

    def tick(self) -> None:
        if self._ctx.now >= self._next_heartbeat and self._ctx.views:
            self._next_heartbeat = self._ctx.now + self._ctx.config.detector.heartbeat_s
            self._heartbeat()
        for peer in self._detector.overdue(self._ctx.now):
            if self._doubt(peer, f"silent for {self._detector.silence(peer, self._ctx.now):.1f} s"):
                self._renew_link(peer, "silent for too long")
        for peer, since in list(self._doubts.items()):
            if self._ctx.now - since > self._ctx.config.probe_s and peer not in self._concluded:
                heard = peer in self._vouched
                self._conclude(peer, "others hear it, but nothing comes here" if heard else "nobody hears it")

    def _heartbeat(self) -> None:
        steps, view = self._node.steps, self._ctx.view
        name, links, news = self.links_said.update(self._ctx.linked)
        beat = Heartbeat(view.lineage, view.id, steps.finished, steps.running, name, links)
        audience, askers = self._audience(links), self.links_said.take_askers()
        if news or is_small(view):
            self._ctx.send_all(audience, beat)
        else:
            lacking = [peer for peer in audience if peer in askers or not view.knows(peer)]
            self._ctx.send_all(lacking, beat)
            self._ctx.send_all((peer for peer in audience if peer not in lacking), replace(beat, links=None))
        for peer in sorted(self._doubts.keys() - self._concluded):  # a question or its answer may have gone astray
            if self._doubts[peer] < math.inf:
                self._ctx.send_all(self._witnesses(peer), Probe(peer))
            elif self._is_mine(peer):
                self._doubts[peer] = self._ctx.now
            else:
                self._weigh(peer)

    def _audience(self, links: tuple[str, ...]) -> list[str]:
        """Who gets this peer's heartbeats: who watches it, and who has a link and no seat in the view."""
        view = self._ctx.view
        if is_small(view) or view.position(self._ctx.id) is None:
            return [*(p.id for p in view.everybody()), *links]
        proposers = view.member_ids()[:PROPOSERS] if self._ctx.role == Role.LEARNER else ()
        return [*watchers(view, self._ctx.id), *proposers, *view.strangers(links)]

    # --- evidence ------------------------------------------------------------------------------------------

    def heard(self, peer: str) -> None:
        """Something came from `peer`: it lives."""
        if peer == self._ctx.id:
            return
        if peer in self._watched:
            self._detector.heard(peer, self._ctx.now)
            if peer in self._concluded:
                self._tell_all(ProbeReply(peer, True))
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
            self.progress[src] = beat = complete(message, self.progress.get(src))
            if beat.links is None:
                self._ctx.send(src, AskLinks())
            else:
                self._learn_links(src, beat.links)
                self._compare_ends(src, beat.links)
        elif message.links is not None and self._node.pause.reason and src in self._ctx.linked:
            self._learn_links(src, message.links)  # those that this peer knows may have to be reached by way of others
        if message.view_id < view.id and self._is_due(view):
            self._ctx.send(src, Decide(view))

    def _is_due(self, view: View) -> bool:
        """Whether who has not this view is to be told. In a large one many would be, by all that watch them, while the
        decision is still on its way to them."""
        return is_small(view) or self._ctx.now - self._installed_at >= self._ctx.config.detector.heartbeat_s

    def _learn_links(self, peer: str, links: tuple[str, ...]) -> None:
        if (known := self.neighbours.get(peer)) is not links and known != links:
            self.neighbours[peer] = links
            self.topology += 1

    def _compare_ends(self, peer: str, links: tuple[str, ...]) -> None:
        """An end that heard nothing has given the link up; here it stands, and others relay what that peer says."""
        if peer not in self._ctx.linked or has(links, self._ctx.id):
            self._one_sided.pop(peer, None)
            return
        since = self._one_sided.setdefault(peer, self._ctx.now)
        if self._ctx.now - since > ONE_SIDED_BEATS * self._ctx.config.detector.heartbeat_s:
            del self._one_sided[peer]
            self._renew_link(peer, "its other end has given it up")

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
        self._one_sided.pop(peer, None)
        self._forget_links(peer)
        if not (self._ctx.views and self._ctx.view.is_cut(peer, self._ctx.id)):
            self._doubt(peer, f"link lost: {reason}")

    def installed(self) -> None:
        """Watch whom this view gives me. A new incarnation starts without doubts; an old doubt stays."""
        view, self._installed_at = self._ctx.view, self._ctx.now
        seated = (*view.everybody(), *self._ctx.departing())
        present = {p.id: p.incarnation for p in seated if p.id != self._ctx.id}
        everybody = is_small(view) or view.position(self._ctx.id) is None
        departing = (p.id for p in self._ctx.departing())
        watched = set(present) if everybody else {*watchers(view, self._ctx.id), *departing} & present.keys()
        for peer, incarnation in sorted(present.items()):
            if self._present.get(peer) != incarnation:
                self.forget(peer)
            if peer in watched:
                self._detector.watch(peer, self._ctx.now)
            else:
                self._detector.forget(peer)
        if present.keys() - self._present.keys():
            self._next_heartbeat = self._ctx.now  # newcomers have not heard yet of whom each has a link with
        self._present, self._watched = present, watched
        for peer in [p for p in self.progress if p not in present]:
            self.forget(peer)
        for peer in [p for p in self._doubts if p not in present]:
            self.forget(peer)
        for peer in sorted(self._concluded):  # it may have another seat now, as a learner that was promoted has
            self._node.views.suspect(peer, "nobody hears it")

    def reset(self) -> None:
        """This peer starts over: nobody owes it heartbeats."""
        for peer in sorted(self._present.keys() | self._doubts.keys()):
            self.forget(peer)
        self._present, self._watched = {}, set()

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

    def _renew_link(self, peer: str, reason: str) -> None:
        """Nothing comes by this link any more. The other end may not know: ended, both find a way around it."""
        info = self._ctx.seat(peer)
        if info is not None and peer in self._ctx.linked:
            self._renewed.add(peer)
            self._ctx.emit(Disconnect(peer, reason))
            self._ctx.emit(Connect(info))

    def _doubt(self, peer: str, reason: str) -> bool:
        """False if it was in doubt already, or is of no concern."""
        if peer in self._doubts or not self._ctx.views:
            return False
        info = self._ctx.seat(peer)
        if info is None:
            self._detector.forget(peer)
            return False
        mine = self._is_mine(peer)
        self._doubts[peer] = self._ctx.now if mine else math.inf
        self._node.views.handling.doubt(peer, self._ctx.now)
        self._ctx.trace("doubt", peer=info.name, reason=reason)
        self._ctx.emit(TrySeal(info))
        if mine:
            self._ctx.send_all(self._witnesses(peer), Probe(peer))
        self._weigh(peer)
        return True

    def _is_mine(self, peer: str) -> bool:
        """Whether it is this peer's to find out if `peer` lives: it watches it, or all that do are in doubt too."""
        return peer in self._watched or not self._witnesses(peer)

    def unanswered(self, peers: list[str]) -> None:
        """They owe an answer to a proposal of this peer: it asks about them itself, whoever watches them."""
        for peer in peers:
            self._doubt(peer, "does not answer a proposal")
            if self._doubts.get(peer) == math.inf:
                self._doubts[peer] = self._ctx.now
                self._ctx.send_all([peer, *self._witnesses(peer)], Probe(peer))

    def _tell_all(self, reply: ProbeReply) -> None:
        """Others wait for what this peer finds of those that it watches, where not all watch all."""
        if self._ctx.views and not is_small(self._ctx.view):
            self._ctx.send_all((p.id for p in self._ctx.view.everybody() if p.id != reply.target), reply)

    def _witnesses(self, peer: str) -> list[str]:
        """Members whose word counts: as far as known they have, or just had, a link to it, and are not in doubt."""
        view = self._ctx.view
        return [
            other
            for other in (view.member_ids() if is_small(view) else watchers(view, peer))
            if other not in (peer, self._ctx.id)
            and other not in self._doubts
            and view.member(other) is not None
            and self._should_hear(other, peer)
        ]

    def _should_hear(self, other: str, peer: str) -> bool:
        """Whether `other` last said that it has a link to `peer`. Of a direct neighbour that said nothing, yes."""
        beat = self.progress.get(other)
        links = None if beat is None else beat.links
        return other in self._ctx.linked if links is None else has(links, peer)

    def hears(self, peer: str) -> bool:
        return peer in self._ctx.linked and peer not in self._doubts

    def on_probe(self, src: str, message: Probe) -> None:
        alive = message.target == self._ctx.id or self.hears(message.target)
        self._ctx.send(src, ProbeReply(message.target, alive))
        self._deny(src, message.target)

    def on_probe_reply(self, src: str, message: ProbeReply) -> None:
        if self._is_word_of_a_watcher(src, message.target):
            self._hear_watcher(src, message)
        elif not message.alive:
            self._deny(src, message.target)
        elif message.target in self._doubts:
            first = self._vouched.setdefault(message.target, self._ctx.now)
            if self._ctx.now - first <= self._ctx.config.detector.ceiling_s:
                self._doubts[message.target] = self._ctx.now + RELAYED_BEATS * self._ctx.config.detector.heartbeat_s
            self._denials.get(message.target, set()).discard(src)

    def _is_word_of_a_watcher(self, src: str, target: str) -> bool:
        """Whether `src` tells what it found of a peer that it watches and I don't."""
        if not self._ctx.views or is_small(self._ctx.view) or target == self._ctx.id or target in self._watched:
            return False
        return self._doubts.get(target, math.inf) == math.inf and src in watchers(self._ctx.view, target)

    def _hear_watcher(self, src: str, message: ProbeReply) -> None:
        if message.alive:
            self._denials.get(message.target, set()).discard(src)
            if message.target in self._concluded:
                self.heard(message.target)
        else:
            self._doubt(message.target, f"{self._ctx.name(src)} does not hear it")
            self._deny(src, message.target)

    def _deny(self, src: str, target: str) -> None:
        """`src` does not hear `target` either."""
        if target in self._doubts:
            self._denials.setdefault(target, set()).add(src)
            self._weigh(target)

    def _weigh(self, peer: str) -> None:
        witnesses, denials = self._witnesses(peer), self._denials.get(peer, set())
        silent = sum(w in denials for w in witnesses)
        enough = len(witnesses) if self._doubts[peer] < math.inf else (len(witnesses) + 1) // 2
        if witnesses and silent >= enough:
            self._conclude(peer, "nobody hears it")

    def _conclude(self, peer: str, reason: str) -> None:
        if self._ctx.role in (Role.MEMBER, Role.LEARNER) and peer in self._doubts:
            if peer in self._watched and peer not in self._concluded:
                self._tell_all(ProbeReply(peer, False))
            self._concluded.add(peer)
            self._node.views.suspect(peer, reason)
            self._node.learner.on_donor_lost(peer, reason)
