"""`chaos plan`: what the planner would decide, for figures read from standard input."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from chaos.core.errors import ChaosError
from chaos.planning import flow, shards
from chaos.planning.shards import Donor, ShardPlan, ShardRequest

app = typer.Typer(help="Show what the planner decides for figures that you give it.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
"""On one line, as it is part of messages."""


class DonorFigures(msgspec.Struct, forbid_unknown_fields=True):
    """One donor as the request names it: B/s, seconds, seconds per shard, B/s."""

    name: Name
    bandwidth: float
    latency: float = 0.0
    overhead: float = 0.0
    cap: float | None = None


class LinkFigures(msgspec.Struct, forbid_unknown_fields=True):
    """One direction of a link between donors, relays and the joiner: B/s and seconds."""

    source: Name
    target: Name
    bandwidth: float
    latency: float = 0.0


class Figures(msgspec.Struct, forbid_unknown_fields=True):
    """The request on standard input. Sizes in bytes, rates in B/s, times in seconds."""

    state_bytes: int
    chain: list[int]
    donors: list[DonorFigures]
    downlink: float | None = None
    links: list[LinkFigures] | None = None
    """What the donors' bytes travel over; without it each donor has a way of its own."""
    joiner: Name = "joiner"
    """Its name in `links`."""


@app.command(name="shards")
def plan_shards(as_json: AsJson = False) -> None:
    """Say which donor sends how many shards of which size to a joiner.

    Reads a request from standard input, in bytes, seconds and bytes per second:

    {"state_bytes": 300000000, "chain": [1000000, 4000000], "downlink": null, "donors": [{"name": "a",
    "bandwidth": 25e6, "latency": 0.02, "overhead": 0.001, "cap": null}]}

    With "links": [{"source": "a", "target": "b", "bandwidth": 25e6, "latency": 0.01}, ...] as well, the donors
    reach "joiner" over these links only, and share them.
    """
    if sys.stdin.isatty():
        raise ChaosError("no request on standard input: `chaos plan shards < request.json`, see --help for one")
    made = answer(sys.stdin.buffer.read())
    if as_json:
        print(json.dumps(msgspec.to_builtins(made)))
    else:
        Console().print(picture(made))


def answer(text: bytes) -> ShardPlan:
    """The plan for a request. ChaosError, in one line, if the text is none or makes no sense."""
    try:
        figures = msgspec.json.decode(text, type=Figures)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        remedy = "see `chaos plan shards --help` for an example"
        raise ChaosError(f"no request on standard input: {error}; {remedy}") from None
    donors = tuple(
        Donor(name=d.name, bandwidth=d.bandwidth, latency_s=d.latency, overhead_s=d.overhead, cap=d.cap)
        for d in figures.donors
    )
    request = ShardRequest(
        state_bytes=figures.state_bytes, chain=tuple(figures.chain), donors=donors, downlink=figures.downlink
    )
    if figures.links is None:
        return shards.plan(request)
    links = [
        flow.Link(source=x.source, target=x.target, bandwidth=x.bandwidth, latency_s=x.latency) for x in figures.links
    ]
    return flow.plan(request, links, figures.joiner)


def picture(made: ShardPlan) -> Group:
    """The plan as people read it."""
    table = Table("donor", box=SIMPLE)
    for title in ("shards", "MB"):
        table.add_column(title, justify="right")
    for name, count in made.counts.items():
        table.add_row(Text(name), str(count), f"{count * made.shard_bytes / 1e6:.1f}")
    parts: list[RenderableType] = [table]
    if isinstance(made, flow.FlowPlan):
        ways = Table("way", box=SIMPLE)
        for title in ("shards", "MB/s"):
            ways.add_column(title, justify="right")
        for route in made.routes:
            ways.add_row(Text(" > ".join(route.via)), str(route.count), f"{route.rate / 1e6:.2f}")
        parts.append(ways)
    over = made.finish_s / made.limit_s
    parts.append(Text(f"{made.reason}."))
    parts.append(Text(f"done after {made.finish_s:.3f} s, {over:.3f} times the limit of {made.limit_s:.3f} s"))
    return Group(*parts)
