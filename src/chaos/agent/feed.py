"""Results on their way to learners: a little at a time, from where they are kept.

Nobody waits for a learner's results, so they queue behind the shards of its state, and a slow link has many of them
waiting. They wait by name: bytes are copied when their turn comes, or when the result is about to be let go. Once the
learner is a member all wait for its first contribution, and it for these results: what is left goes first then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from chaos.agent.transport import BulkHeader

AHEAD_BYTES = 8 * 2**20
"""So much for one learner is in the transport at a time: 40 ms at 200 MB/s, more than it takes to give it the next."""
COPIED_BYTES = 2**30
"""Copies of results that are let go before they were sent, for all learners together. Of what is beyond, nothing is
sent: a learner fetches it, or takes a newer snapshot."""


class Outlet(Protocol):
    """What the feed needs of the transport."""

    def send_bulk(
        self,
        dst: str,
        header: BulkHeader,
        payload: memoryview | bytes,
        urgent: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> bool: ...


class Batch(NamedTuple):
    """A result that somebody is to get. `mark` is the view id that its frames bear."""

    kind: int
    mark: int
    step: int


class Due(NamedTuple):
    """A chunk of it."""

    batch: Batch
    number: int


def _due(header: BulkHeader) -> Due:
    return Due(Batch(header.kind, header.view, header.step), header.index)


Chunk = Callable[[Due], tuple[BulkHeader, bytes] | None]
"""Gives a chunk's header and a copy of its bytes; None if the result is not kept any more."""


@dataclass
class _Learner:
    waiting: dict[Batch, deque[int]] = field(default_factory=dict)
    ahead: dict[Due, int] = field(default_factory=dict)
    """What the transport has, and how many bytes of each."""
    hurried: bool = False
    """What the transport has was queued as for a member."""
    turn: int = 0
    """Increases with each new way to this learner: what is confirmed of an old one is not counted."""

    def add(self, dues: Iterable[Due]) -> None:
        for due in dues:
            self.waiting.setdefault(due.batch, deque()).append(due.number)

    def put_back(self, dues: Iterable[Due]) -> None:
        """Before all others."""
        later, self.waiting = self.waiting, {}
        self.add(dues)
        for batch, indices in later.items():
            self.waiting.setdefault(batch, deque()).extend(indices)

    def keep_only(self, copies: Mapping[Batch, Container[int]], batches: Iterable[Batch]) -> list[Batch]:
        """Of these batches, what there are copies of. Returns those that lack something then."""
        lacking = []
        for batch in batches:
            before = self.waiting.get(batch, ())
            left = deque(index for index in before if index in copies[batch])
            if len(left) < len(before):
                lacking.append(batch)
            if left:
                self.waiting[batch] = left
            else:
                self.waiting.pop(batch, None)
        return lacking

    def next(self) -> Due:
        batch, indices = next(iter(self.waiting.items()))
        index = indices.popleft()
        if not indices:
            del self.waiting[batch]
        return Due(batch, index)


