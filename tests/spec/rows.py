"""From what nodes did to the rows that docs/spec/trace.pml replays: one window for each decree of each lineage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from chaos.core import actions as act
from chaos.core import events as ev
from chaos.core.messages import Accept, LastWords, Promise
from chaos.core.types import Ballot, View
from tests.spec.recorder import Record, Seat

WINDOW, BASE, PROMISE, LATE, PROPOSE, ACCEPT, INSTALL, DIE, OPEN, FINISH = range(10)
GATED, FROZEN = 1, 2
PEERS = 8
"""More than so many members and learners don't fit into the model's bytes."""

Key = tuple[str, int]
"""Lineage and id of the view that is decided."""


@dataclass(frozen=True)
class Row:
    kind: int
    who: Seat | None
    at: float
    ballot: Ballot | None = None
    view: View | None = None
    freeze: bool = False
    stand: tuple[int, int, bool] = (0, 0, True)
    """Last finished step, last opened step, whether it holds all that was stable when it became a member."""
    gone: tuple[str, ...] = ()


@dataclass
class Window:
    """The decision on the view after `base`."""

    base: View
    rows: list[Row] = field(default_factory=list)
    heard: dict[Ballot, set[str]] = field(default_factory=dict)
    """Whose promises each proposer had when it proposed."""

    def seats(self) -> list[Seat]:
        return [(p.id, p.incarnation) for p in self.base.everybody()]


@dataclass
class Follower:
    """One process, as its actions show it."""

    views: list[View] = field(default_factory=list)
    words: LastWords | None = None
    finished: int = 0
    opened: int = 0
    entry: int = 0
    member: bool = False


class Reader:
    """Goes through the records once; `windows` is what came out."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.windows: dict[Key, Window] = {}
        self._followers: dict[Seat, Follower] = {}
        self._freezes: dict[tuple[Key, Ballot], tuple[bool, tuple[str, ...]]] = {}
        self._proposed: set[tuple[Key, Ballot]] = set()
        self._reports: dict[tuple[Key, Seat, Ballot], tuple[int, int, bool]] = {}
        self.false_reports: list[str] = []
        for record in records:
            self._read(record, self._followers.setdefault(record.seat, Follower()))

    def _read(self, record: Record, peer: Follower) -> None:
        match record.what:
            case ev.Received(src, Promise() as message):
                self._hear(record, peer, src, message)
            case act.Trace("view", fields):
                if fields["role"] == "joiner":
                    self._left_out(record, peer, fields["view"])
            case act.Trace(_, fields):
                if peer.words is not None:
                    ballot = Ballot(fields["ballot"], record.seat[0])
                    key = (peer.words.view.lineage, fields["view"])
                    self._freezes[key, ballot] = (fields["freeze"], tuple(fields["gone"]))
            case act.Send(_, Accept(decree, ballot, view)):
                self._propose(record, (view.lineage, decree), ballot, view)
            case act.Persist(words):
                self._persist(record, peer, words)
            case act.SetViews(views, finished):
                self._stand(record, peer, views, finished)
            case act.OpenRound(_, step):
                peer.opened = step
                self._step(record, peer, OPEN)
            case act.Finish(step):
                peer.finished, peer.opened = step, max(peer.opened, step)
                self._step(record, peer, FINISH)

    # --- votes -----------------------------------------------------------------------------------------------

    def _hear(self, record: Record, peer: Follower, src: str, message: Promise) -> None:
        if peer.words is None or message.ballot.proposer != record.seat[0]:
            return
        key = (peer.words.view.lineage, message.decree)
        window = self.windows.get(key)
        if window is None or (key, message.ballot) in self._proposed:
            return
        seat = next((s for s in window.seats() if s[0] == src), None)
        seen = self._reports.get((key, seat, message.ballot)) if seat is not None else None
        report = message.report
        if seen is not None and seen != (report.finished, report.opened, report.grounded):
            self.false_reports.append(f"{src} reports {report}, but stood at {seen} when it promised {message.ballot}")
        window.heard.setdefault(message.ballot, set()).add(src)

    def _persist(self, record: Record, peer: Follower, words: LastWords) -> None:
        before, peer.words = peer.words, words
        key = (words.view.lineage, words.view.id + 1)
        window = self.windows.setdefault(key, Window(words.view))
        if before is None or before.view != words.view:
            before = replace_votes(words)
        if words.accepted is not None and words.accepted != before.accepted:
            self._propose(record, key, words.accepted.ballot, words.accepted.view)
            accepted = words.accepted
            window.rows.append(Row(ACCEPT, record.seat, record.at, accepted.ballot, accepted.view))
        elif words.promised is not None and words.promised != before.promised:
            freeze, _ = self._freezes.get((key, words.promised), (True, ()))
            stand = (peer.finished, peer.opened, peer.finished >= peer.entry - 1)
            self._reports[key, record.seat, words.promised] = stand
            if words.promised.proposer == record.seat[0]:
                window.heard.setdefault(words.promised, set()).add(record.seat[0])
            window.rows.append(Row(PROMISE, record.seat, record.at, words.promised, freeze=freeze, stand=stand))

    def _propose(self, record: Record, key: Key, ballot: Ballot, view: View) -> None:
        window = self.windows.get(key)
        if window is None or (key, ballot) in self._proposed:
            return
        self._proposed.add((key, ballot))
        proposer = next((s for s in window.seats() if s[0] == ballot.proposer), record.seat)
        _, gone = self._freezes.get((key, ballot), (True, ()))
        for seat in window.seats():
            if seat[0] in gone and not any(r.kind == DIE and r.who == seat for r in window.rows):
                window.rows.append(Row(DIE, seat, record.at))
        window.rows.append(Row(PROPOSE, proposer, record.at, ballot, view, gone=gone))

    # --- views and steps ---------------------------------------------------------------------------------------

    def _stand(self, record: Record, peer: Follower, views: tuple[View, ...], finished: int) -> None:
        new = views[-1] if views else None
        if new is None or (peer.views and peer.views[-1] == new):
            if finished < peer.finished:
                peer.opened = finished
            peer.finished, peer.opened = finished, max(peer.opened, finished)
            return
        member = any((m.id, m.incarnation) == record.seat for m in new.members)
        if member and not peer.member:
            peer.entry = new.first_step
        peer.opened = finished if new.abort or finished < peer.finished else max(peer.opened, finished)
        peer.finished, peer.member = finished, member
        peer.views.append(new)
        for (lineage, decree), window in self.windows.items():
            if lineage == new.lineage and decree <= new.id and record.seat in window.seats():
                self._install(record, window, new if decree == new.id else None)
        following = self.windows.setdefault((new.lineage, new.id + 1), Window(new))
        if record.seat in following.seats():
            following.rows.append(Row(BASE, record.seat, record.at))

    def _left_out(self, record: Record, peer: Follower, decree: int) -> None:
        """It learned of a view that it is not in, and starts over: the last that it says about this lineage."""
        for (lineage, number), window in self.windows.items():
            if peer.views and lineage == peer.views[-1].lineage and number <= decree:
                self._install(record, window, None)
        peer.views.clear()
        peer.member = False

    def _install(self, record: Record, window: Window, view: View | None) -> None:
        mine = [row.kind for row in window.rows if row.who == record.seat]
        if INSTALL in mine or (BASE not in mine and view is None):
            return
        if BASE not in mine:
            window.rows.append(Row(BASE, record.seat, record.at))
        window.rows.append(Row(INSTALL, record.seat, record.at, view=view))

    def _step(self, record: Record, peer: Follower, kind: int) -> None:
        if peer.member and peer.views:
            view = peer.views[-1]
            window = self.windows.get((view.lineage, view.id + 1))
            held = window is not None and any(r.kind == PROMISE and r.who == record.seat for r in window.rows)
            if window is not None and held:  # nothing forbids a step before the first promise
                window.rows.append(Row(kind, record.seat, record.at))


