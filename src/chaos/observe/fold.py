"""From trace lines to the picture of a run: a pure fold. The same lines make the same picture; memory is bounded.

Lines should come in causal order (`trace.in_order`). Live ones may be a little out of it: what is older than what is
known of a peer, a link or a step changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from chaos.observe.picture import LINKS, PEERS, USUAL, Direction, Event, Join, Link, Peer, Picture, Step, usual
from chaos.observe.sentences import CAUSES, sentence
from chaos.observe.shapes import is_sound

Line = Mapping[str, Any]
Thing = TypeVar("Thing")

TOLD = frozenset({
    *("suspect", "trust", "paused", "unpaused", "worker_died", "worker_failed", "stop", "leave", "join_refused"),
    *("digests_differ", "diverged", "rejoin", "lost_track", "checkpoint", "checkpoint_failed", "pause", "slow_donor"),
    *("corrupt_shard", "protocol_error", "force", "force_failed", "lineage", "other_lineage", "warning", "left_out"),
    *("link_down", "fetched_state", "refused", "slow_bytes", "lags", "catch_up_mode", "results_dropped"),
    "catch_up_from",
})  # fmt: skip
"""Kinds that become events by their own sentence. Changes of the view become events too."""
SETTLED = 2
"""A change is over once so many steps of its view are committed: its cost is that of all steps until then."""
OPEN_CHANGES = 16
NAMES = 4096
"""Ids of peers whose names are remembered."""
JOINS = 64
_OVER = ("left", "gone", "done")


def _make_room(among: dict[str, Thing], worth: Callable[[Thing], Any]) -> None:
    """Forget the quarter that is worth least."""
    for key in sorted(among, key=lambda key: worth(among[key]))[: len(among) // 4]:
        del among[key]


class Fold:
    """`take` lines; `picture` is what they make."""

    def __init__(self) -> None:
        self.picture = Picture()
        self._names: dict[str, str] = {}
        self._usual: deque[float] = deque(maxlen=USUAL)
        self._changes: deque[Event] = deque(maxlen=OPEN_CHANGES)
        """Changes of the view that may still cost something."""
        self._handled: dict[int, list[Line]] = {}
        """By view: what members said before the view itself was heard of."""
        self._by_kind: dict[str, Callable[[Line], None]] = {
            "view": self._view,
            "handled": self._handled_at,
            "commit": self._commit,
            "stable": self._stable,
            "sample": self._sample,
            "link_up": self._link_up,
            "link_down": self._link_down,
            "suspect": self._suspect,
            "trust": self._trust,
            "gone": self._gone,
            "goodbye": self._goodbye,
            "stop": self._stop,
            "paused": self._paused,
            "unpaused": self._unpaused,
            "worker_registered": self._registered,
            "learner": self._learner,
            "catch_up": self._catch_up,
            "fetched_state": self._fetched,
        }

    def take_all(self, lines: Iterable[Line]) -> Picture:
        for line in lines:
            self.take(line)
        return self.picture

    def take(self, line: Line) -> None:
        """One more line. One that another peer made up, and that lacks what its kind has, changes little or nothing."""
        if not is_sound(line):
            return
        picture = self.picture
        at = line["stamp"] / 1e6
        picture.at = max(picture.at, at)
        picture.began = min(picture.began, at) if picture.began else at
        peer = self._peer(line["peer"])
        if at > peer.heard:
            peer.heard = at
            peer.view, peer.step = line.get("in_view", peer.view), line.get("at_step", peer.step)
        try:
            if (act := self._by_kind.get(line["kind"])) is not None:
                act(line)
            if line["kind"] in TOLD and not self._is_stale(line):
                self._tell(line)
        except (KeyError, TypeError, ValueError, AttributeError):
            return

    # --- peers ---------------------------------------------------------------------------------------------

    def _peer(self, name: str) -> Peer:
        peers = self.picture.peers
        if name not in peers:
            if not isinstance(name, str):
                raise TypeError(f"{name} is no name")
            if len(peers) >= PEERS:
                _make_room(peers, lambda p: (p.state not in _OVER, p.heard))
            peers[name] = Peer(name)
        return peers[name]

    def _set(self, name: str, state: str, at: float, why: str = "") -> None:
        peer = self._peer(name)
        if peer.state != state or not peer.since:
            peer.state, peer.since, peer.why = state, at, why
        elif why:
            peer.why = why

    def _registered(self, line: Line) -> None:
        peer = self._peer(line["peer"])
        if peer.name not in (*self.picture.members, *self.picture.learners):
            self._set(peer.name, "joiner", line["stamp"] / 1e6)

    def _suspect(self, line: Line) -> None:
        if self._peer(line["about"]).state not in _OVER:
            self._set(line["about"], "suspect", line["stamp"] / 1e6, line["reason"])

    def _trust(self, line: Line) -> None:
        if self._peer(line["about"]).state == "suspect":
            self._set(line["about"], self._seat(line["about"]), line["stamp"] / 1e6)

    def _seat(self, name: str) -> str:
        if name in self.picture.members:
            return "member"
        return "learner" if name in self.picture.learners else "joiner"

    def _gone(self, line: Line) -> None:
        peer = self._peer(line["about"])
        if peer.state not in _OVER and line["stamp"] / 1e6 >= peer.since:
            self._set(peer.name, "gone", line["stamp"] / 1e6, line["reason"])

    def _goodbye(self, line: Line) -> None:
        if self._peer(line["about"]).state not in ("done", "left"):
            self._set(line["about"], "left", line["stamp"] / 1e6, line["reason"])

    def _stop(self, line: Line) -> None:
        done = line["code"] == 0 and "complete" in line["reason"]
        state = "done" if done else "left" if line["code"] == 0 else "gone"
        self._set(line["peer"], state, line["stamp"] / 1e6, line["reason"])
        if (join := self.picture.joins.get(line["peer"])) is not None and not join.ended:
            join.ended, join.outcome = line["stamp"] / 1e6, line["reason"]

    def _paused(self, line: Line) -> None:
        self._set(line["peer"], "paused", line["stamp"] / 1e6, line["reason"])

    def _unpaused(self, line: Line) -> None:
        self._set(line["peer"], self._seat(line["peer"]), line["stamp"] / 1e6)

    # --- views ---------------------------------------------------------------------------------------------

    def _view(self, line: Line) -> None:
        picture, at = self.picture, line["stamp"] / 1e6
        names = [*line["members"], *line["learners"]]
        for name, peer_id, party in zip(names, line["ids"], line["parties"], strict=True):
            self._names[peer_id] = name
            peer = self._peer(name)
            peer.id, peer.party = peer_id, party
        while len(self._names) > NAMES:
            del self._names[next(iter(self._names))]
        if self._peer(line["peer"]).state == "paused" and line["view"] >= picture.view:
            self._set(line["peer"], str(line["role"]), at)
        if line["view"] <= picture.view:
            return
        before = [*picture.members, *picture.learners]
        picture.view, picture.view_since, picture.lineage = line["view"], at, line["lineage"]
        picture.members, picture.learners = list(line["members"]), list(line["learners"])
        picture.most_members = max(picture.most_members, len(picture.members))
        self._seats(line, before, at)
        self._plan(line, at)
        self._change(line, at)

    def _seats(self, line: Line, before: list[str], at: float) -> None:
        for name in line["members"]:
            self._set(name, "member", at)
            join = self.picture.joins.get(name)
            if join is not None and not join.ended:
                join.ended, join.outcome, join.seconds_left = at, "member", 0.0
        for name in line["learners"]:
            self._set(name, "learner", at)
        for name in before:
            if name not in (*line["members"], *line["learners"]) and self._peer(name).state not in _OVER:
                self._set(name, "gone" if line["abort"] else "left", at, line["reason"])

    def _plan(self, line: Line, at: float) -> None:
        """Shares of the sums, and links by order."""
        shares = line["shares"] or [1] * len(line["members"])
        for name, peer in self.picture.peers.items():
            rank = line["members"].index(name) if name in line["members"] else None
            peer.share = None if rank is None else shares[rank] / max(sum(shares), 1)
        cut = {" ".join(sorted(self._names.get(end, end) for end in ends)) for ends in line["cut"]}
        for key in sorted(cut):
            self._link(*key.split(" ")).state = "cut"
        for key, link in self.picture.links.items():
            if link.state == "cut" and key not in cut:
                link.state, link.since = "down", at

    def _change(self, line: Line, at: float) -> None:
        event = Event(
            at, line["peer"], "view", line["reason"], line["view"], line["at_step"], line["reason"],
            first_step=line["first_step"], usual_s=usual(self._usual),
        )  # fmt: skip
        self._add(event)
        self._changes.append(event)
        for handled in self._handled.pop(line["view"], ()):
            self._note_handled(event, handled)

    def _handled_at(self, line: Line) -> None:
        event = next((e for e in reversed(self._changes) if e.view == line["view"]), None)
        if event is not None:
            self._note_handled(event, line)
        elif line["view"] > self.picture.view:
            self._handled.setdefault(line["view"], []).append(line)
            while len(self._handled) > OPEN_CHANGES:
                del self._handled[min(self._handled)]

    def _note_handled(self, event: Event, line: Line) -> None:
        event.causes = event.causes or [[str(kind), str(about)] for kind, about in line["causes"]]
        event.kind = line["cause"] if line["cause"] in CAUSES else event.kind
        event.handling_ms[line["peer"]] = line["handling_ms"]
        event.computing_ms[line["peer"]] = round(line["computing_ms"] + line["acting_ms"], 3)

    # --- steps ---------------------------------------------------------------------------------------------

    def _commit(self, line: Line) -> None:
        picture, at = self.picture, line["stamp"] / 1e6
        number = line["step"]
        known = next((s for s in reversed(picture.steps) if s.step <= number), None)
        if known is not None and known.step == number:
            if line["view"] > known.view:  # it was void, and is done again
                self._count(known, -1)
                self._fill(known, line, at)
            return
        if picture.steps and number < picture.steps[-1].step:
            return
        seconds = at - known.at if known is not None and known.step == number - 1 else None
        step = Step(number, at, 0, None, 0.0, [], [], seconds)
        picture.steps.append(step)
        picture.step = number
        picture.first_step = picture.first_step or number
        self._fill(step, line, at)
        self._cost(step)
        rate = step.weight / step.seconds if step.seconds else None
        picture.series.add((at, number, step.loss, rate, step.seconds))
        picture.usual_s = usual(self._usual)

    def _fill(self, step: Step, line: Line, at: float) -> None:
        step.at, step.view, step.loss, step.weight = at, line["view"], line["loss"], line["weight"]
        step.contributors = [self._names.get(peer, peer) for peer in line["contributors"]]
        step.late = [self._names.get(peer, peer) for peer in line["late"]]
        step.skip = line["skip"] or ""
        self._count(step, 1)

    def _count(self, step: Step, sign: int) -> None:
        self.picture.samples += sign * step.weight
        for name in step.contributors:
            self._peer(name).contributed += sign
        for name in step.late:
            peer = self._peer(name)
            peer.late += sign
            peer.last_late = max(peer.last_late, step.step)

    def _cost(self, step: Step) -> None:
        """What the step took beyond the usual is put on whatever was under way."""
        if step.seconds is None:
            return
        over = [e for e in self._changes if step.step >= e.first_step + SETTLED]
        for event in over:
            self._changes.remove(event)
        joining = [j for j in self.picture.joins.values() if not j.ended]
        if not self._changes and not joining:
            self._usual.append(step.seconds)
            return
        for event in self._changes:
            if event.usual_s is not None:
                event.extra_s += max(step.seconds - event.usual_s, 0.0)
        usually = usual(self._usual)
        for join in joining:
            join.extra_s += max(step.seconds - usually, 0.0) if usually is not None else 0.0

    def _stable(self, line: Line) -> None:
        self.picture.stable = max(self.picture.stable, line["step"])

    # --- links ---------------------------------------------------------------------------------------------

    def _link(self, a: str, b: str) -> Link:
        ends = (a, b) if a < b else (b, a)
        key, links = " ".join(ends), self.picture.links
        if key not in links:
            if len(links) >= LINKS:
                _make_room(links, lambda one: one.since)
            links[key] = Link(ends)
        return links[key]

    def _link_up(self, line: Line) -> None:
        link, at = self._link(line["peer"], line["about"]), line["stamp"] / 1e6
        if at >= link.since:
            link.state, link.since = "up", at
            link.sends.clear()

    def _link_down(self, line: Line) -> None:
        link, at = self._link(line["peer"], line["about"]), line["stamp"] / 1e6
        if at >= link.since and link.state == "up":
            link.state, link.since, link.why = "down", at, line["reason"]
            link.losses += 1
            for way in link.sends.values():
                way.use = 0.0

    # --- samples and joins ---------------------------------------------------------------------------------

    def _sample(self, line: Line) -> None:
        at, peer = line["stamp"] / 1e6, self._peer(line["peer"])
        if peer.cpu and at <= peer.cpu[-1][0]:
            return
        peer.host, peer.gpus, peer.worker = dict(line["host"]), list(line["gpus"]), dict(line["worker"])
        peer.spread_bytes = line["spread_bytes"]
        peer.cpu.append((at, float(line["host"]["cpu"])))
        for other, measured in line["links"].items():
            self._measured(peer.name, other, measured, at)
        join = self.picture.joins.get(peer.name)
        if line["join"] is not None and join is not None and not join.ended:
            self._progress(join, line["join"], at)

    def _measured(self, name: str, other: str, measured: Mapping[str, Any], at: float) -> None:
        link = self._link(name, other)
        link.rtt_s = measured["rtt_s"] or link.rtt_s
        sent = {str(purpose): int(count) for purpose, count in measured["out"].items()}
        way = link.sends.setdefault(name, Direction())
        grown = sum(sent.values()) - sum(way.bytes.values())
        if way.at and grown >= 0 and at > way.at:
            way.use = grown / (at - way.at)
        way.bytes, way.at = sent, at
        way.rate = measured["rate"] or way.rate

    def _join(self, line: Line) -> Join | None:
        name, at = line["peer"], line["stamp"] / 1e6
        joins = self.picture.joins
        join = joins.get(name)
        if join is None or join.ended:
            if name in self.picture.members:
                return None
            if len(joins) >= JOINS:
                _make_room(joins, lambda one: (not one.ended, one.began))
            joins[name] = join = Join(name, at)
        return join

    def _learner(self, line: Line) -> None:
        if line["phase"] == "idle":
            return
        if (join := self._join(line)) is not None:
            join.phase = self._peer(line["peer"]).phase = line["phase"]
            if line["phase"] == "fetch":
                join.fetching_since = line["stamp"] / 1e6

    def _catch_up(self, line: Line) -> None:
        if (join := self._join(line)) is not None:
            join.sources, join.bytes, join.fetching_since, join.seconds_left = {}, 0, 0.0, None

    def _progress(self, join: Join, told: Mapping[str, Any], at: float) -> None:
        join.step, join.bytes = told["step"], told["bytes"]
        join.sources = {str(donor): int(count) for donor, count in told["have"].items()}
        took = at - join.fetching_since
        if join.fetching_since and join.fetched and took > 0:
            join.seconds_left = max(join.bytes - join.fetched, 0) * took / join.fetched

    def _fetched(self, line: Line) -> None:
        if (join := self._join(line)) is not None:
            join.step, join.bytes, join.seconds_left = line["step"], line["bytes"], 0.0
            join.sources = {str(donor): int(count) for donor, count in line["sources"].items()}

    # --- events --------------------------------------------------------------------------------------------

    def _tell(self, line: Line) -> None:
        kind, text = line["kind"], sentence(line)
        event = Event(
            line["stamp"] / 1e6, line["peer"], kind, text, line.get("in_view", 0), line.get("at_step", 0),
            str(line.get("reason", "")),
        )  # fmt: skip
        for last in list(self.picture.events)[-4:]:
            if (last.kind, last.text, last.view) == (kind, text, event.view):
                last.times += 1
                return
        self._add(event)

    def _is_stale(self, line: Line) -> bool:
        """Links that end as ordered, or because their peer has gone, are no news."""
        if line["kind"] not in ("link_down", "suspect") or "about" not in line:
            return False
        key = " ".join(sorted((line["peer"], line["about"])))
        link = self.picture.links.get(key)
        return self._peer(line["about"]).state in _OVER or (link is not None and link.state == "cut")

    def _add(self, event: Event) -> None:
        self.picture.events.append(event)
        self.picture.events_told += 1
