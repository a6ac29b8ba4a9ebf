"""What published systems do."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.network import JOINER, Network, Outcome


def one_source(net: Network) -> Outcome:
    """EDL (Wu et al., 2019): nobody stops; the state comes from one worker, the first."""
    return Outcome(net.pull({net.donors[0].name: net.state_bytes}), 0.0)


def nearest_neighbour(net: Network) -> Outcome:
    """Elan (Xie et al., 2020): each new worker is fed by the neighbour that is nearest in the topology, then all go on.

    The incumbents wait while it is copied.
    """
    nearest = min(net.donors, key=lambda donor: donor.latency_s)
    delay = net.pull({nearest.name: net.state_bytes})
    return Outcome(delay, delay)


def stop_and_restart(net: Network) -> Outcome:
    """Pollux (Qiao et al., 2021): all stop, and all read the checkpoint from where it lies: the best uplink."""
    best = max(net.donors, key=lambda donor: donor.rate)
    others = [donor.name for donor in net.donors if donor is not best]
    delay = net.copy([(best.name, to, net.state_bytes) for to in [*others, JOINER]])
    return Outcome(delay, delay)


def all_reduce_broadcast(net: Network) -> Outcome:
    """Autoscaling (Or et al., 2020): the collective is built anew, then the state goes around its ring."""
    ring = [*(donor.name for donor in net.donors), JOINER]
    delay = net.copy([(a, b, net.state_bytes) for a, b in pairwise(ring)])
    return Outcome(delay, delay)
