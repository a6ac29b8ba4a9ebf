"""The promises I1 to I6 as code, checked at every event of a simulation.

I1 same step, same bytes on every member. I2 one lineage: never two views with one id, never two halves training
on. I3 a stable update is applied everywhere, once; a sample counts once. I4 while a quorum of unsuspected members
is connected, steps go on. I5 a join stalls no incumbent beyond boundaries. I6 who has no part in the run changes
nothing. I4 is checked once faults have ceased (`faults.py`), the others here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from chaos.core.context import Role
from chaos.core.messages import PeerMessage
from chaos.core.types import PeerInfo

if TYPE_CHECKING:
    from chaos.sim.peer import SimPeer
    from chaos.sim.world import World

CRASH = "crash"
"""Not a promise of the run, but of its code: a node never raises, whatever happens."""
OWN_WORDS = ("role", "cut")
"""What peers say of one view in words of their own: their part in it, and links by names that not all know."""
STEP_S = 0.1
"""A step may take so many seconds longer than its computing and messages; 0.025 is the most that was seen."""
CHANGE_S = 1.0
"""So may the first step under a view, and the wait for a planned change: a new member's first step waits for what it
lacks, 0.5 s at most. Any step may where links have a bandwidth, which delays don't count."""
HISTORY = 128
"""A member keeps far fewer finished steps: 32 for learners, and those that are not stable."""


class PromiseBroken(Exception):
    """A promise does not hold. `at` is the virtual time in seconds."""

    def __init__(self, promise: str, seed: int, at: float, text: str) -> None:
        super().__init__(f"seed {seed}, {at:.4f} s: {promise} is broken: {text}")
        self.promise, self.seed, self.at, self.text = promise, seed, at, text


@dataclass(frozen=True)
class CommitRecord:
    before: bytes
    """The lineage it follows; empty if its peer took that over with a snapshot of a step not known here."""
    fields: dict[str, Any]


@dataclass
class Ledger:
    """What one peer's process said of its steps."""

    finished: dict[int, bytes] = field(default_factory=dict)
    """Lineages of finished steps that are not stable yet."""
    stable: dict[int, bytes] = field(default_factory=dict)
    held: set[tuple[int, bytes]] = field(default_factory=set)
    """Every (step, lineage) that this peer ever finished."""
    base: int = 0
    """The highest step it ever took over as (part of) a snapshot."""
    members: tuple[PeerInfo, ...] = ()
    """Of the view it had installed when it wrote its last line."""
    committed_at: float | None = None
    """When it finished its last step; None if the time since must not be compared with what a step takes."""
    paused_until: float = 0.0
    """It agreed to wait for somebody's late snapshot until then, or less."""
    gated_at: float | None = None
    """Since when a promise without freeze keeps it from opening a step."""


