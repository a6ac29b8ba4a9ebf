"""From one view to the next: when a change is needed, who proposes it, and what installing it means."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING

from chaos.core.actions import Connect, Disconnect, Persist, StopSeal
from chaos.core.agreement import Acceptor, Proposal
from chaos.core.context import Context, Role
from chaos.core.departure import LOST, START_AGAIN
from chaos.core.handling import Cause, Handling
from chaos.core.messages import Accept, Decide, LastWords, Nack, Prepare, Promise, Sealed, Vote
from chaos.core.succession import after_failure, planned
from chaos.core.types import Ballot, View
from chaos.core.watch import is_small

if TYPE_CHECKING:
    from chaos.core.node import Node

PATIENCE = 5
"""A proposal older than so many takeover times is tried again: a message may have been lost with its link."""


class Views:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self.acceptor: Acceptor | None = None
        self.proposal: Proposal | None = None
        self.gone: dict[str, tuple[Sealed, LastWords]] = {}
        """Peers of the installed view with their sealed last words."""
        self.suspects: set[str] = set()
        self.handling = Handling()
        self._round = 0
        self._need_since: float | None = None
        self._ready_since: float | None = None
        self._retry_at = 0.0
        self._promised_at = 0.0

    # --- is a change needed? -------------------------------------------------------------------------------

    def _failed(self) -> list[str]:
        """Members without whom steps can't go on."""
        wishes, view = self._ctx.wishes, self._ctx.view
        if not (self.suspects or self.gone or wishes.worker_down):
            return []
        failed = [
            peer
            for peer in view.member_ids()
            if peer in self.suspects or peer in self.gone or peer in wishes.worker_down
        ]
        return failed + [peer for peer in self._owing() if peer in self.suspects]

    def _owing(self) -> list[str]:
        """Leavers without whom steps before the installed view can't end."""
        if self._node.steps.finished >= self._ctx.view.first_step - 1:
            return []
        return [info.id for info in self._ctx.departing()]

    def releasing(self) -> tuple[str, ...]:
        """Leavers that the next planned view lets go.

        One whose script came to its end is let go once the others have gone past its last step; if all
        members end there, the run simply ends.
        """
        wishes, members = self._ctx.wishes, self._ctx.view.member_ids()
        if not wishes.leaving or all(peer in wishes.leaving for peer in members):
            return ()
        finished = self._node.steps.finished
        return tuple(
            peer
            for peer in members
            if peer in wishes.leaving and (peer not in wishes.done or finished > wishes.leaving[peer])
        )

    def _promotable(self) -> dict[str, int]:
        """Ready learners that keep up, unless others may soon come in with them.

        One that has not installed the view may hold a step that it made void.
        """
        if not self._ctx.wishes.ready:
            self._ready_since = None
            return {}
        view, beats, steps = self._ctx.view, self._node.liveness.progress, self._node.steps
        found = {
            peer: step
            for peer, step in self._ctx.wishes.ready.items()
            if view.learner(peer) is not None
            and (beat := beats.get(peer)) is not None
            and (beat.lineage, beat.view_id) == (view.lineage, view.id)
            and steps.keeps_up(peer)
        }
        return {} if self._may_come_together(found) else found

    def _may_come_together(self, found: Container[str]) -> bool:
        """Not all learners can be promoted yet: those that can wait a moment, to come in by one view."""
        wishes, now = self._ctx.wishes, self._ctx.now
        if self._ready_since is None:
            self._ready_since = now
        others = any(p.id not in found and p.id not in wishes.lost_learners for p in self._ctx.view.learners)
        return others and now - self._ready_since < self._ctx.config.together_s

    def needed(self) -> str:
        """Why the view has to change: 'failure', 'planned', or '' if it need not."""
        wishes = self._ctx.wishes
        if self._failed() or self._node.results.abandoned:
            return "failure"
        if wishes.admit or wishes.lost_learners:
            return "planned"
        if (wishes.ready and self._promotable()) or (wishes.leaving and self.releasing()):
            return "planned"
        if wishes.links or wishes.shares is not None:
            return "planned"
        if self._node.steps.frozen:
            return "failure"
        return "planned" if self.acceptor is not None and self.acceptor.promised is not None else ""

    def _causes(self) -> list[Cause]:
        """What the next view is to change, as far as this peer knows; for the trace."""
        wishes = self._ctx.wishes
        found = [("failure", peer) for peer in self._failed()]
        found += [("scale-in", peer) for peer in self.releasing()]
        found += [("scale-out", peer) for peer in self._promotable()]
        found += [("connect-link" if made else "disconnect-link", " ".join(e)) for e, made in wishes.links.items()]
        found += [("admit", peer) for peer in wishes.admit]
        found += [("learner-lost", peer) for peer in sorted(wishes.lost_learners)]
        return found if wishes.shares is None else [*found, ("sync-plan", "")]

    def _yields(self, need: str) -> bool:
        """I promised another proposer's ballot: while it may live it has its time, lest two chase each other."""
        promised = self.acceptor.promised if self.acceptor is not None else None
        if promised is None or promised.proposer == self._ctx.id or promised.proposer in self.suspects:
            return False
        if need == "failure" and not self._node.steps.frozen:
            return False
        return self._ctx.now - self._promised_at < PATIENCE * self._ctx.config.takeover_s

    # --- proposing -----------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Propose if it is my turn: the lowest unsuspected rank at once, the others after a while each."""
        if self.acceptor is None or self._ctx.role not in (Role.MEMBER,):
            return
        if self.suspects:
            self.suspects &= {*(p.id for p in self._ctx.view.everybody()), *self._owing()}
        self._node.pause.update()
        need = self.needed()
        self.handling.see(self._causes() if need else (), self._ctx.now)
        if not need:
            self._need_since = None
            return
        if self._need_since is None:
            self._need_since = self._ctx.now
        current = self.proposal
        if current is not None and self._ctx.now - current.started > PATIENCE * self._ctx.config.takeover_s:
            self._node.liveness.unanswered(self._awaited(current) if not is_small(current.base) else [])
            self.proposal = current = None
        if current is not None and (current.freeze or need == "planned"):
            self._proceed()
            return
        if self._yields(need):
            return
        turn = self._need_since + self._turn() * self._ctx.config.takeover_s
        if self._ctx.now >= max(turn, self._retry_at):
            self._propose(freeze=need == "failure")

    def _turn(self) -> int:
        able = [p for p in self._ctx.view.member_ids() if p not in self.suspects and p not in self.gone]
        return able.index(self._ctx.id) if self._ctx.id in able else len(able)

    def _propose(self, freeze: bool) -> None:
        base = self._ctx.view
        promised = self.acceptor.promised if self.acceptor is not None else None
        self._round = max(self._round, promised.round if promised else 0) + 1
        members = base.member_ids()
        gone = {peer: entry for peer, entry in self.gone.items() if peer in members}
        words = {peer: entry[1] for peer, entry in gone.items()}
        proposal = Proposal(base, Ballot(self._round, self._ctx.id), freeze, words, self._ctx.now)
        decided, higher = proposal.already_decided(), proposal.refused_by_words()
        if decided is not None:
            self._ctx.trace("view_learned", view=decided.id, reason="found in last words")
            self.install(decided)
            return
        if higher is not None:
            self._round = higher.round + 1
            proposal.ballot = Ballot(self._round, self._ctx.id)
        self.proposal = proposal
        self.handling.proposed = self.handling.proposed or self._ctx.now
        self._ctx.trace("propose", view=proposal.decree, ballot=self._round, freeze=freeze, gone=list(words))
        message = Prepare(base, proposal.ballot, freeze, tuple(entry[0] for entry in gone.values()))
        for peer in members:
            if peer not in gone:
                self._ctx.send(peer, message)

    def _proceed(self) -> None:
        """Phase 2 once all who are expected to promise have done so; the decision once a quorum voted."""
        current = self.proposal
        if current is None:
            return
        if current.value is None:
            if self._awaited(current):
                return
            if not current.promised_by_quorum():
                return
            if not any(report.grounded for report in current.reports().values()):
                self._hopeless(current, "all that held the last stable step died")
                return
            self._choose(current)
        elif current.accepted_by_quorum():
            value = current.value
            audience = dict.fromkeys(p.id for p in (*current.base.everybody(), *value.everybody()))
            self._ctx.send_all(audience, Decide(value))
            took = round((self._ctx.now - current.started) * 1000, 3)
            self._ctx.trace("decide", view=value.id, reason=value.reason, handling_ms=took)
            self.handling.decided = self._ctx.now
            self.install(value)

    def _awaited(self, current: Proposal) -> list[str]:
        """Who is still to promise: everybody who is neither gone nor suspected."""
        return [
            peer
            for peer in current.base.member_ids()
            if peer not in current.promises and peer not in current.gone and peer not in self.suspects
        ]

    def _hopeless(self, current: Proposal, why: str) -> None:
        """Those who report can't go on: they were promoted a step behind and may lack a stable one, or have no workers.

        Who is only silent may come back with what they lack.
        """
        if all(p in current.promises or p in current.gone for p in current.base.member_ids()):
            self._node.departure.stop(LOST, f"{why}; {START_AGAIN}")
        else:
            heard = current.promises.keys() | current.gone.keys()
            silent = [self._ctx.name(p) for p in current.base.member_ids() if p not in heard]
            self._node.pause.begin(f"{why} or is silent; waiting for {', '.join(silent)}")

    def _choose(self, current: Proposal) -> None:
        reports = current.reports()
        value = current.recovered()
        if value is not None:
            self._offer(current, value)
            return
        if not current.freeze:
            if any(peer not in reports for peer in current.base.member_ids()):
                self._propose(freeze=True)
                return
            wishes = replace(self._ctx.wishes, ready=self._promotable())
            value = planned(current.base, reports, wishes, self.releasing())
        else:
            silent = [p for p in current.base.member_ids() if p not in reports]
            value = after_failure(current.base, reports, self._ctx.wishes, self._cause(current, silent))
            if value is None:
                self._hopeless(current, "every worker of the run died")
                return
        self._offer(current, self._node.overlay.planned(value))

    def _offer(self, current: Proposal, value: View) -> None:
        current.value = value
        for peer in current.base.member_ids():
            if peer not in current.gone:
                self._ctx.send(peer, Accept(current.decree, current.ballot, value))

    def _cause(self, current: Proposal, silent: list[str]) -> str:
        if silent:
            return "sealed" if all(p in current.gone for p in silent) else "silent"
        left = [info.name for info in self._ctx.departing() if info.id in self.suspects]
        return f"{', '.join(left)} left before the last step it owed" if left else "worker died"

    # --- voting --------------------------------------------------------------------------------------------

    def on_prepare(self, src: str, message: Prepare) -> None:
        if self._ctx.views and not self._ctx.follows(message.base):
            return
        for sealed in message.gone:
            self._node.on_sealed(sealed, announce=False)
        if not self._ctx.views:
            return  # who has no view has no vote; a joiner learns its first view from a decision
        if message.base.id > self._ctx.view.id:
            self.install(message.base)
        if not self._ctx.views:
            return
        if message.base.id < self._ctx.view.id:
            self._ctx.send(src, Decide(self._ctx.view))
            return
        acceptor = self.acceptor
        if acceptor is None or self._ctx.view.member(src) is None or self._node.force.holds(message.base.lineage):
            return
        if not acceptor.promise(message.ballot):
            self._nack(src, acceptor)
            return
        self._round = max(self._round, message.ballot.round)
        self._promised_at = self._ctx.now
        self.handling.proposed = self.handling.proposed or self._ctx.now
        if self.proposal is not None and self.proposal.ballot != message.ballot:
            self.proposal = None
        self._node.steps.hold(message.freeze)
        self._persist(acceptor)
        self._ctx.send(src, Promise(acceptor.decree, message.ballot, self._node.steps.report(), acceptor.accepted))

    def _nack(self, src: str, acceptor: Acceptor) -> None:
        assert acceptor.promised is not None
        self._ctx.send(src, Nack(acceptor.decree, acceptor.promised))

    def on_promise(self, src: str, message: Promise) -> None:
        current = self.proposal
        if current is not None and message.decree == current.decree and current.value is None:
            current.add_promise(src, message)
            self._node.liveness.heard(src)
            self._proceed()

    def on_nack(self, src: str, message: Nack) -> None:
        current = self.proposal
        if current is not None and message.decree == current.decree and message.promised > current.ballot:
            self._round = max(self._round, message.promised.round)
            self.proposal = None
            self._retry_at = self._ctx.now + self._ctx.config.takeover_s * (1 + self._turn()) / 4
            self._ctx.trace("nack", view=message.decree, peer=self._ctx.name(src))

    def on_accept(self, src: str, message: Accept) -> None:
        acceptor = self.acceptor
        if acceptor is None or message.decree > acceptor.decree or message.view.lineage != acceptor.view.lineage:
            return
        if self._node.force.holds(message.view.lineage):
            return
        if message.decree < acceptor.decree:
            self._ctx.send(src, Decide(self._ctx.view))
            return
        if not acceptor.accept(message.ballot, message.view):
            self._nack(src, acceptor)
            return
        self._persist(acceptor)
        self._ctx.send(src, Vote(message.decree, message.ballot))

    def on_vote(self, src: str, message: Vote) -> None:
        current = self.proposal
        if current is not None and message.decree == current.decree:
            current.add_vote(src, message.ballot)
            self._proceed()

    def _persist(self, acceptor: Acceptor) -> None:
        self._ctx.emit(Persist(acceptor.words(self._ctx.run, self._ctx.id, self._ctx.me.incarnation)))

    def words(self) -> LastWords | None:
        acceptor = self.acceptor
        return acceptor.words(self._ctx.run, self._ctx.id, self._ctx.me.incarnation) if acceptor else None

    # --- what becomes of peers -----------------------------------------------------------------------------

    def add_gone(self, sealed: Sealed, words: LastWords) -> bool:
        """A peer's words are in hand. False if that was known or does not concern this view."""
        info = self._ctx.seat(words.peer)
        if info is None or words.peer in self.gone or info.incarnation != words.incarnation:
            return False
        self._learn_from(words)
        if not self._ctx.views or self._ctx.seat(words.peer) is None or not self._of_this_lineage(words):
            return False
        self.gone[words.peer] = (sealed, words)
        if self._ctx.view.learner(words.peer):
            self._ctx.wishes.lost_learners.add(words.peer)
        self.suspects.add(words.peer)
        self._restart()
        return True

    def _learn_from(self, words: LastWords) -> None:
        """A view that was missed here and that a dead peer had installed: all who could tell of it may be dead.

        It is of a lineage that was forced after this one, or this peer has no vote. Who has one finds such a view when
        it proposes the next.
        """
        ctx, view = self._ctx, words.view
        forced = view.lineage != ctx.view.lineage
        if (forced or (view.id > ctx.view.id and ctx.role != Role.MEMBER)) and ctx.follows(view):
            ctx.trace("view_learned", view=view.id, reason="found in last words")
            self.install(view)

    def _of_this_lineage(self, words: LastWords) -> bool:
        """Words of a lineage that was forced after this one say nothing of votes in this one: they prove nothing."""
        ctx, lineage = self._ctx, words.view.lineage
        if lineage == ctx.view.lineage or any(old.lineage == lineage for old in ctx.view.abandoned):
            return True
        ctx.trace("words_refused", peer=ctx.name(words.peer), reason=f"it went over to lineage {lineage}")
        return False

    def suspect(self, peer: str, reason: str) -> None:
        if not self._ctx.views:
            return
        if self._ctx.view.learner(peer):
            if peer not in self._ctx.wishes.lost_learners:
                self._ctx.wishes.lost_learners.add(peer)
                self._ctx.trace("suspect", peer=self._ctx.name(peer), reason=reason)
        elif peer not in self.suspects and self._ctx.seat(peer):
            self.suspects.add(peer)
            self._ctx.trace("suspect", peer=self._ctx.name(peer), reason=reason)
            self._node.results.refetch(peer)

    def trust(self, peer: str) -> None:
        """A suspect was heard again before anybody decided to go on without it."""
        if peer in self.suspects and peer not in self.gone:
            self.suspects.discard(peer)
            self._ctx.trace("trust", peer=self._ctx.name(peer), reason="heard again")
        if peer not in self.gone:
            self._ctx.wishes.lost_learners.discard(peer)

    def _restart(self) -> None:
        """Newly sealed words change the quorum: a proposal under way starts again with them."""
        if self.proposal is not None:
            self.proposal = None
            self._retry_at = self._ctx.now

    def forget(self) -> None:
        """This peer starts over: it has no vote and no opinion."""
        self.acceptor = self.proposal = self._need_since = None
        self.gone.clear()
        self.suspects.clear()
        self.handling.forget()
        self._node.pause.end()

    # --- installing ----------------------------------------------------------------------------------------

    def install(self, view: View) -> None:
        """Make a decided view mine. Older and foreign ones change nothing."""
        ctx = self._ctx
        if ctx.views and (not ctx.follows(view) or view.id <= ctx.view.id):
            return
        before = ctx.view if ctx.views else None
        was = ctx.role
        ctx.views.append(view)
        ctx.role = self._role(view, was)
        self.proposal = self._need_since = None
        self._node.pause.end()
        if before is not None:
            lost = self._lost(before, view)
            self._node.admission.on_lost(lost)
            self._node.returning.on_lost(lost, before)
        ctx.wishes.forget(view, before)
        self._keep_opinions(view, before)
        if ctx.role == Role.MEMBER:
            if self.acceptor is None:
                self.acceptor = Acceptor(view)
            else:
                self.acceptor.install(view)
            self._persist(self.acceptor)
        elif ctx.role != Role.LEAVER:
            self.acceptor = None
            if ctx.role == Role.LEARNER:  # it may be dead by the time that a view makes it a member
                ctx.emit(Persist(LastWords(ctx.run, ctx.id, ctx.me.incarnation, view, None, None)))
        self._tell(before, was)
        self._node.force.installed(view, before)
        self._relink(view, {p.id for p in before.everybody()} if before is not None else set())
        self._node.on_installed(view, was)

    def _tell(self, before: View | None, was: Role) -> None:
        """The trace's lines on the view that was just installed."""
        ctx, view = self._ctx, self._ctx.view
        ctx.trace("view", view=view.id, lineage=view.lineage, first_step=view.first_step, abort=view.abort,
                  role=str(ctx.role), members=[m.name for m in view.members], learners=[p.name for p in view.learners],
                  ids=[p.id for p in view.everybody()], parties=[p.party[:16] for p in view.everybody()],
                  shares=view.shares, cut=view.cut,
                  reason=view.reason)  # fmt: skip
        if before is not None and was == Role.MEMBER:
            line = self.handling.installed(before, view, ctx.now)
            named = [(kind, " - ".join(ctx.name(peer) for peer in about.split())) for kind, about in line["causes"]]
            ctx.trace("handled", **line | {"causes": named})
        else:
            self.handling.forget()

    def _lost(self, before: View, view: View) -> list[str]:
        """Who was left out by `view` for its silence: not those that asked for it, nor those that are proven gone."""
        left = [p.id for p in before.everybody() if not view.member(p.id) and not view.learner(p.id)]
        return [p for p in left if p != self._ctx.id and p not in self.gone and p not in self._ctx.wishes.leaving]

    def _keep_opinions(self, view: View, before: View | None) -> None:
        """Who is gone or suspected still is, unless it is out of the view, or back as a new incarnation."""
        seats = {p.id: p.incarnation for p in view.everybody()}
        renewed = {p.id for p in before.everybody() if seats.get(p.id, 0) > p.incarnation} if before else set()
        self.gone = {
            peer: (sealed, words) for peer, (sealed, words) in self.gone.items() if seats.get(peer) == words.incarnation
        }
        self.suspects &= (seats.keys() - renewed) | {info.id for info in self._ctx.departing()}
        self._ctx.wishes.lost_learners |= {p.id for p in view.learners if p.id in self.suspects}

    def _role(self, view: View, was: Role) -> Role:
        mine = self._ctx.me.incarnation
        if (info := view.member(self._ctx.id)) and info.incarnation == mine:
            return Role.MEMBER
        if (info := view.learner(self._ctx.id)) and info.incarnation == mine:
            return Role.LEARNER
        let_go = was == Role.MEMBER and self._ctx.id in self._ctx.wishes.leaving and not view.abort
        return Role.LEAVER if let_go or was == Role.LEAVER else Role.JOINER

    def _relink(self, view: View, before: set[str]) -> None:
        for info in view.everybody():
            if view.is_cut(info.id, self._ctx.id):
                self._ctx.emit(Disconnect(info.id, "the link was cut by order of an operator"))
            elif info.id != self._ctx.id:
                self._ctx.emit(Connect(info))
        for peer in sorted(before - {p.id for p in view.everybody()} - {self._ctx.id}):
            self._ctx.emit(StopSeal(peer))
            if view.abort:
                self._ctx.emit(Disconnect(peer, "not part of the view any more"))
