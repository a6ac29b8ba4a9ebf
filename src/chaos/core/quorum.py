"""Who has to agree. The rule that docs/spec checks: more than half of the weight of those not gone."""

from __future__ import annotations

from collections.abc import Collection

from chaos.core.types import View

WHOLE = 2
"""Weights are counted in halves, so that they stay integers."""


def weights(view: View) -> dict[str, int]:
    """Weight of each member, in halves: 2 each; the lowest rank 3 where the number of members is even."""
    result = dict.fromkeys(view.member_ids(), WHOLE)
    if result and len(result) % 2 == 0:
        result[view.members[0].id] += 1
    return result


def is_quorum(view: View, agreeing: Collection[str], gone: Collection[str]) -> bool:
    """Whether `agreeing` weigh more than half of the members that are not `gone`.

    `gone` are members whose sealed last words are in hand. A member that is merely silent counts.
    With everybody gone but the agreeing ones this is always true; with nobody agreeing never.
    """
    weight = weights(view)
    present = {peer: w for peer, w in weight.items() if peer not in gone}
    return 2 * sum(w for peer, w in present.items() if peer in agreeing) > sum(present.values())
