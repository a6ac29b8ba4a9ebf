"""What the links of a lab are like at the moment, and what may befall them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from random import Random

from chaos.lab.carrier import Carrier, Quality
from chaos.lab.scenario import Fault, Scenario, draw, parse_rate

Pair = tuple[int, int]


class Network:
    """A wire, kept as the scenario and its faults say. Pairs may be given in either order."""

    def __init__(self, wire: Carrier, scenario: Scenario) -> None:
        self._wire = wire
        self._scenario = scenario
        self._random = Random(scenario.seed)
        self._blocked: Counter[Pair] = Counter()
        """Directions that carry nothing now, and how many faults say so."""
        self._quality = {pair: scenario.quality(pair, self._random) for pair in scenario.pairs()}
        for number, host in enumerate(scenario.hosts):
            wire.set_access(number, parse_rate(host.up)[1], parse_rate(host.down)[1], scenario.queue_ms)
        for pair in self._quality:
            self._apply(pair)

    def neighbours(self, host: int) -> list[int]:
        """With whom it has a link."""
        return sorted({a + b - host for a, b in self._quality if host in (a, b)})

    def block(self, directions: Iterable[Pair]) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._count(directions, 1)

    def unblock(self, directions: Iterable[Pair]) -> None:
        """What `block` did, undone once."""
        self._count(directions, -1)

    def change(self, pair: Pair, fault: Fault) -> None:
        """The values that the fault names, from now on."""
        values = {name: getattr(fault, name) for name in ("rate", "latency_ms", "jitter_ms", "loss")}
        given = {name: value for name, value in values.items() if value is not None}
        if "rate" in given:
            given["rate"] = draw(given["rate"], self._random)
        self._set(pair, replace(self._quality[_ordered(pair)], **given))

    def delay(self, pair: Pair, extra_ms: float) -> None:
        """So much more latency; negative: less."""
        quality = self._quality[_ordered(pair)]
        self._set(pair, replace(quality, latency_ms=quality.latency_ms + extra_ms))

    def redraw(self) -> None:
        """Draw the rates anew that are ranges."""
        for pair in self._quality:
            self._set(pair, replace(self._quality[pair], rate=self._scenario.quality(pair, self._random).rate))

    def heal(self) -> None:
        """All links carry again."""
        blocked = [direction for direction, count in self._blocked.items() if count]
        self._blocked.clear()
        for direction in blocked:
            self._apply(_ordered(direction))

    def links_between(self, group: Iterable[int], others: Iterable[int]) -> list[Pair]:
        """Both directions of all links from one to the other."""
        ones, rest = set(group), set(others)
        return [
            way for a, b in self._quality if (a in ones) != (b in ones) and {a, b} & rest for way in ((a, b), (b, a))
        ]

    def _count(self, directions: Iterable[Pair], by: int) -> None:
        for direction in directions:
            self._blocked[direction] = max(0, self._blocked[direction] + by)
            self._apply(_ordered(direction))

    def _set(self, pair: Pair, quality: Quality) -> None:
        self._quality[_ordered(pair)] = quality
        self._apply(_ordered(pair))

    def _apply(self, pair: Pair) -> None:
        if pair not in self._quality:
            return  # there is no such link
        for way in (pair, pair[::-1]):
            self._wire.set_direction(*way, None if self._blocked[way] else self._quality[pair])


def _ordered(pair: Pair) -> Pair:
    return min(pair), max(pair)
