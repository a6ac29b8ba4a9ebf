"""Ways through an overlay that is not complete: the next hop to each peer without a direct link."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def next_hops(me: str, linked: Iterable[str], neighbours: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Breadth-first search over what peers say of their links; ties go to the lower id.

    Returns:
        Destination to the directly linked peer that leads there by the fewest hops; direct ones are left out.
    """
    direct = sorted(set(linked) - {me})
    via: dict[str, str] = {peer: peer for peer in direct}
    frontier = list(direct)
    while frontier:
        found: list[str] = []
        for peer in frontier:
            for other in sorted(neighbours.get(peer, ())):
                if other != me and other not in via:
                    via[other] = via[peer]
                    found.append(other)
        frontier = found
    return {peer: hop for peer, hop in via.items() if peer != hop}