def replace_votes(words: LastWords) -> LastWords:
    """The words of one that has just installed this view."""
    return LastWords(words.run, words.peer, words.incarnation, words.view, None, None)


# --- numbers -------------------------------------------------------------------------------------------------


class Numbers:
    """One window in the model's terms: seats are ranks, ballots and values are counted, steps are relative."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.seats = window.seats()
        self.ballots = sorted({row.ballot for row in window.rows if row.ballot is not None})
        self._values: list[View] = []
        stands = [row.stand[0] for row in window.rows if row.kind == PROMISE]
        self._zero = min(stands, default=window.base.first_step)

    def step(self, step: int) -> int:
        return min(max(step - self._zero, 0), 250)

    def mask(self, peers: Iterable[str]) -> int:
        ids = [seat[0] for seat in self.seats]
        return sum(1 << ids.index(peer) for peer in sorted(set(peers)) if peer in ids)

    def value(self, view: View) -> int:
        """Counted from 1; two values are the same only if they are equal in everything."""
        if view not in self._values:
            self._values.append(view)
        return self._values.index(view) + 1

    def row(self, row: Row) -> list[int]:
        who = self.seats.index(row.who) if row.who in self.seats else 0
        ballot = self.ballots.index(row.ballot) + 1 if row.ballot is not None else 0
        match row.kind:
            case row.kind if row.kind in (PROMISE, LATE):
                finished, opened, grounded = row.stand
                kind = FROZEN if row.freeze else GATED
                return [row.kind, who, ballot, kind, self.step(finished), int(opened > finished), int(grounded), 0]
            case row.kind if row.kind == PROPOSE and row.view is not None:
                v = row.view
                what = [self.mask(row.gone), self.mask(v.member_ids()), self.step(v.first_step), int(v.abort)]
                return [PROPOSE, who, ballot, *what, self.value(v)]
            case row.kind if row.kind == ACCEPT and row.view is not None:
                return [ACCEPT, who, ballot, self.value(row.view), 0, 0, 0, 0]
            case row.kind if row.kind == INSTALL:
                return [INSTALL, who, self.value(row.view) if row.view is not None else 0, 0, 0, 0, 0, 0]
        return [row.kind, who, 0, 0, 0, 0, 0, 0]

    def table(self) -> list[tuple[list[int], str]]:
        """The window's rows, each with a line for people."""
        base = self.window.base
        head = [WINDOW, self.mask(base.member_ids()), self.step(base.first_step), int(base.abort), 0, 0, 0, 0]
        result = [(head, f"view {base.id + 1} is decided")]
        proposed: set[Ballot] = set()
        after = {row.ballot for row in self.window.rows if row.kind == PROPOSE}
        for row in self.window.rows:
            if row.kind == PROPOSE and row.ballot is not None:
                proposed.add(row.ballot)
            if row.kind == PROMISE and row.ballot is not None and row.who is not None:
                unused = row.who[0] not in self.window.heard.get(row.ballot, ())
                if row.ballot in proposed or (row.ballot in after and unused):
                    row = replace(row, kind=LATE)
            result.append(
                (self.row(row), f"view {base.id + 1}, {row.at:.4f} s: {NAMES[row.kind]} {row.who} {row.ballot or ''}")
            )
        return result


NAMES = ("window", "base", "promise", "late promise", "propose", "accept", "install", "die", "open", "finish")
