"""`chaos force-view`: those members of a paused run that hear each other make a new lineage without the others.

No quorum can tell whether the others went on; the operator answers for that. What is left to the protocol:
the new lineage has its own id, so that nothing of the two ever mixes; it begins only if more than half of the
members that the asked one hears agree within `FORCE_S`; each of these agrees to one such request at a time.
Whoever still follows the old lineage where it was given up comes over as a learner (`View.replaces`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chaos.core.actions import Tell
from chaos.core.context import Context, Role
from chaos.core.messages import Decide, ForceAnswer, ForceProposal, Heartbeat, Report
from chaos.core.succession import forced
from chaos.core.types import View

if TYPE_CHECKING:
    from chaos.core.node import Node

FORCE_S = 2.0
"""How long the asked member waits for the others' answers."""
HOLD_S = 2 * FORCE_S
"""How long a member that agreed takes part in no other decision: longer than its answer may count."""


@dataclass
class Request:
    """The operator's request, at the member that was asked."""

    lineage: str
    base: View
    listed: tuple[str, ...]
    """Members that were heard when it began, this one among them."""
    started: float
    reports: dict[str, Report] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


class Force:
    def __init__(self, ctx: Context, node: Node) -> None:
        self._ctx = ctx
        self._node = node
        self._request: Request | None = None
        self.outcomes: dict[str, str] = {}
        """New lineage to why it did not begin; '' if it did. Of requests that this member was asked for."""
        self._agreed: tuple[str, float] = ("", 0.0)
        """The lineage that this member last agreed to, and until when it is bound by that."""
        self.foreign: dict[str, str] = {}
        """Linked peers that follow another lineage of this run, and which."""

    # --- the member that is asked --------------------------------------------------------------------------

    def preview(self) -> dict[str, Any]:
        """What a forced view would be now: `refusal` (empty: it can be asked for), members by name, who is left out."""
        ctx = self._ctx
        if refusal := self._refusal():
            return {"refusal": refusal}
        listed, learners = self._listed(), ctx.view.learners
        left_out = [m.name for m in ctx.view.members if m.id not in listed]
        left_out += [p.name for p in learners if p.id in ctx.wishes.lost_learners]
        return {
            "refusal": "",
            "lineage": ctx.view.lineage,
            "view": ctx.view.id,
            "reason": self._node.pause.reason,
            "members": [ctx.name(p) for p in listed],
            "left_out": left_out,
            "step": self._node.steps.finished,
            "stable": self._node.steps.stable,
        }

    def _refusal(self) -> str:
        ctx, name = self._ctx, self._ctx.me.name
        if not ctx.views or ctx.role != Role.MEMBER:
            return f"{name} is {ctx.role}, not a member: ask a member that is paused"
        if not self._node.pause.reason:
            return f"{name} is not paused: it hears a quorum, so there is nothing to force"
        return ""

    def _listed(self) -> tuple[str, ...]:
        views = self._node.views
        return tuple(m for m in self._ctx.view.member_ids() if m not in views.suspects and m not in views.gone)

    def begin(self, lineage: str, view_id: int) -> None:
        """The operator confirmed, having seen what `preview` said of view `view_id`."""
        ctx = self._ctx
        refusal = self._refusal()
        if not refusal and ctx.view.id != view_id:
            refusal = f"the view has changed from {view_id} to {ctx.view.id} meanwhile: look again"
        elif not refusal and (self._request is not None or self._bound()):
            refusal = "another request to force a view is under way"
        if refusal:
            self._ended(lineage, refusal)
            return
        self._request = Request(lineage, ctx.view, self._listed(), ctx.now)
        ctx.trace("force", view=view_id, lineage=lineage, members=[ctx.name(p) for p in self._request.listed])
        for peer in self._request.listed:
            ctx.send(peer, ForceProposal(ctx.view, lineage))

    def _ended(self, lineage: str, reason: str) -> None:
        self.outcomes = {**dict(list(self.outcomes.items())[-7:]), lineage: reason}
        self._request = None
        if reason:
            self._ctx.trace("force_failed", lineage=lineage, reason=reason)

    def on_answer(self, src: str, message: ForceAnswer) -> None:
        request = self._request
        if request is None or message.lineage != request.lineage or src not in request.listed:
            return
        if message.report is None:
            request.refusals[src] = message.reason
        else:
            request.reports[src] = message.report
        if len(request.reports) + len(request.refusals) == len(request.listed):
            self._conclude(request)

    def tick(self) -> None:
        request = self._request
        if request is not None and request.base is not self._ctx.view:
            self._ended(request.lineage, "another view was decided meanwhile: look again")
        elif request is not None and self._ctx.now - request.started > FORCE_S:
            self._conclude(request)

    def _conclude(self, request: Request) -> None:
        """All have answered, or those that have not had their time."""
        ctx = self._ctx
        if request.base is not ctx.view:
            return  # the next tick says so
        if 2 * len(request.reports) <= len(request.listed):
            others = [p for p in request.listed if p not in request.reports]
            missing = [f"{ctx.name(p)} ({request.refusals.get(p, 'no answer')})" for p in others]
            self._ended(request.lineage, f"too few of the members that it hears agree; not {', '.join(missing)}")
            return
        if not any(report.grounded for report in request.reports.values()):
            remedy = "bring one back that does, or start from a checkpoint"
            self._ended(request.lineage, f"none of those that agree holds the last stable step: {remedy}")
            return
        view = forced(request.base, request.reports, ctx.wishes, request.lineage)
        if view is None:
            self._ended(request.lineage, "none of those that agree has a worker")
            return
        audience = dict.fromkeys(p.id for p in request.base.everybody())
        view = self._node.overlay.planned(view)
        self._ended(request.lineage, "")
        ctx.send_all(audience, Decide(view))  # those left out too: whoever still hears it comes over
        self._node.views.install(view)

    # --- those that it asks --------------------------------------------------------------------------------

    def _bound(self) -> bool:
        return self._ctx.now < self._agreed[1]

    def holds(self, lineage: str) -> bool:
        """Whether this member agreed to leave `lineage` a moment ago: it takes no part in its decisions then."""
        return self._bound() and lineage == self._ctx.view.lineage

    def on_proposal(self, src: str, message: ForceProposal) -> None:
        ctx, base = self._ctx, message.base
        if ctx.views and base.lineage == ctx.view.lineage and base.id > ctx.view.id:
            self._node.views.install(base)
        if not ctx.views:
            return  # it has no view, or that one has no place for it
        if base != ctx.view:
            ctx.send(src, Decide(ctx.view))
            reason = f"it follows view {ctx.view.id} of lineage {ctx.view.lineage} already"
        elif ctx.role != Role.MEMBER or ctx.view.member(src) is None:
            reason = "it is no member"
        elif not self._node.pause.reason:
            reason = "it is not paused, as it hears a quorum"
        elif self._bound() and self._agreed[0] != message.lineage:
            reason = "it agreed to another request a moment ago"
        else:
            self._agreed = (message.lineage, ctx.now + HOLD_S)
            self._node.steps.hold(freeze=True)
            ctx.send(src, ForceAnswer(message.lineage, self._node.steps.report(), ""))
            return
        ctx.send(src, ForceAnswer(message.lineage, None, reason))

    # --- peers of other lineages ---------------------------------------------------------------------------

    def installed(self, view: View, before: View | None) -> None:
        """Say what became of the lineage, if it is another one now."""
        self._agreed = ("", 0.0)
        if before is None or before.lineage == view.lineage:
            return
        self.foreign.clear()
        given_up = [m.name for m in before.members if view.member(m.id) is None]
        self._ctx.trace("lineage", lineage=view.lineage, before=before.lineage, view=view.id, left_out=given_up)
        self._ctx.emit(
            Tell(
                f"an operator forced a new lineage {view.lineage} from step {view.first_step} on, "
                f"with {', '.join(m.name for m in view.members)}"
                + (f", without {', '.join(given_up)}" if given_up else "")
            )
        )

    def is_foreign(self, src: str, message: Heartbeat) -> bool:
        """A heartbeat came. Whether its sender follows another lineage, so that nothing it says concerns this one.

        Who stayed behind where the old lineage was given up is told of the new one; who went on is reported.
        """
        ctx = self._ctx
        if message.lineage == ctx.view.lineage:
            self.foreign.pop(src, None)
            return False
        if ctx.view.replaces(message.lineage, message.view_id):
            ctx.send(src, Decide(ctx.view))
        elif src in ctx.linked and self.foreign.get(src) != message.lineage:
            self.foreign[src] = message.lineage
            ctx.trace("other_lineage", peer=ctx.name(src), lineage=message.lineage, view=message.view_id)
            ctx.emit(
                Tell(
                    f"{ctx.name(src)} follows another lineage of this run ({message.lineage}, view {message.view_id}; "
                    f"here {ctx.view.lineage}): nothing is exchanged with it. Choose one of the two; end the peers of "
                    "the other and start them again with --join"
                )
            )
        return True

    def link_lost(self, peer: str) -> None:
        self.foreign.pop(peer, None)
