"""Who was cut off, and comes back with a worker whose state is only a few steps old.

The others keep the results since for a while. If these are fewer bytes than a snapshot, and it stood on the run's
lineage, it goes on from what it holds: nothing of the state travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos.core.context import Context, Role
from chaos.core.lineage import OwnState
from chaos.core.messages import DonorReady
from chaos.core.types import View
from chaos.planning.returning import Start, choose_start, worth_keeping

if TYPE_CHECKING:
    from chaos.core.node import Node


FEW_VIEWS = 16
"""Who was away for more takes a snapshot: the views since travel in one message, and one of 1000 peers has 180 KB."""


@dataclass
class Left:
    """A peer that a view left out for its silence."""

    incarnation: int
    step: int
    """The last step that it is known to hold."""
    views: list[View]
    """Those that govern the steps since, oldest first."""


class Returning:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._left: dict[str, Left] = {}

    def reset(self) -> None:
        """This peer is cut off itself: it has nothing for others."""
        self._left.clear()

    # --- those that stayed ---------------------------------------------------------------------------------

    def on_lost(self, peers: Iterable[str], before: View) -> None:
        """The view that was just installed leaves these out, although nobody knows that they are dead."""
        steps = self._node.steps
        for peer in peers:
            info = before.member(peer) or before.learner(peer)
            if info is not None and self._ctx.role == Role.MEMBER:
                step = min(steps.held_by(peer), steps.finished)
                self._left[peer] = Left(info.incarnation, step, list(self._ctx.views))

    def installed(self, view: View) -> None:
        """Forget who is a member again, started anew, or is away for too many views."""
        for left in self._left.values():
            if left.views[-1] is not view:
                left.views.append(view)
        self._left = {
            peer: left
            for peer, left in self._left.items()
            if view.member(peer) is None
            and len(left.views) <= FEW_VIEWS
            and ((info := view.learner(peer)) is None or info.incarnation == left.incarnation)
        }

    def floor(self, finished: int) -> int:
        """Results from this step on are kept for those that were cut off; `finished` if for none."""
        self._left = {peer: left for peer, left in self._left.items() if finished - left.step <= self._worth(left)}
        return min((left.step for left in self._left.values()), default=finished)

    def _worth(self, left: Left) -> int:
        """So many results are kept for it at most.

        In the ring they share half of the slots with those of void attempts, which rest until their step is released.
        """
        worker = self._node.worker.known
        result_bytes = worker.layout.nbytes if worker is not None else 1
        room = self._ctx.kept_results - sum(view.abort for view in left.views)
        return worth_keeping(self._node.donor.state_bytes, result_bytes, max(0, room))

    def views_since(self, peer: str, step: int, head: bytes) -> tuple[View, ...]:
        """The views since `step`, if `peer` stood on this lineage there and all results since are kept here."""
        left, steps = self._left.get(peer), self._node.steps
        if left is None or not head or step > steps.stable or steps.head_of(step) != head:
            return ()
        if any(later not in steps.history for later in range(step + 1, steps.finished + 1)):
            return ()
        return tuple(left.views) if left.views[0].first_step <= step + 1 else ()

    def forget(self, peer: str) -> None:
        """It takes a snapshot."""
        self._left.pop(peer, None)

    # --- the one that comes back ---------------------------------------------------------------------------

    def own_state(self) -> OwnState | None:
        """What the own worker holds of the run right now, if anybody could go on from it."""
        worker, steps = self._node.worker.worker, self._node.steps
        if worker is None or worker.applied is None or worker.loading or worker.behind or worker.by_hand:
            return None
        if worker.script_ended or not steps.head:
            return None
        if worker.applied == steps.finished:
            return OwnState(worker.applied, steps.head, steps.data)
        done = steps.history.get(worker.applied)
        return OwnState(done.step, done.head, done.data) if done is not None else None

    def choose(self, ready: Mapping[str, DonorReady]) -> tuple[OwnState, Start, list[str]] | None:
        """Whether to go on from the own worker's state, with the members that keep what it lacks; None if it has none.

        Args:
            ready: what the members answered that were asked.
        """
        worker = self._node.worker.worker
        own = worker.former if worker is not None else None
        if worker is None or own is None or self._node.steps.head:
            return None
        keepers = [peer for peer, answer in ready.items() if answer.since]
        if not keepers:
            return own, Start(False, f"no member keeps what its worker's state of step {own.step} lacks"), []
        missed = max(0, max(ready[peer].finished for peer in keepers) - own.step)
        state_bytes = max(answer.state_bytes for answer in ready.values())
        return own, choose_start(state_bytes, worker.layout.nbytes, missed), keepers
