"""What all parts of a node share: who it is, where the run stands, and the actions that pile up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from chaos.core.actions import AnyAction, Send, Trace
from chaos.core.detector import DetectorConfig
from chaos.core.messages import PeerMessage
from chaos.core.succession import Wishes
from chaos.core.types import PeerInfo, View


class Role(StrEnum):
    JOINER = "joiner"
    LEARNER = "learner"
    MEMBER = "member"
    LEAVER = "leaver"
    """No member of the present view any more, with steps of the older one to see stable."""


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    verify: Callable[[bytes, bytes, bytes], bool]
    """(public key, signature, data) -> whether the signature is that key's."""
    min_peers: int = 1
    """The founder opens the first round only with so many members."""
    straggler_limit_s: float | None = None
    """Founder: `View.straggler_limit_s` (None: 0). A joiner with a value is refused where the run has another."""
    tick_s: float = 0.02
    """Resolution of all time-outs; an agent's tick costs 20 microseconds."""
    takeover_s: float = 0.3
    """A member of rank k proposes itself after k times this. A guess: some agreement rounds on a slow WAN."""
    repeat_s: float = 1.0
    """While nothing moves, what a lost link may have swallowed is said again so often. Ten small messages."""
    linger_s: float = 10.0
    """How long a peer that is through waits to hear that its last step is stable."""
    snapshot_timeout_s: float = 15.0
    """How long a learner waits for a snapshot that is due. A guess: copying and hashing some 10 GB."""
    probe_s: float = 0.3
    """How long an unlinked peer may be silent to a probe before it is suspected. A guess, as above."""
    join_retry_s: float = 1.0
    join_attempts: int = 20
    """How often a joiner asks again where the cause of a refusal may pass (an old incarnation not yet gone)."""
    flap_window_s: float = 300.0
    """For so long it is remembered that a peer was lost."""
    flap_first_s: float = 5.0
    """A peer that was lost twice within that time is not let in for so long, then twice as long each time. Without
    it, two hosts with a link of 1 s up, 0.5 s down made 120 views a minute; docs/protocol.md has the table."""
    flap_limit_s: float = 30.0
    """The longest that a peer is kept out: it must find its way back within a minute once its link is good."""
    shard_bytes: int = 0
    """Of a snapshot. 0: by the size of the state, see `planning.shards.shard_size`."""
    promote_lag_s: float = 0.5
    """A ready learner is promoted if it holds what was finished so long ago, or all but one step. Its first step
    waits for what it lacks, so this bounds the stall; less than a WAN's latency would shut out who lags by that."""
    keep_for_lost_s: float = 30.0
    """For so long a donor keeps the snapshot of a learner that was lost, unless the memory is wanted: a restart and
    two views take a few seconds. It lets go earlier once results since are kept no more."""
    together_s: float = 0.2
    """A learner that is ready waits so long for others to be so too: a view costs a round of messages, and a first step
    that waits for what the new member lacks. Little beside the seconds that a join takes."""
    retain_results: int = 32
    """So many results are kept in memory for who is behind, and for learners more on disk, as far as there is room; one
    that lags more than that takes a newer snapshot."""
    donor_wait_s: float = 1.0
    """How long a joiner waits for further donors once one is ready."""
    shard_timeout_s: float = 5.0
    """A donor that delivers no shard for so long gives up its rest to the others."""
    pause_limit_s: float = 30.0
    """The longest a learner may have the members wait where replaying results does not work. A guess."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes none."""
    verify_attempts: int = 3
    """How often a learner whose state differs fetches it anew before it gives up."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)


@dataclass
class Context:
    """Mutable state that every part of the node may read; each field has one part that writes it."""

    config: NodeConfig
    me: PeerInfo
    run: str = ""
    role: Role = Role.JOINER
    views: list[View] = field(default_factory=list)
    """Views under which rounds may still run, oldest first; the last one is installed."""
    past: tuple[View, ...] = ()
    """Older views still, under which steps ran whose results a learner takes over; of no other use."""
    wishes: Wishes = field(default_factory=Wishes)
    linked: dict[str, PeerInfo] = field(default_factory=dict)
    """Peers with a direct link."""
    result_slots: int = 64
    """Results for which this peer has memory."""
    disk_slots: int = 0
    """Further results for which it has disk."""
    now: float = 0.0
    out: list[AnyAction] = field(default_factory=list)
    loopback: list[PeerMessage] = field(default_factory=list)
    """Messages to myself, handled before `Node.handle` returns."""

    @property
    def kept_results(self) -> int:
        """Results that are kept in memory for who is behind: half of what it holds, lest the run finds none."""
        return min(self.config.retain_results, self.result_slots // 2)

    @property
    def kept_for_learners(self) -> int:
        """Results that are kept for learners, in memory or on disk."""
        return self.kept_results + self.disk_slots

    @property
    def id(self) -> str:
        return self.me.id

    @property
    def view(self) -> View:
        """The installed view."""
        return self.views[-1]

    def follows(self, view: View) -> bool:
        """Whether `view` is of this peer's lineage, or of one that took its place."""
        return view.lineage == self.view.lineage or view.replaces(self.view.lineage, self.view.id)

    def departing(self) -> tuple[PeerInfo, ...]:
        """Members of older views that have left the installed one, but owe their part in steps before it."""
        if self.view.abort:
            return ()
        staying = set(self.view.member_ids())
        found = {info.id: info for view in self.views[:-1] for info in view.members if info.id not in staying}
        return tuple(found.values())

    def seat(self, peer: str) -> PeerInfo | None:
        """How the run knows `peer`: as member or learner of the installed view, or as one that departs."""
        seated = self.view.member(peer) or self.view.learner(peer)
        return seated or next((info for info in self.departing() if info.id == peer), None)

    def is_present(self, peer: str, linked: PeerInfo | None) -> bool:
        """Not a newer (or older) incarnation than the one that has a part in the run."""
        if linked is None:
            return True
        for view in reversed(self.views):
            if (info := view.member(peer) or view.learner(peer)) is not None:
                return info.incarnation == linked.incarnation
        return True

    def is_member(self, peer: str) -> bool:
        """Whether `peer`, as linked now, is a member of the installed view."""
        present = bool(self.views) and self.view.member(peer) is not None
        return present and self.is_present(peer, self.linked.get(peer))

    def takes_part(self, peer: str) -> bool:
        """Whether `peer` is a member or learner of a view under which steps may still run."""
        linked = self.linked.get(peer)
        for view in reversed(self.views):
            if (info := view.member(peer) or view.learner(peer)) is not None:
                return linked is None or info.incarnation == linked.incarnation
        return False

    def emit(self, action: AnyAction) -> None:
        self.out.append(action)

    def send(self, dst: str, message: PeerMessage) -> None:
        if dst == self.me.id:
            self.loopback.append(message)
        else:
            self.out.append(Send(dst, message))

    def send_all(self, peers: Iterable[str], message: PeerMessage) -> None:
        """Send to each of `peers` but me, each once, in their order."""
        for peer in dict.fromkeys(peers):
            if peer != self.me.id:
                self.out.append(Send(peer, message))

    def trace(self, kind: str, **fields: Any) -> None:
        self.out.append(Trace(kind, fields))

    def name(self, peer: str) -> str:
        """A peer's name for people, or its id where the name is not known."""
        for view in reversed(self.views):
            for info in view.everybody():
                if info.id == peer:
                    return info.name
        info_or_none = self.linked.get(peer) or self.wishes.admit.get(peer)
        return info_or_none.name if info_or_none else peer

    def view_for(self, step: int) -> View | None:
        """The view under which the round of `step` runs, as far as known."""
        for known in (self.views, self.past):
            for view in reversed(known):
                if step >= view.first_step:
                    return view
        return None
