"""Ways through an overlay that is not complete: whom to hand what is for a peer without a direct link."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping


def ways(me: str, linked: Iterable[str], neighbours: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Breadth-first search over what peers say of their links; ties go to the lower id.

    Returns:
        Destination to the peers on the way there, the destination included; a direct link is a way of one.
    """
    found: dict[str, tuple[str, ...]] = {peer: (peer,) for peer in sorted(set(linked) - {me})}
    frontier = deque(found)
    while frontier:
        peer = frontier.popleft()
        for other in sorted(neighbours.get(peer, ())):
            if other != me and other not in found:
                found[other] = (*found[peer], other)
                frontier.append(other)
    return found
