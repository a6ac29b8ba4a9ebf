"""How long a joiner waits for the state, over what the links allow: Chaos and seven other ways on the same networks.

    python -m benchmarks.scaleout            writes results/scaleout.md and results/scaleout.png

Simulated: flows that share uplinks and downlinks fairly, latencies, and on top of it the real `core.fetch` with the
real `planning.replan`, which know nothing of the links beforehand. The other methods that share out know each rate
with an error of 25 %. The limit counts what training leaves over.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks import baselines
from benchmarks.network import JOINER, Instance, Network, Outcome, draw
from benchmarks.report import Table, machine, progress
from chaos.core.actions import Send
from chaos.core.context import Context, NodeConfig
from chaos.core.events import ShardStored
from chaos.core.fetch import Fetch
from chaos.core.messages import ShardRequest, SnapshotOffer
from chaos.core.types import DataState, PeerInfo, StateManifest
from chaos.planning.shards import shard_size

TICK_S = 0.02
RESULTS = Path(__file__).parent / "results"
SLOW, FAST = (20.0, 155.0), (100.0, 1000.0)
"""Mbit/s."""
DONORS = (2, 4, 8, 16, 32)
CASES = {10**8: (4, DONORS), 10**9: (2, (2, 8, 32)), 10**10: (1, (8,))}
"""Bytes of state: how many networks are drawn per number of donors, and for which numbers of donors."""


@dataclass
class Serving:
    """A donor's side, as in the agent: a new request replaces the former, but for what was begun."""

    queue: deque[int] = field(default_factory=deque)
    begun: set[int] = field(default_factory=set)
    busy: bool = False