class Promises:
    def __init__(self, world: World) -> None:
        self._world = world
        self.stable: dict[int, bytes] = {}
        """The run's lineage, as far as it is stable."""
        self.commits: dict[bytes, CommitRecord] = {}
        self.views: dict[int, dict[str, Any]] = {}
        self._ledgers: dict[tuple[str, int], Ledger] = {}
        self._chains: dict[tuple[int, bytes], tuple[bytes, str]] = {}
        self._used: dict[int, set[int]] = {}
        """Epoch to the positions that count in stable steps."""
        self._epoch = 0
        self._late: set[str] = set()
        """Names of learners that needed a late snapshot, for which members wait."""
        self._first_steps: set[int] = set()
        """Of views: a new member's first one may have to wait for it."""
        self._on_note: dict[str, Callable[[SimPeer, Ledger, dict[str, Any]], None]] = {
            "commit": self._on_commit,
            "stable": self._on_stable,
            "view": self._on_view,
            "rejoin": self._on_restart,
            "catch_up": self._on_restart,
            "learner": self._on_learner,
            "catch_up_mode": self._on_mode,
            "pause": self._on_pause,
        }

    def broken(self, promise: str, text: str) -> NoReturn:
        """Raises PromiseBroken."""
        raise PromiseBroken(promise, self._world.seed, self._world.now, text)

    def ledger(self, peer: SimPeer) -> Ledger:
        key = peer.info.id, peer.info.incarnation
        ledger = self._ledgers.get(key)
        if ledger is None:
            ledger = self._ledgers[key] = Ledger()
        return ledger

    def note(self, peer: SimPeer, kind: str, fields: dict[str, Any]) -> None:
        """A node wrote a line of its trace."""
        check = self._on_note.get(kind)
        if check is not None:
            check(peer, self.ledger(peer), fields)

    def _on_restart(self, _peer: SimPeer, ledger: Ledger, _fields: dict[str, Any]) -> None:
        ledger.finished.clear()
        ledger.committed_at = ledger.gated_at = None

    def _on_learner(self, peer: SimPeer, ledger: Ledger, fields: dict[str, Any]) -> None:
        """A learner that takes over a snapshot forgets what it had in its stead."""
        if fields["phase"] == "fetch" and (fetch := peer.node.learner.fetch) is not None:
            ledger.finished = {s: head for s, head in ledger.finished.items() if self.stable.get(s, head) == head}
            self._took_over(peer, ledger, fetch.offer.step)

    def _on_mode(self, peer: SimPeer, _ledger: Ledger, fields: dict[str, Any]) -> None:
        if fields["mode"] == "late":
            self._late.add(peer.info.name)

    def _on_pause(self, _peer: SimPeer, ledger: Ledger, fields: dict[str, Any]) -> None:
        """A stall that was agreed on is none; but only who says why it needs it may ask for one."""
        if fields["peer"] in self._late:
            ledger.committed_at = ledger.gated_at = None
            ledger.paused_until = max(ledger.paused_until, self._world.now + fields["seconds"])

    # --- I1: same step, same bytes ---------------------------------------------------------------------------

    def applied(self, peer: SimPeer, step: int, head: bytes, chain: bytes) -> None:
        """`peer`'s worker applied `step`, at which the lineage is `head` (empty: unknown): its state is now `chain`."""
        if not head:
            return
        agreed, whose = self._chains.setdefault((step, head), (chain, peer.info.name))
        if agreed != chain:
            self.broken("I1", f"after step {step} the states of {peer.info.name} and {whose} differ")

    def equal_states(self) -> None:
        """All members of the newest view whose workers stand at one step have the same bytes."""
        chains: dict[int, tuple[bytes, str]] = {}
        members = self._world.members()
        newest = max((peer.node.ctx.view.id for peer in members), default=0)
        for peer in [p for p in members if p.node.ctx.view.id == newest]:
            worker, known = peer.worker, peer.node.worker.worker
            if worker.alive and known is not None and known.applied is not None and not known.loading:
                chain, whose = chains.setdefault(worker.applied, (worker.chain, peer.info.name))
                if chain != worker.chain:
                    self.broken("I1", f"{peer.info.name} and {whose} differ at step {worker.applied}")

    # --- I2: one lineage -------------------------------------------------------------------------------------

    def _on_view(self, peer: SimPeer, ledger: Ledger, fields: dict[str, Any]) -> None:
        ledger.gated_at = None
        ledger.members = next((v.members for v in peer.node.ctx.views if v.id == fields["view"]), ())
        view = {name: value for name, value in fields.items() if name not in OWN_WORDS}
        number = view["view"]
        self._first_steps.add(view["first_step"])
        if self.views.setdefault(number, view) != view:
            self.broken("I2", f"two views with id {number}: {self.views[number]} and, at {peer.info.name}, {view}")
        before = self.views.get(number - 1)
        if before is not None and not view["abort"] and view["first_step"] < before["first_step"]:
            self.broken("I2", f"view {number} begins at step {view['first_step']}, before the one that it follows")
        if view["abort"] and "failure" not in view["reason"]:
            self.broken("I5", f"view {number} voids the open step without a failure: {view['reason']}")

    def _on_stable(self, peer: SimPeer, ledger: Ledger, fields: dict[str, Any]) -> None:
        for step in sorted(s for s in ledger.finished if s <= fields["step"]):
            head = ledger.stable[step] = ledger.finished.pop(step)
            known = self.stable.get(step)
            if known is not None and known != head:
                self.broken("I2", f"step {step} is stable with two lineages, one of them at {peer.info.name}")
            if known is None:
                self._add_stable(step, head)
            self._held_by_all(peer, ledger.members, step, head)

    # --- I3: applied everywhere, once ------------------------------------------------------------------------

    def _held_by_all(self, peer: SimPeer, members: tuple[PeerInfo, ...], step: int, head: bytes) -> None:
        for info in members:
            other = self._world.peers.get(info.id)
            if other is not None and other.info == info:
                ledger = self.ledger(other)
                if (step, head) not in ledger.held and ledger.base < step:
                    self.broken("I3", f"{peer.info.name} calls step {step} stable, which {info.name} lacks")

    def _add_stable(self, step: int, head: bytes) -> None:
        record = self.commits[head]
        before = self.stable.get(step - 1)
        if before is None and step > 1:
            self.broken("I3", f"step {step} is stable, the one before it is not")
        if before is not None and record.before and record.before != before:
            self.broken("I2", f"step {step} is stable, but does not follow the stable step before it")
        self.stable[step] = head
        for _, epoch, start, stop in record.fields["samples"]:
            used = self._used.setdefault(epoch, set())
            for position in range(start, stop):
                if position in used:
                    self.broken("I3", f"step {step} counts sample {position} of epoch {epoch} a second time")
                used.add(position)
        while self._epoch < record.fields["epoch"]:
            count = len(self._used.pop(self._epoch, ()))
            if count != self._world.samples:
                self.broken("I3", f"epoch {self._epoch} ended after {count} of {self._world.samples} samples")
            self._epoch += 1

    def _on_commit(self, peer: SimPeer, ledger: Ledger, fields: dict[str, Any]) -> None:
        step, head = fields["step"], bytes.fromhex(fields["head"])
        before = ledger.finished.get(step - 1) or ledger.stable.get(step - 1) or self.stable.get(step - 1, b"")
        ledger.finished[step] = head
        ledger.held.add((step, head))
        self.commits.setdefault(head, CommitRecord(before, fields))
        self._sums_up(peer, fields)
        self._no_stall(peer, ledger, step)

    def _sums_up(self, peer: SimPeer, fields: dict[str, Any]) -> None:
        """The result is the sum of exactly the contributions that the commit names: no more, no less, each once."""
        if not fields["contributors"]:
            return
        ranges: dict[str, list[tuple[int, int, int]]] = {who: [] for who in fields["contributors"]}
        for who, *span in fields["samples"]:
            ranges[who].append(tuple(span))
        expected = sorted(
            (f"p{int(who, 16)}", fields["step"], fields["view"], tuple(spans)) for who, spans in ranges.items()
        )
        found = list(peer.result_of(fields["step"]))
        if found != expected:
            self.broken("I3", f"{peer.info.name} holds {found} for step {fields['step']}, which names {expected}")

    def stands_at(self, peer: SimPeer, finished: int) -> None:
        """`peer` says where it stands; what it did not finish itself, it took over with a snapshot.

        It may have finished an attempt at the same step that was void.
        """
        ledger, head = self.ledger(peer), peer.node.steps.head_of(finished)
        own = any(step == finished and head in (done, b"") for step, done in ledger.held)
        if not own:
            self._took_over(peer, ledger, finished)

    def _took_over(self, peer: SimPeer, ledger: Ledger, step: int) -> None:
        if step > ledger.base:
            if step not in self.stable:
                self.broken("I3", f"{peer.info.name} got a snapshot of step {step}, which is not stable")
            ledger.base = step

    def wrote_checkpoint(self, peer: SimPeer, step: int) -> None:
        if step not in self.stable:
            self.broken("I3", f"{peer.info.name} writes a checkpoint of step {step}, which is not stable")

    # --- I5: no stall by a join ------------------------------------------------------------------------------

    def _patience(self, slack_s: float) -> float:
        """How long a step, or a planned change, may take where nothing fails: at most half as much again as it needs.

        A late worker is waited for up to the limit.
        """
        world = self._world
        slowest = max((peer.slowness for peer in world.peers.values()), default=1.0)
        late = 4.0 + world.straggler_limit_s if world.straggler_limit_s else 0.0
        messages = 4 * world.network.bulk_delay + 60 * world.network.latency
        return slack_s + 1.5 * world.compute * slowest + messages + late

    def _no_stall(self, peer: SimPeer, ledger: Ledger, step: int) -> None:
        world, since = self._world, ledger.committed_at
        paused = world.now < ledger.paused_until
        ledger.committed_at = world.now if peer.node.ctx.role == Role.MEMBER and not paused else None
        slack_s = CHANGE_S if step in self._first_steps or world.pipes is not None else STEP_S
        if since is not None and world.is_calm(since) and world.now - since > self._patience(slack_s):
            took = world.now - since
            self.broken("I5", f"step {step} took {peer.info.name} {took:.2f} s although nothing failed")

    def after_event(self, peer: SimPeer) -> None:
        """What has to hold whenever a node has handled an event."""
        node, ledger = peer.node, self.ledger(peer)
        steps = node.steps
        if steps.stable > steps.finished:
            self.broken("I3", f"{peer.info.name} calls step {steps.stable} stable and has finished {steps.finished}")
        if node.ctx.role == Role.MEMBER and len(steps.history) > HISTORY + node.ctx.disk_slots:
            self.broken(CRASH, f"{peer.info.name} keeps {len(steps.history)} finished steps")
        if steps._gate is None or steps.frozen:
            ledger.gated_at = None
        elif ledger.gated_at is None:
            ledger.gated_at = self._world.now
        elif self._world.is_calm(ledger.gated_at) and self._world.now - ledger.gated_at > self._patience(CHANGE_S):
            self.broken("I5", f"{peer.info.name} waits for a planned change since {ledger.gated_at:.2f} s")

    # --- I6: strangers change nothing ------------------------------------------------------------------------

    def unchanged(self, peer: SimPeer, message: PeerMessage, before: object) -> None:
        """A message from one who has no part in the run was handled by `peer`, whose state had been `before`."""
        if state_of(peer) != before:
            self.broken("I6", f"a stranger's {type(message).__name__} changed the state of {peer.info.name}")


def state_of(peer: SimPeer) -> object:
    """All that decides what a node does in the run."""
    node = peer.node
    views, steps, wishes, acceptor = node.views, node.steps, node.ctx.wishes, node.views.acceptor
    rounds = [(step, r.view.id, tuple(r.contributions), r.fetching, r.complete) for step, r in steps.rounds.items()]
    return (
        [view.id for view in node.ctx.views],
        node.ctx.role,
        (acceptor.promised, acceptor.accepted) if acceptor is not None else None,
        (sorted(views.suspects), sorted(views.gone)),
        (steps.finished, steps.opened, steps.stable, steps.head, steps._gate, steps.frozen, dict(steps._acks)),
        rounds,
        (dict(wishes.admit), dict(wishes.ready), dict(wishes.leaving)),
        (sorted(wishes.done), sorted(wishes.worker_down), sorted(wishes.lost_learners)),
        (str(node.learner.phase), peer.worker.applied, peer.worker.chain),
    )
