"""What a node knows, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chaos.core.types import PeerInfo

if TYPE_CHECKING:
    from chaos.core.node import Node


def describe(node: Node) -> dict[str, Any]:
    """What `chaos status` shows of this peer's knowledge."""
    ctx = node.ctx
    view, pause = ctx.view if ctx.views else None, node.pause
    return {
        "run": ctx.run,
        "peer": ctx.me.name,
        "role": str(ctx.role),
        "lineage": view.lineage if view else "",
        "view": view.id if view else 0,
        "step": node.steps.finished,
        "stable": node.steps.stable,
        "epoch": node.steps.data.epoch,
        "paused": {"reason": pause.reason, "seconds": round(pause.seconds(), 1)} if pause.reason else None,
        "other_lineages": {ctx.name(peer): lineage for peer, lineage in node.force.foreign.items()},
        "missing_parties": node.attendance.summary(),
        "cut": [sorted((ctx.name(a), ctx.name(b))) for a, b in (view.cut if view else ())],
        "learner_phase": str(node.learner.phase),
        "catch_up": node.learner.course.text,
        "corrupt_shards": {ctx.name(peer): count for peer, count in node.learner.corrupt.items()},
        "straggler_limit_s": view.straggler_limit_s if view else 0.0,
        "members": [_peer(node, p, "member") for p in (view.members if view else ())]
        + [_peer(node, p, "learner") for p in (view.learners if view else ())],
    }


def _peer(node: Node, info: PeerInfo, role: str) -> dict[str, Any]:
    ctx = node.ctx
    beat = node.liveness.progress.get(info.id)
    me = info.id == ctx.id
    tally = node.stragglers.tallies.get(info.id)
    links = sorted(ctx.linked) if me else (beat.links or ()) if beat else ()
    view = ctx.view
    shares, rank = view.root_shares(), next((i for i, m in enumerate(view.members) if m.id == info.id), None)
    return {
        "name": info.name,
        "id": info.id,
        "role": role,
        "party": info.party,
        "addresses": list(info.addresses),
        "step": node.steps.finished if me else beat.finished if beat else None,
        "links": [ctx.name(p) for p in links],
        "share": None if rank is None else round(shares[rank] / sum(shares), 3),
        "linked": me or info.id in ctx.linked,
        "late": {"steps": tally.late, "of": tally.steps, "last": tally.last} if tally else None,
        "suspect": info.id in node.views.suspects,
    }
