"""How a peer comes in: a joiner's request, a member's check, and the refusals with their reasons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from chaos.core.actions import Connect
from chaos.core.context import Context, Role
from chaos.core.departure import REFUSED
from chaos.core.errors import RemoteProtocolError
from chaos.core.messages import Admit, Decide, JoinRefused, JoinRequest
from chaos.core.types import MAX_SEATS, Fingerprint, PeerInfo, View
from chaos.core.watch import SMALL

if TYPE_CHECKING:
    from chaos.core.node import Node


def difference(ours: Fingerprint, theirs: Fingerprint) -> str:
    """What keeps a joiner's script from training with the run's, in one line; '' if nothing does."""
    mine = {t.name: t for t in ours.tensors}
    other = {t.name: t for t in theirs.tensors}
    for name, spec in mine.items():
        found = other.get(name)
        if found is None:
            return f"the model has no tensor '{name}', which the run's has with shape {list(spec.shape)}"
        if (found.shape, found.dtype) != (spec.shape, spec.dtype):
            return f"tensor '{name}' is {found.dtype}{list(found.shape)}, the run's is {spec.dtype}{list(spec.shape)}"
    extra = next((name for name in other if name not in mine), None)
    if extra is not None:
        return f"the model has a tensor '{extra}' that the run's has not"
    if [t.name for t in ours.tensors] != [t.name for t in theirs.tensors]:
        return "the model's tensors are in another order than the run's"
    if ours.tied != theirs.tied:
        return f"tied tensors are {list(theirs.tied)}, the run's are {list(ours.tied)}"
    if (extra := _extras_difference(ours, theirs)) != "":
        return extra
    for what, a, b in (
        ("optimizer", ours.optimizer, theirs.optimizer),
        ("session options", ours.options, theirs.options),
        ("torch version", ours.torch, theirs.torch),
    ):
        if a != b:
            return f"{what} is {b}, the run's is {a}"
    return ""


def _extras_difference(ours: Fingerprint, theirs: Fingerprint) -> str:
    """How the extras of the joiner's session differ from those of the run's, in one line; '' if they don't."""
    mine, other = ({t.name: t for t in side.extras} for side in (ours, theirs))
    for name in (*mine, *other):
        short, a, b = name.removeprefix("extras/"), mine.get(name), other.get(name)
        if b is None:
            return f"the session lacks the extra '{short}', which the run's has (extras={{...}})"
        if a is None:
            return f"the session has an extra '{short}' that the run's has not"
        if a != b:
            return f"the extra '{short}' is {b.dtype}{list(b.shape)}, the run's is {a.dtype}{list(a.shape)}"
    return ""


