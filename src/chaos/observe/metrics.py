"""The picture of a run as metrics for Prometheus. Names begin with `chaos_`; units are seconds, bytes and ratios."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chaos.observe.feed import Feed
from chaos.observe.picture import Picture

STATES = ("joiner", "learner", "member", "suspect", "paused", "left", "gone", "done")


class PictureCollector(Collector):
    """Reads the picture anew at each scrape."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def collect(self) -> Iterator[Metric]:
        yield from self._feed.show(lambda picture, _: metrics_of(picture))


def metrics_of(picture: Picture) -> list[Metric]:
    return [*_run(picture), *_peers(picture), *_links(picture)]


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(f"chaos_{name}", text, value=value)


def _run(picture: Picture) -> Iterator[Metric]:
    yield from _gauge("step", "Last step that was committed.", picture.step)
    yield from _gauge("stable_step", "Last step that all members hold.", picture.stable)
    yield from _gauge("view", "Id of the installed view.", picture.view)
    yield from _gauge("members", "Members of the view.", len(picture.members))
    yield from _gauge("learners", "Learners of the view.", len(picture.learners))
    last = next((step for step in reversed(picture.steps) if step.loss is not None), None)
    yield from _gauge("loss", "Mean loss of the last step that had samples.", last.loss if last else None)
    yield from _gauge("usual_step_seconds", "Median of undisturbed steps.", picture.usual_s)
    seconds = picture.steps[-1].seconds if picture.steps else None
    yield from _gauge("step_seconds", "From the last step but one to the last.", seconds)
    yield CounterMetricFamily("chaos_samples", "Samples of all steps that were seen.", value=picture.samples)
    yield CounterMetricFamily("chaos_events", "Events that were told.", value=picture.events_told)
    change = next((e for e in reversed(picture.events) if e.handling_ms), None)
    handled = max(change.handling_ms.values()) / 1000 if change else None
    text = "Of the last change of the view: from learning of it to the new view, at the slowest member."
    yield from _gauge("view_handling_seconds", text, handled)


def _peers(picture: Picture) -> Iterator[Metric]:
    state = GaugeMetricFamily("chaos_peer_state", "1 for the state that a peer is in.", labels=["peer", "state"])
    contributed = CounterMetricFamily("chaos_peer_contributions", "Steps that a peer had a part in.", labels=["peer"])
    late = CounterMetricFamily("chaos_peer_left_out", "Steps that a late peer was left out of.", labels=["peer"])
    cpu = GaugeMetricFamily("chaos_peer_cpu_ratio", "Share of the host's cores in use.", labels=["peer"])
    memory = GaugeMetricFamily("chaos_peer_memory_bytes", "Memory in use on the host.", labels=["peer"])
    part = GaugeMetricFamily("chaos_peer_step_seconds", "Parts of a peer's step.", labels=["peer", "part"])
    spread = CounterMetricFamily("chaos_peer_spread_bytes", "Sent to tell others of events.", labels=["peer"])
    for name, peer in sorted(picture.peers.items()):
        for known in STATES:
            state.add_metric([name, known], float(peer.state == known))
        contributed.add_metric([name], peer.contributed)
        late.add_metric([name], peer.late)
        spread.add_metric([name], peer.spread_bytes)
        if isinstance(peer.host.get("cpu"), float):
            cpu.add_metric([name], peer.host["cpu"])
        if isinstance(peer.host.get("memory"), int):
            memory.add_metric([name], peer.host["memory"])
        for key in ("compute", "waiting", "sync", "update"):
            if isinstance(peer.worker.get(f"{key}_s"), float):
                part.add_metric([name, key], peer.worker[f"{key}_s"])
    yield from (state, contributed, late, cpu, memory, part, spread)


def _links(picture: Picture) -> Iterator[Metric]:
    up = GaugeMetricFamily("chaos_link_up", "1 if the link stands.", labels=["a", "b"])
    trip = GaugeMetricFamily("chaos_link_round_trip_seconds", "Lowest of the last pings.", labels=["a", "b"])
    losses = CounterMetricFamily("chaos_link_losses", "How often the link broke.", labels=["a", "b"])
    ways = ["source", "destination"]
    rate = GaugeMetricFamily("chaos_link_rate_bytes_per_second", "Measured while bulk flowed.", labels=ways)
    sent = CounterMetricFamily("chaos_link_sent_bytes", "Sent since the link came up.", labels=[*ways, "purpose"])
    for link in picture.links.values():
        a, b = link.ends
        up.add_metric([a, b], float(link.state == "up"))
        losses.add_metric([a, b], link.losses)
        if link.rtt_s is not None:
            trip.add_metric([a, b], link.rtt_s)
        for source, way in link.sends.items():
            other = b if source == a else a
            if way.rate is not None:
                rate.add_metric([source, other], way.rate)
            for purpose, count in way.bytes.items():
                sent.add_metric([source, other, purpose], count)
    yield from (up, trip, losses, rate, sent)
