"""Simple ways of sharing a state out among several donors, made once, from rates as they were estimated before."""

from __future__ import annotations

from benchmarks.network import Network, Outcome

LAYERS = 24
"""Of the transformer whose tensors are dealt out whole: a fifth of it is the embedding."""


def equal_split(net: Network) -> Outcome:
    """The same from everybody."""
    return Outcome(net.pull({donor.name: net.state_bytes / len(net.donors) for donor in net.donors}), 0.0)


def proportional_split(net: Network) -> Outcome:
    """In proportion to the estimated rates."""
    total = sum(donor.estimate for donor in net.donors)
    return Outcome(net.pull({d.name: net.state_bytes * d.estimate / total for d in net.donors}), 0.0)


def whole_tensors(net: Network) -> Outcome:
    """The next largest tensor to whoever would be done with it first, by the estimated rates."""
    loads = {donor.name: 0.0 for donor in net.donors}
    rates = {donor.name: donor.estimate for donor in net.donors}
    for size in sorted(tensors(net.state_bytes), reverse=True):
        to = min(loads, key=lambda name: (loads[name] + size) / rates[name])
        loads[to] += size
    return Outcome(net.pull({name: load for name, load in loads.items() if load}), 0.0)


def tensors(state_bytes: int) -> list[float]:
    """Sizes of a transformer's tensors with Adam: each is there as parameter and as two moments."""
    part = state_bytes / 3
    layer = 0.8 * part / LAYERS / 12
    one = [0.2 * part, *([layer, layer, layer, layer, 4 * layer, 4 * layer] * LAYERS)]
    return one * 3