class Chaos:
    """One join: `core.fetch` on a simulated network."""

    def __init__(self, net: Network) -> None:
        self.net = net
        me = PeerInfo(JOINER, 1, "joiner", "0" * 64, b"\0" * 32, ())
        self.ctx = Context(NodeConfig(verify=lambda *_: True), me)
        size = shard_size(net.state_bytes)
        count = -(-net.state_bytes // size)
        manifest = StateManifest(1, net.state_bytes, (), b"")
        self.fetch = Fetch(self.ctx, SnapshotOffer(1, b"", DataState(), manifest, size, (b"",) * count))
        self.size = size
        self.serving = {donor.name: Serving() for donor in net.donors}
        self.sent = 0

    def run(self) -> Outcome:
        self.fetch.on_held(())
        for donor in self.net.donors:
            self.net.after_request(donor.name, lambda d=donor: self.net.heap.at(d.latency_s, lambda: self._offers(d)))
        self._tick()
        return Outcome(self.net.until(lambda: self.fetch.complete), 0.0)

    def _offers(self, donor: object) -> None:
        self._do(lambda: self.fetch.add(donor.name, (0.0, 2 * donor.latency_s)))

    def _do(self, what: Callable[[], object]) -> None:
        self.ctx.now = self.net.heap.now
        what()
        out, self.ctx.out = self.ctx.out, []
        for action in out:
            if isinstance(action, Send) and isinstance(action.message, ShardRequest):
                request = action.message
                self.net.after_request(action.dst, lambda d=action.dst, r=request: self._asked(d, r))

    def _tick(self) -> None:
        self._do(self.fetch.tick)
        if not self.fetch.complete:
            self.net.heap.at(TICK_S, self._tick)

    def _asked(self, donor: str, request: ShardRequest) -> None:
        serving = self.serving[donor]
        if request.afresh:
            serving.begun.clear()
        serving.queue = deque(shard for shard in request.shards if shard not in serving.begun)
        self._next(donor)

    def _next(self, donor: str) -> None:
        serving = self.serving[donor]
        if serving.busy or not serving.queue:
            return
        shard = serving.queue.popleft()
        serving.begun.add(shard)
        serving.busy = True
        self.sent += 1
        nbytes = min(self.size, self.net.state_bytes - shard * self.size)

        def left() -> None:
            serving.busy = False
            self._next(donor)

        def arrived() -> None:
            self._do(lambda: self.fetch.on_shard(ShardStored(1, shard, donor, True)))

        self.net.send(donor, JOINER, nbytes, left, arrived)


METHODS: dict[str, Callable[[Network], Outcome]] = {
    "Chaos": lambda net: Chaos(net).run(),
    "proportional split": baselines.proportional_split,
    "whole tensors": baselines.whole_tensors,
    "equal split": baselines.equal_split,
    "one source (EDL)": baselines.one_source,
    "nearest neighbour (Elan)": baselines.nearest_neighbour,
    "ring broadcast (Autoscaling)": baselines.all_reduce_broadcast,
    "stop and restart (Pollux)": baselines.stop_and_restart,
}


def measure(instance: Instance) -> dict[str, Outcome]:
    return {name: method(instance.network()) for name, method in METHODS.items()}


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    ratios: dict[tuple[str, int, int], list[float]] = {}
    idle: dict[tuple[str, int, int], list[float]] = {}
    dipped: dict[str, list[float]] = {}
    began = time.monotonic()
    for state_bytes, (number, several) in CASES.items():
        for donors in several:
            for mbits in (SLOW, FAST):
                for seed in range(number):
                    instance = draw(seed, state_bytes, donors, mbits)
                    for name, outcome in measure(instance).items():
                        ratios.setdefault((name, state_bytes, donors), []).append(outcome.delay_s / instance.limit_s)
                        idle.setdefault((name, state_bytes, donors), []).append(outcome.idle_s)
                    if state_bytes == 10**9 and donors == 8:
                        dip = replace(instance, dip=(instance.limit_s / 3, seed % donors, 0.1))
                        for name, outcome in measure(dip).items():
                            dipped.setdefault(name, []).append(outcome.delay_s / instance.limit_s)
            progress(f"{state_bytes:.0e} bytes, {donors} donors: {time.monotonic() - began:.0f} s")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scaleout.md").write_text(text(ratios, idle, dipped))
    picture(ratios, RESULTS / "scaleout.png")
    sys.stdout.write(text(ratios, idle, dipped))


def text(
    ratios: dict[tuple[str, int, int], list[float]],
    idle: dict[tuple[str, int, int], list[float]],
    dipped: dict[str, list[float]],
) -> str:
    by_donors = Table(
        "Delay over the limit, by donors (all states; median, lowest, highest)", ("method", *map(str, DONORS))
    )
    by_state = Table("Delay over the limit, by state", ("method", *(f"{s / 1e9:g} GB" for s in CASES)))
    waits = Table("Seconds for which every incumbent stands still, 1 GB (median)", ("method", *map(str, DONORS)))
    dips = Table(
        "Delay over the limit, 1 GB from 8 donors, of which one falls to a tenth after a third", ("method", "ratio")
    )
    for name in METHODS:
        by_donors.rows.append(
            (name, *(spread([r for s in CASES for r in ratios.get((name, s, d), ())]) for d in DONORS))
        )
        by_state.rows.append(
            (name, *(spread([r for d in DONORS for r in ratios.get((name, s, d), ())]) for s in CASES))
        )
        waits.rows.append((name, *(f"{median(idle[name, 10**9, d]):.0f}" for d in DONORS)))
        dips.rows.append((name, spread(dipped[name])))
    networks = sum(2 * number * len(several) for number, several in CASES.values())
    head = f"# A joiner's state over simulated networks\n\n{__doc__.split(chr(10) * 2, 2)[2].strip()}\n\n"
    head += (
        f"{networks} networks, half of them with links of 20 to 155 Mbit/s and half with 100 to 1000. {machine()}\n\n"
    )
    return head + "\n".join(table.text() for table in (by_donors, by_state, waits, dips))


def picture(ratios: dict[tuple[str, int, int], list[float]], path: Path) -> None:
    """Median ratio by donors, one line per method, on logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 5))
    for name in METHODS:
        middle = [median([r for s in CASES for r in ratios.get((name, s, d), ())]) for d in DONORS]
        own = name == "Chaos"
        axes.plot(DONORS, middle, marker="o", linewidth=3 if own else 1.5, label=name, zorder=3 if own else 2)
    axes.axhline(1.0, color="black", linewidth=1, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(DONORS, [str(d) for d in DONORS])
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("donors")
    axes.set_ylabel("delay / what the links allow (median)")
    axes.set_title("A joiner's wait for the state")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