class Feed:
    """All that this peer has to send to learners, besides shards."""

    def __init__(
        self,
        outlet: Outlet,
        chunk: Chunk,
        unsent: Callable[[str, Batch], None],
        is_member: Callable[[str], bool],
    ) -> None:
        """`unsent` is called where something of a result was let go before a learner had it."""
        self._outlet = outlet
        self._chunk = chunk
        self._unsent = unsent
        self._is_member = is_member
        self._learners: dict[str, _Learner] = {}
        self._copies: dict[Batch, dict[int, tuple[BulkHeader, bytes]]] = {}
        self.copied_bytes = 0

    def due(self, dst: str, chunks: Iterable[Due]) -> None:
        """These are to be sent to `dst`, after what waits already."""
        self._learners.setdefault(dst, _Learner()).add(chunks)
        self._pump(dst)

    def keep_only(self, known: Callable[[str], bool]) -> None:
        """Forget those that are not in the run any more."""
        for dst in [dst for dst in self._learners if not known(dst)]:
            del self._learners[dst]
        self._forget_copies(list(self._copies))

    def cancelled(self, header: BulkHeader) -> None:
        """A frame that the transport had was taken out of its queue."""
        learner = self._learners.get(header.dst)
        if learner is not None:
            learner.ahead.pop(_due(header), None)

    def hurry(self, drop: Callable[[Callable[[BulkHeader], bool]], object]) -> None:
        """Who of them is a member now is waited for: also what the transport has of theirs goes before other things.

        Args:
            drop: takes those of this peer's queued frames out of the transport whose header fits.
        """
        for dst, learner in self._learners.items():
            if learner.hurried != self._is_member(dst):
                learner.hurried = not learner.hurried
                taken: list[Due] = []
                drop(self._take_back(dst, learner, taken))
                learner.put_back(taken)
                self._pump(dst)

    def _take_back(self, dst: str, learner: _Learner, taken: list[Due]) -> Callable[[BulkHeader], bool]:
        """Finds what the transport has for this learner, if it is kept here still, and notes it."""

        def is_theirs(header: BulkHeader) -> bool:
            due = _due(header)
            if header.dst != dst or due not in learner.ahead or self._chunk(due) is None:
                return False
            del learner.ahead[due]
            taken.append(due)
            return True

        return is_theirs

    def path_changed(self, dst: str, again: Sequence[Due]) -> None:
        """What is under way to `dst` may be lost: `again`, and what the transport had, is sent before all others."""
        if not again and dst not in self._learners:
            return
        learner = self._learners.setdefault(dst, _Learner())
        learner.turn += 1
        lost, learner.ahead = dict.fromkeys([*learner.ahead, *again]), {}
        learner.put_back([due for due in lost if due.number not in learner.waiting.get(due.batch, ())])
        self._pump(dst)

    def release(self, step: int) -> None:
        """Results up to `step` are about to be let go: copy what is still to be sent, as far as that may be."""
        wanted: dict[Batch, dict[int, None]] = {}
        for learner in self._learners.values():
            for batch, indices in learner.waiting.items():
                if batch.step <= step and batch not in self._copies:
                    wanted.setdefault(batch, {}).update(dict.fromkeys(indices))
        for batch, wants in wanted.items():
            copies = self._copies[batch] = {}
            for index in wants:
                found = self._chunk(Due(batch, index))
                if found is not None and self.copied_bytes + len(found[1]) <= COPIED_BYTES:
                    copies[index] = found
                    self.copied_bytes += len(found[1])
        for dst, learner in self._learners.items() if wanted else ():
            for batch in learner.keep_only(self._copies, wanted):
                self._unsent(dst, batch)
        self._forget_copies(list(wanted))

    def _forget_copies(self, batches: list[Batch]) -> None:
        """Of these, all that nobody waits for."""
        for batch in batches:
            if not any(batch in learner.waiting for learner in self._learners.values()):
                self.copied_bytes -= sum(len(payload) for _, payload in self._copies.pop(batch).values())

    def _pump(self, dst: str) -> None:
        learner = self._learners.get(dst)
        while learner is not None and learner.waiting and sum(learner.ahead.values()) < AHEAD_BYTES:
            due = learner.next()
            copies = self._copies.get(due.batch)
            found = copies.get(due.number) if copies is not None else self._chunk(due)
            if found is None or due in learner.ahead:
                continue
            header, payload = found
            learner.ahead[due] = len(payload)
            sent = self._sent(dst, learner, due)
            if not self._outlet.send_bulk(dst, header, payload, urgent=self._is_member(dst), on_sent=sent):
                del learner.ahead[due]  # no way there now; `path_changed` says when there is
                learner.put_back([due])
                return
            if copies is not None:
                self._forget_copies([due.batch])

    def _sent(self, dst: str, learner: _Learner, due: Due) -> Callable[[], None]:
        turn = learner.turn

        def sent() -> None:
            if learner.turn == turn:
                learner.ahead.pop(due, None)
                self._pump(dst)

        return sent