class Admission:
    """Both ends of a join: what a joiner asks, and what a member answers."""

    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._attempts = 0
        self._next_request = 0.0
        self._last_refusal = "no member answered"
        self._losses: dict[str, list[float]] = {}
        """When peers were last left out because nobody heard them."""

    # --- the joiner ----------------------------------------------------------------------------------------

    def tick(self) -> None:
        worker = self._node.worker.worker
        if self._ctx.role != Role.JOINER or worker is None or not self._ctx.linked:
            return
        if self._ctx.now < self._next_request:
            return
        self._next_request = self._ctx.now + self._ctx.config.join_retry_s
        if self._ctx.run:
            self._attempts += 1  # whoever is asked before may be waiting for the run itself
        if self._attempts > self._ctx.config.join_attempts:
            self._node.departure.stop(REFUSED, f"the run did not admit this peer: {self._last_refusal}")
            return
        request = JoinRequest(self._ctx.me, worker.fingerprint, worker.layout, self._ctx.run)
        linked = sorted(self._ctx.linked)
        first = (self._attempts - 1) * SMALL % len(linked) if len(linked) > SMALL else 0
        asked = (*linked[first:], *linked[:first])[:SMALL]
        if (left := self._node.left) is not None:  # who voted for it and heard no more can let nobody in till then
            self._ctx.send_all((peer for peer in asked if left.knows(peer)), Decide(left))
        self._ctx.send_all(asked, request)

    def learn_addresses(self, view: View) -> None:
        """A view that this joiner is not in: its members may be asked too."""
        for info in view.members:
            if info.id != self._ctx.id:
                self.remember(info)

    def disagreement(self, view: View) -> str:
        """How this joiner's own setting for late workers differs from the run's, in one line; '' if it does not."""
        mine, its = self._ctx.config.straggler_limit_s, view.straggler_limit_s
        if mine is None or mine == its:
            return ""

        def told(limit_s: float) -> str:
            return f"--straggler skip --straggler-limit {limit_s:g}" if limit_s else "--straggler wait"

        return f"the run was founded with {told(its)}, not {told(mine)}; leave the option out"

    def remember(self, info: PeerInfo) -> None:
        """Keep a link to this peer while joining."""
        self._ctx.emit(Connect(info))

    def ask_soon(self) -> None:
        self._next_request = self._ctx.now

    def linked(self) -> None:
        """A link stands: its other end is asked at once, unless enough were asked already."""
        if len(self._ctx.linked) <= SMALL:
            self.ask_soon()
            self.tick()

    def admitted(self) -> None:
        self._attempts = 0

    def on_refused(self, src: str, message: JoinRefused) -> None:
        if self._ctx.role != Role.JOINER:
            return
        if message.run:
            self._node.learn_run(message.run)
            return
        self._last_refusal = message.reason
        self._ctx.trace("refused", peer=self._ctx.name(src), reason=message.reason, final=not message.retry)
        if not message.retry:
            self._node.departure.refuse(message.reason)
        elif message.wait_s:
            self._attempts = 0
            self._next_request = max(self._next_request, self._ctx.now + message.wait_s)

    # --- the member ----------------------------------------------------------------------------------------

    def on_request(self, src: str, message: JoinRequest) -> None:
        if not message.run and self._ctx.run:
            self._ctx.send(src, JoinRefused("it did not name the run", retry=True, run=self._ctx.run))
            return
        if not self._ctx.views or self._ctx.role == Role.JOINER:
            return
        linked = self._ctx.linked.get(src)
        if linked is None or linked.incarnation != message.info.incarnation:
            return  # it was said over a link that is no more
        if (linked.id, linked.party, linked.key) != (message.info.id, message.info.party, message.info.key):
            raise RemoteProtocolError(f"a request to join as {message.info.name} over the link of {linked.name}")
        view = self._ctx.view
        learner = view.learner(src)
        if self._ctx.role != Role.MEMBER or (learner and learner.incarnation == message.info.incarnation):
            self._ctx.send(src, Decide(view))
            return
        refusal = self._refusal(message)
        if refusal is not None:
            self._ctx.trace("join_refused", peer=message.info.name, reason=refusal.reason)
            self._ctx.send(src, refusal)
            return
        self.on_admit(Admit(message.info))
        self._ctx.send_all(view.member_ids(), Admit(message.info))

    def on_admit(self, message: Admit) -> None:
        """A member checked this joiner: whoever proposes next lets it in."""
        if not self._ctx.views or self._ctx.view.member(message.info.id) is not None:
            return
        learner = self._ctx.view.learner(message.info.id)
        if learner is not None and learner.incarnation >= message.info.incarnation:
            return
        if self.held_out_s(message.info.id) > 0:
            return
        known = self._ctx.wishes.admit.get(message.info.id)
        if known is not None and known.incarnation > message.info.incarnation:
            return
        if known is None and not self._has_seat():
            return
        if known is None:
            self._ctx.trace("admit", peer=message.info.name, party=message.info.party[:16])
        self._ctx.wishes.admit[message.info.id] = message.info
        self._ctx.wishes.ready.pop(message.info.id, None)

    def _has_seat(self) -> bool:
        """Whether one more fits into a view: a larger one would be refused by all who read it."""
        return len(self._ctx.view.everybody()) + len(self._ctx.wishes.admit) < MAX_SEATS

    def on_lost(self, peers: Iterable[str]) -> None:
        """A view was installed that leaves these out although nobody knows that they are dead."""
        now, config = self._ctx.now, self._ctx.config
        for peer in peers:
            self._losses.setdefault(peer, []).append(now)
        recent = {p: [t for t in times if now - t < config.flap_window_s] for p, times in self._losses.items()}
        self._losses = {peer: times for peer, times in recent.items() if times}

    def held_out_s(self, peer: str) -> float:
        """Seconds for which a peer that comes and goes is still kept out, lest it change the view each time."""
        config, now = self._ctx.config, self._ctx.now
        times = [t for t in self._losses.get(peer, ()) if now - t < config.flap_window_s]
        if len(times) < 2:
            return 0.0
        hold: float = min(config.flap_first_s * 2.0 ** (len(times) - 2), config.flap_limit_s)
        return max(0.0, times[-1] + hold - now)

    def _refusal(self, message: JoinRequest) -> JoinRefused | None:
        known = self._node.worker.known
        if self._node.pause.reason:
            return JoinRefused(f"{self._ctx.me.name} is paused: {self._node.pause.reason}", retry=True)
        if (wait := self.held_out_s(message.info.id)) > 0:
            reason = f"it was lost {len(self._losses[message.info.id])} times lately; it may come back in {wait:.0f} s"
            return JoinRefused(reason, retry=True, wait_s=wait)
        if known is None:
            return JoinRefused("this member's own worker has not started yet", retry=True)
        reason = difference(known.fingerprint, message.fingerprint)
        if not reason and known.layout != message.layout:
            reason = "gradients lie in other buckets than the run's"
        if reason:
            return JoinRefused(f"{reason}; run the same script with the same versions", retry=False)
        if not self._has_seat() and message.info.id not in self._ctx.wishes.admit:
            return JoinRefused(f"the run is full: it has {MAX_SEATS} peers", retry=True)
        return self._name_refusal(message.info)

    def _name_refusal(self, info: PeerInfo) -> JoinRefused | None:
        same = self._ctx.view.member(info.id)
        if same is not None:
            what = "itself" if same.incarnation == info.incarnation else "an older incarnation of it"
            return JoinRefused(f"{what} is still a member as '{same.name}'; use another --name", retry=True)
        others = (*self._ctx.view.everybody(), *self._ctx.wishes.admit.values())
        taken = next((p for p in others if p.name == info.name and p.id != info.id), None)
        if taken is not None:
            reason = (
                f"the name '{info.name}' is taken by a peer of party {taken.party[:16]}; choose another with --name"
            )
            return JoinRefused(reason, retry=False)
        return None
