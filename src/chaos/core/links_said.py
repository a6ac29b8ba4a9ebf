"""What peers say of their links in heartbeats: the list itself where it is short or new, else only its name.

The name is a hash of the list, so there is nothing to count, to restart or to keep in order: who holds a list under
that name holds the right one, whichever heartbeats were lost or came late, and whoever sent them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from msgspec.structs import replace
from xxhash import xxh3_64_digest

from chaos.core.messages import Heartbeat


def name_of(links: tuple[str, ...]) -> bytes:
    return xxh3_64_digest(" ".join(links).encode())


def has(links: tuple[str, ...], peer: str) -> bool:
    """Whether `peer` is one of these, which are in ascending order. Lists are long and asked at each heartbeat."""
    place = bisect_left(links, peer)
    return place < len(links) and links[place] == peer


class LinksSaid:
    """This peer's own list, as it said it last, and who wants to hear it in full."""

    def __init__(self) -> None:
        self._own: tuple[str, ...] = ()
        self._name = name_of(())
        self._askers: set[str] = set()

    def update(self, linked: Iterable[str]) -> tuple[bytes, tuple[str, ...], bool]:
        """Name and list of these links, and whether they are others than last time."""
        links = tuple(sorted(linked))
        if news := links != self._own:
            self._own, self._name = links, name_of(links)
        return self._name, links, news

    def ask(self, src: str) -> None:
        """`src` lacks the list. It gets it with the next heartbeat, so that asking often gains nothing."""
        self._askers.add(src)

    def take_askers(self) -> set[str]:
        askers, self._askers = self._askers, set()
        return askers


def complete(beat: Heartbeat, before: Heartbeat | None) -> Heartbeat:
    """`beat` with the list that it names, if that came `before`; else without one."""
    if beat.links is None and before is not None and before.listed == beat.listed:
        return replace(beat, links=before.links)
    return beat
