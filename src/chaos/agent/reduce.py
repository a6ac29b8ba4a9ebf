"""The data plane of the steps: direct reduce-scatter and all-gather among the members of a view.

Every member is root of an equal share of the chunks. Contributions go straight to the roots, final chunks
straight to everybody, both as soon as they exist, so that sending, summing and receiving overlap. What
may be sent and under which view is the core's decision (`OpenRound`, `SetViews`); frames that fit no
current attempt are dropped, frames of a view that is still to come wait in their connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from chaos.agent import feed
from chaos.agent.arithmetic import Array, narrow, widen
from chaos.agent.feed import Batch, Due, Feed
from chaos.agent.overflow import Overflow
from chaos.agent.rounds import Buffers, Piece, Round, cut
from chaos.agent.shared_memory import ResultRing, SharedMemory
from chaos.agent.transport import BulkHeader, Verdict
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import ResultComes, ResultDropped, ResultMemory, ResultUnsent, RoundComplete
from chaos.core.types import Layout, View

ADDS_PER_TURN = 8
"""Own chunks summed between two turns of the event loop: half a millisecond, so that control is not kept waiting."""
SAY_EVERY_S = 1.0
"""So often it is said that the next result comes, where that takes long."""
CUTS = 8
"""Ways of cutting that are remembered; each has an entry of 100 bytes per chunk of half a megabyte."""


class Kind(IntEnum):
    """Kinds of bulk frames. Those of snapshots are in `chaos.agent.shards`."""

    CONTRIBUTION = 1
    FINAL = 2
    RESULT = 3


class Outlet(feed.Outlet, Protocol):
    """What the reducer needs of the transport."""

    def drop_bulk(self, predicate: Callable[[BulkHeader], bool]) -> int: ...

    def resume_bulk(self) -> None: ...


class Fetched(NamedTuple):
    """How the result of a step is fetched. A view that has the step made anew ends it."""

    mark: int
    """The view id that its frames bear."""
    view: int
    """The view that governed the step when it began."""


@dataclass
class _Own:
    """What of the own contribution may be sent."""

    step: int
    weight: float = 0.0
    whole: bool = False
    segments: set[int] = field(default_factory=set)
    sent: set[tuple[int, int]] = field(default_factory=set)
    """(view id, segment) that were sent."""


class Reducer:
    """All rounds of one peer.

    Args:
        me: the peer's id.
        outlet: where frames go.
        happened: called with the event while bytes of a result come, once all are here, or where there is no room for
            one.
        note: writes a line of the trace.
    """

    def __init__(
        self,
        me: str,
        outlet: Outlet,
        happened: Callable[[RoundComplete | ResultComes | ResultMemory | ResultDropped | ResultUnsent], None],
        note: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._me = me
        self._outlet = outlet
        self._happened = happened
        self._note = note
        self._feed = Feed(outlet, self._chunk, self._unsent, self._is_member)
        self._overflow: Overflow | None = None
        self._layout: Layout | None = None
        self._contribution: memoryview | None = None
        self._ring: ResultRing | None = None
        self._cuts: dict[tuple[int, ...], tuple[Piece, ...]] = {}
        self._views: tuple[View, ...] = ()
        self._finished = 0
        self._released = 0
        self._rounds: dict[int, Round] = {}
        self._results: dict[int, Round] = {}
        """Finished rounds whose result is kept."""
        self._void: list[tuple[int, int]] = []
        """(step, slot) of void attempts: their slots rest until frames under way can't reach them any more."""
        self._fetching: dict[int, Fetched] = {}
        """Steps whose results come from a member that finished them."""
        self._open: dict[int, int] = {}
        """Step to the view id under which it was opened."""
        self._own = _Own(0)
        self._adds: list[tuple[Round, Piece, float]] = []
        self._adding = False
        self._giving = False
        """Pages of free slots are being given back."""
        self._said_at = -SAY_EVERY_S
        """When it was last said that something of the next result has arrived."""
        self._buffers = Buffers()

    def configure(self, layout: Layout, contribution: SharedMemory, ring: ResultRing) -> None:
        """The worker has registered: its layout and the memory shared with it."""
        self._layout, self._contribution, self._ring = layout, contribution.view, ring
        if self._overflow is None:
            self._overflow = Overflow(ring, self._results, self._happened, self._note, self._outlet.resume_bulk)
        self._cuts.clear()
        self._outlet.resume_bulk()

    # --- the core's decisions ------------------------------------------------------------------------------

    def set_views(self, views: tuple[View, ...], finished: int) -> None:
        """These views govern rounds now; void what fits none of them, and let waiting frames in."""
        self._views, self._finished = views, finished
        for step in list(self._rounds):
            current = self._rounds[step]
            view = self._view_for(step)
            if step <= finished or view is None or view.id != current.view.id:
                self._discard(step)
        self._open = {s: v for s, v in self._open.items() if (w := self._view_for(s)) and w.id == v}
        self._fetching = {s: f for s, f in self._fetching.items() if (w := self._view_for(s)) and w.id == f.view}
        self._feed.keep_only(lambda peer: any(view.knows(peer) for view in views))
        self._outlet.drop_bulk(self._stale)
        self._feed.hurry(lambda fits: self._outlet.drop_bulk(lambda header: header.src == self._me and fits(header)))
        self._outlet.resume_bulk()

    def _is_member(self, peer: str) -> bool:
        return bool(self._views) and self._views[-1].member(peer) is not None

    def _stale(self, header: BulkHeader) -> bool:
        if header.src != self._me or header.kind not in (Kind.CONTRIBUTION, Kind.FINAL):
            return False
        view = self._view_for(header.step)
        if view is not None and view.id == header.view:
            return False
        self._feed.cancelled(header)
        return True

    def _discard(self, step: int) -> None:
        current = self._rounds.pop(step)
        self._void.append((step, current.slot))

    def _view_for(self, step: int) -> View | None:
        return next((view for view in reversed(self._views) if step >= view.first_step), None)

    def open_round(self, view_id: int, step: int) -> None:
        """The own contribution to `step` may be sent, under this view."""
        self._open[step] = view_id
        self._send_own(step)

    def bucket_ready(self, step: int, segment: int, weight: float) -> None:
        """A segment of the contribution is complete while backward goes on.

        It waits for the rest where late workers are left out: bytes can't be taken back out of a sum.
        """
        if self._views and self._views[-1].straggler_limit_s:
            return
        own = self._own_for(step)
        own.weight = weight
        own.segments.add(segment)
        self._send_own(step)

    def send_contribution(self, view_id: int, step: int, weight: float, empty: bool) -> None:
        """The contribution is complete: send what has not been sent of it under this view."""
        if empty:
            return
        own = self._own_for(step)
        own.weight, own.whole = weight, True
        self._open[step] = view_id
        self._send_own(step)

    def _own_for(self, step: int) -> _Own:
        if self._own.step != step:
            self._own = _Own(step)
        return self._own

    def contribution_known(self, view_id: int, step: int, peer: str, empty: bool) -> None:
        """`peer` takes part in this attempt; with `empty`, no bytes come from it."""
        current = self._round(step, view_id)
        if current is None:
            return
        current.empty[peer] = empty
        if current.contributors() is not None:
            rank = self._rank(current.view)
            for piece in current.pieces if rank is not None else ():
                if piece.root == rank and current.summed(piece):
                    self._finalise(current, piece)

    def finish(self, step: int) -> None:
        """Step is final: from now on its result is only read."""
        self._finished = max(self._finished, step)
        current = self._rounds.pop(step, None)
        if current is not None:
            self._results[step] = current
        self._fetching.pop(step, None)
        self._open.pop(step, None)

    def release(self, step: int) -> None:
        """Results up to `step` are needed no more."""
        self._feed.release(step)
        self._released, ring = step, self._ring
        for done in [s for s in self._results if s <= step]:
            if ring is not None:
                ring.free(self._results.pop(done).slot)
        rested = [entry for entry in self._void if entry[0] < step]
        self._void = [entry for entry in self._void if entry[0] >= step]
        for _, slot in rested:
            if ring is not None:
                ring.free(slot)
        if self._overflow is not None:
            self._overflow.say()
        self._give_back()
        for opened in list(self._open):
            self._send_own(opened)
        self._outlet.resume_bulk()

    def _give_back(self) -> None:
        """Pages of free slots, in turn with all else: who gave 5 GB or more back at once heard nobody for 4 s."""
        if not self._giving and self._ring is not None and self._ring.has_stale_pages:
            self._giving = True
            asyncio.get_running_loop().call_soon(self._give_some_back)

    def _give_some_back(self) -> None:
        assert self._ring is not None
        self._giving = False
        self._ring.give_back()
        self._give_back()

    def move(self, step: int) -> None:
        """Results up to `step`, and no later ones, are needed by learners only: their memory is for others."""
        if self._overflow is not None:
            self._overflow.move(step)

    def slot(self, step: int) -> int:
        """Where in the ring the result of `step` lies now; 0 if it has no bytes, as nobody had any."""
        kept = self._kept(step)
        return kept.slot if kept is not None else 0

    def fetch(self, view_id: int, step: int) -> None:
        """The result of `step` will come from a member that finished it."""
        if step in self._rounds:
            self._discard(step)
        view = self._view_for(step)
        self._fetching[step] = Fetched(view_id, view.id if view is not None else 0)

    def _mark(self, step: int) -> int | None:
        """What frames of the result that is fetched for `step` bear; None if none is."""
        found = self._fetching.get(step)
        return found.mark if found is not None else None

    def serve(self, dst: str, view_id: int, step: int) -> None:
        """Send a kept result to a peer that lacks it."""
        done = self._results.get(step)
        if done is None:
            return
        batch = Batch(Kind.RESULT, view_id, step)
        if self._views and self._views[-1].learner(dst) is not None:
            self._feed.due(dst, (Due(batch, piece.index) for piece in done.pieces))
            return
        for piece in done.pieces:
            payload = done.result[piece.offset : piece.offset + piece.nbytes]
            self._outlet.send_bulk(dst, self._result_header(batch, piece, done), payload, urgent=True)

    @staticmethod
    def _result_header(batch: Batch, piece: Piece, done: Round) -> BulkHeader:
        return BulkHeader(Kind.RESULT, batch.mark, batch.step, piece.index, done.turn, 0.0, 0)

    def path_changed(self, peer: str, held: int) -> None:
        """What is for `peer` takes a new way: what may have been lost on the old one is sent again.

        Args:
            held: it said that it holds the results up to this step.
        """
        fed: list[Due] = []
        for due in self._finals_for(peer, held):
            kept = self._kept(due.batch.step)
            assert kept is not None
            if kept.view.member(peer) is not None and self._is_member(peer):
                self._send_final(kept, kept.pieces[due.number], peer)
            else:
                fed.append(due)
        self._feed.path_changed(peer, fed)
        own, view_id = self._own, self._open.get(self._own.step)
        current = self._rounds.get(own.step)
        if current is None or view_id is None:
            return
        for piece in current.pieces:
            if (view_id, piece.segment) in own.sent and current.view.members[piece.root].id == peer:
                self._send_piece(current, piece, own.weight)

    def _kept(self, step: int) -> Round | None:
        return self._results.get(step) or self._rounds.get(step)

    def _finals_for(self, peer: str, held: int) -> list[Due]:
        """Own final chunks that lie in memory, of rounds after step `held` in which `peer` has or had a part."""
        found = []
        for kept in [*self._results.values(), *self._rounds.values()]:
            if kept.step <= held:
                continue
            there = self._ring is not None and not self._ring.is_on_disk(kept.slot) and kept.view.knows(peer)
            rank = self._rank(kept.view) if there and not kept.fetched else None
            mine = [piece.index for piece in kept.pieces if piece.root == rank and piece.index in kept.final]
            found += [Due(Batch(Kind.FINAL, kept.view.id, kept.step), index) for index in mine]
        return found

    # --- rounds --------------------------------------------------------------------------------------------

    def _pieces(self, shares: tuple[int, ...]) -> tuple[Piece, ...]:
        assert self._layout is not None
        if shares not in self._cuts:
            self._cuts = dict(list(self._cuts.items())[-CUTS:])
            self._cuts[shares] = cut(self._layout, shares)
        return self._cuts[shares]

    def _round(self, step: int, view_id: int) -> Round | None:
        """The attempt at `step` under this view, if that is the one that counts."""
        view = self._view_for(step)
        if view is None or view.id != view_id or step <= self._finished or step in self._fetching:
            return None
        current = self._rounds.get(step)
        return current if current is not None else self._begin(step, view, view.root_shares())

    def _begin(self, step: int, view: View, shares: tuple[int, ...], fetched: bool = False) -> Round | None:
        if self._ring is None:
            return None
        if self._learns and not self._within_room(step):
            return None
        slot = self._ring.allocate()
        if slot is None and self._overflow is not None and (self._learns or self._is_awaited(step)):
            slot = self._overflow.allocate()
        if slot is None:
            return None
        assert self._layout is not None
        result = self._ring.slot_view(slot)[: self._layout.nbytes]
        current = self._rounds[step] = Round(view, step, self._pieces(shares), sum(shares), slot, result, fetched)
        return current

    @property
    def _learns(self) -> bool:
        return bool(self._views) and self._views[-1].learner(self._me) is not None

    def _is_awaited(self, step: int) -> bool:
        """Whether later results are here, which a member that was a learner has ahead: they leave only after this."""
        return any(later > step for later in (*self._results, *self._rounds))

    def _within_room(self, step: int) -> bool:
        """A learner has room for the next results only: later ones would take that of those it needs first."""
        assert self._ring is not None
        first = self._released or min(self._rounds, default=step) - 1
        return step <= first + self._ring.slots + self._ring.disk_slots

    def _rank(self, view: View) -> int | None:
        return next((rank for rank, m in enumerate(view.members) if m.id == self._me), None)

    # --- sending -------------------------------------------------------------------------------------------

    def _send_own(self, step: int) -> None:
        own, view_id = self._own, self._open.get(step)
        if own.step != step or view_id is None or self._contribution is None:
            return
        current = self._round(step, view_id)
        if current is None:
            return
        for segment in range(len(self._layout.segments) if self._layout else 0):
            if (own.whole or segment in own.segments) and (view_id, segment) not in own.sent:
                own.sent.add((view_id, segment))
                self._send_segment(current, segment, own.weight)

    def _send_segment(self, current: Round, segment: int, weight: float) -> None:
        assert self._contribution is not None
        mine = self._rank(current.view)
        for piece in current.pieces:
            if piece.segment != segment:
                continue
            if piece.root == mine:
                self._adds.append((current, piece, weight))
                continue
            self._send_piece(current, piece, weight)
        if self._adds and not self._adding:
            self._adding = True
            asyncio.get_running_loop().call_soon(self._add_own)

    def _send_piece(self, current: Round, piece: Piece, weight: float) -> None:
        assert self._contribution is not None
        payload = self._contribution[piece.offset : piece.offset + piece.nbytes]
        if piece.wire_dtype != piece.dtype:
            payload = narrow(widen(payload, piece.dtype), piece.wire_dtype)
        header = BulkHeader(Kind.CONTRIBUTION, current.view.id, current.step, piece.index, 0, weight, 0)
        self._outlet.send_bulk(current.view.members[piece.root].id, header, payload, urgent=True)

    def _add_own(self) -> None:
        """Sum own chunks a few at a time, so that the loop stays responsive while frames are on their way."""
        batch, self._adds = self._adds[:ADDS_PER_TURN], self._adds[ADDS_PER_TURN:]
        assert self._contribution is not None
        for current, piece, weight in batch:
            if self._rounds.get(current.step) is not current:
                continue
            payload = self._contribution[piece.offset : piece.offset + piece.nbytes]
            values = widen(payload, piece.dtype)
            if piece.wire_dtype != piece.dtype:
                values = widen(narrow(values, piece.wire_dtype), piece.wire_dtype)
            self._add(current, piece, self._me, values, weight)
        self._adding = bool(self._adds)
        if self._adding:
            asyncio.get_running_loop().call_soon(self._add_own)

    def _add(self, current: Round, piece: Piece, peer: str, values: Array, weight: float) -> None:
        current.add(piece, peer, values, weight)
        if current.summed(piece):
            self._finalise(current, piece)

    def _finalise(self, current: Round, piece: Piece) -> None:
        current.finish(piece)
        for info in current.view.everybody():
            if info.id != self._me:
                self._send_final(current, piece, info.id)
        self._maybe_complete(current)

    def _send_final(self, current: Round, piece: Piece, peer: str) -> None:
        """Members hold a result's memory in place until all of them have it; learners are fed behind their shards, and
        who has become a member since before all else.

        Where a step is mostly communication results would fill a learner's links, and the shards would never come.
        """
        if current.view.member(peer) is not None:
            header, payload = self._final(current, piece)
            self._outlet.send_bulk(peer, header, payload, urgent=True)
        elif current.view.learner(peer) is not None:
            self._feed.due(peer, (Due(Batch(Kind.FINAL, current.view.id, current.step), piece.index),))

    @staticmethod
    def _final(current: Round, piece: Piece) -> tuple[BulkHeader, memoryview]:
        payload = current.result[piece.offset : piece.offset + piece.nbytes]
        if piece.wire_dtype != piece.dtype:
            payload = memoryview(narrow(widen(payload, piece.dtype), piece.wire_dtype))
        return BulkHeader(Kind.FINAL, current.view.id, current.step, piece.index, 0, 0.0, current.culprits), payload

    def _chunk(self, due: Due) -> tuple[BulkHeader, bytes] | None:
        """For the feed: a final chunk of an attempt that counts, or a chunk of a kept result."""
        kept = self._kept(due.batch.step)
        if kept is None or due.number not in kept.final:
            return None
        piece = kept.pieces[due.number]
        if due.batch.kind == Kind.RESULT:
            header = self._result_header(due.batch, piece, kept)
            return header, bytes(kept.result[piece.offset : piece.offset + piece.nbytes])
        if kept.view.id != due.batch.mark:
            return None
        header, payload = self._final(kept, piece)
        return header, bytes(payload)

    def _unsent(self, dst: str, batch: Batch) -> None:
        """Who asked for a result has to ask somebody else; of one that it follows, it will find out that it lacks."""
        if batch.kind == Kind.RESULT:
            asyncio.get_running_loop().call_soon(self._happened, ResultUnsent(dst, batch.step))

    def _maybe_complete(self, current: Round) -> None:
        if current.complete and not current.reported:
            current.reported = True
            mark = self._mark(current.step)
            view_id = current.view.id if mark is None else mark
            self._happened(RoundComplete(view_id, current.step, current.digest(), current.nonfinite()))

    # --- receiving -----------------------------------------------------------------------------------------

    def sink(self, header: BulkHeader) -> memoryview | Verdict:
        """Where a frame's payload goes. Raises RemoteProtocolError for one that no honest peer sends."""
        if not self._views or header.view > self._views[-1].id or self._ring is None:
            return Verdict.PAUSE
        if header.kind == Kind.RESULT:
            return self._result_sink(header)
        view = self._view_for(header.step)
        if view is None or view.id != header.view or header.step <= self._finished or header.step in self._fetching:
            return Verdict.DISCARD
        if view.member(header.src) is None:
            return Verdict.DISCARD
        current = self._round(header.step, header.view)
        if current is None:
            return self._no_room(header.step)
        piece = self._piece(current, header)
        root = current.view.members[piece.root].id
        if header.kind == Kind.CONTRIBUTION:
            if root != self._me:
                raise RemoteProtocolError(f"a contribution to chunk {piece.index} came to a peer that is not its root")
            if piece.index in current.final or header.src in current.arrived.get(piece.index, ()):
                return Verdict.DISCARD
            return self._buffers.take(header.length)
        if root != header.src:
            raise RemoteProtocolError(f"final chunk {piece.index} came from a peer that is not its root")
        if piece.index in current.final:
            return Verdict.DISCARD
        if piece.wire_dtype != piece.dtype:
            return self._buffers.take(header.length)
        return current.result[piece.offset : piece.offset + piece.nbytes]

    def _no_room(self, step: int) -> Verdict:
        """A member's lanes wait, as all are in step; a learner's lanes bring its state too, and must not."""
        if not self._learns or self._overflow is None:
            return Verdict.PAUSE
        self._overflow.dropped(step)
        return Verdict.DISCARD

    def _piece(self, current: Round, header: BulkHeader) -> Piece:
        if header.index >= len(current.pieces):
            raise RemoteProtocolError(f"chunk {header.index} of {len(current.pieces)}")
        piece = current.pieces[header.index]
        expected = piece.nbytes if header.kind == Kind.RESULT else piece.wire_nbytes
        if header.length != expected:
            raise RemoteProtocolError(f"chunk {header.index} has {header.length} bytes instead of {expected}")
        if header.kind == Kind.CONTRIBUTION and not 0 <= header.weight < float("inf"):
            raise RemoteProtocolError(f"chunk {header.index} has the weight {header.weight}")
        return piece

    def _result_sink(self, header: BulkHeader) -> memoryview | Verdict:
        view = self._view_for(header.step)
        if self._mark(header.step) != header.view or view is None or not 1 <= header.aux <= 1024:
            return Verdict.DISCARD
        current = self._rounds.get(header.step) or self._begin(header.step, view, (header.aux,), fetched=True)
        if current is None:
            return self._no_room(header.step)
        piece = self._piece(current, header)
        if piece.index in current.final:
            return Verdict.DISCARD
        return current.result[piece.offset : piece.offset + piece.nbytes]

    def received(self, header: BulkHeader, payload: memoryview) -> None:
        """A payload has arrived where `sink` said; by now its attempt may be void."""
        current = self._rounds.get(header.step)
        if header.kind == Kind.RESULT:
            if current is not None and self._mark(header.step) == header.view:
                current.mark_final(self._piece(current, header))
                self._arrived(current)
            return
        if current is None or current.view.id != header.view or header.step in self._fetching:
            return
        piece = self._piece(current, header)
        if header.kind == Kind.CONTRIBUTION:
            self._add(current, piece, header.src, widen(payload, piece.wire_dtype), header.weight)
            self._buffers.give_back(payload)
            return
        if piece.index in current.final:
            return
        if piece.wire_dtype != piece.dtype:
            wide = widen(payload, piece.wire_dtype)
            current.result[piece.offset : piece.offset + piece.nbytes] = wide.data.cast("B")
            self._buffers.give_back(payload)
        current.culprits |= header.tag
        current.mark_final(piece)
        self._arrived(current)

    def _arrived(self, current: Round) -> None:
        """A chunk of this result came from another peer."""
        self._maybe_complete(current)
        now = asyncio.get_running_loop().time()
        if not current.reported and current.step == self._finished + 1 and now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            self._happened(ResultComes(current.step))
