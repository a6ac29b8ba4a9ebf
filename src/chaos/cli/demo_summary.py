"""The demo's result: from the peers' traces to the figures that are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chaos.cli import demo_lineage
from chaos.cli.demo_costs import Cost, Event, costs
from chaos.core.errors import ChaosError
from chaos.observe.trace_file import Entry


@dataclass(frozen=True)
class Summary:
    """What came of the run. The field names are those of the JSON output."""

    steps: int
    """The last stable step."""
    loss_first: float
    loss_last: float
    peers_final: int
    """Members in the last stable step."""
    digests_equal: bool
    lost_updates: int
    samples_counted_twice: int
    events: tuple[Cost, ...]

    @property
    def kept_its_promises(self) -> bool:
        """All members hold the same bytes, nothing stable was lost, and no sample counts twice."""
        return self.digests_equal and self.lost_updates == 0 and self.samples_counted_twice == 0

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds to the microsecond."""
        values = asdict(self)
        values["events"] = [
            {**event, "delay_s": round(event["delay_s"], 6), "stall_s": round(event["stall_s"], 6)}
            for event in values["events"]
        ]
        return values


def summarise(entries: Sequence[Entry], events: Sequence[Event], ids: dict[str, str]) -> Summary:
    """Judge a run that has ended.

    Args:
        entries: all peers' traces, in order of time.
        events: what was done to the run; those without an end are left out.
        ids: peer ids by name.

    Raises:
        ChaosError: no step became stable, so there is nothing to judge.
    """
    lineage = demo_lineage.read_lineage(entries)
    losses = demo_lineage.losses(lineage)
    if not losses:
        raise ChaosError("no step of the run became stable; see what the peers printed")
    return Summary(
        steps=lineage.last_stable,
        loss_first=losses[0],
        loss_last=losses[-1],
        peers_final=len(lineage.members),
        digests_equal=demo_lineage.digests_equal(lineage),
        lost_updates=demo_lineage.lost_updates(lineage),
        samples_counted_twice=demo_lineage.samples_counted_twice(lineage),
        events=tuple(costs(entries, events, ids)),
    )
