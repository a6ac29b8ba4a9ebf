"""What a line must have so that a picture can be made of it: a member may tell anything, and all who look fold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(max_length=4096)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0.0, le=1e15)]
Names = Annotated[list[Name], Meta(max_length=2048)]
Bytes = dict[Name, Number]
Figures = dict[Name, float | None]


class Common(msgspec.Struct):
    """Of every line. Stamps are microseconds; those of the next century are no stamps."""

    peer: Name
    stamp: Annotated[int, Meta(ge=0, le=2**52)]
    in_view: Number = 0
    at_step: Number = 0
    reason: str = ""
    about: Name = ""


class View(Common, kw_only=True):
    view: Number
    lineage: Name
    members: Names
    learners: Names
    ids: Names
    parties: Names
    first_step: Number
    abort: bool
    shares: list[Number]
    cut: list[tuple[Name, Name]]


class Handled(Common, kw_only=True):
    view: Number
    cause: str
    causes: list[tuple[str, str]]
    handling_ms: Seconds
    computing_ms: Seconds
    acting_ms: Seconds


class Commit(Common, kw_only=True):
    step: Number
    view: Number
    loss: float | None
    weight: Seconds
    contributors: Names
    late: Names
    skip: str | None


class Way(msgspec.Struct, kw_only=True):
    rtt_s: Seconds | None
    rate: Seconds | None
    out: Bytes


class Coming(msgspec.Struct, kw_only=True):
    step: Number
    bytes: Number
    have: Bytes


class Sample(Common, kw_only=True):
    host: Figures
    gpus: list[dict[Name, float | str | None]]
    worker: Figures
    spread_bytes: Number
    links: dict[Name, Way]
    join: Coming | None


class Fetched(Common, kw_only=True):
    step: Number
    bytes: Number
    sources: Bytes


class Stable(Common, kw_only=True):
    step: Number


class Stop(Common, kw_only=True):
    code: Number


class Learner(Common, kw_only=True):
    phase: Name


class About(Common, kw_only=True):
    about: Annotated[str, Meta(min_length=1, max_length=4096)]


SHAPES: dict[str, type[Common]] = {
    "view": View,
    "handled": Handled,
    "commit": Commit,
    "sample": Sample,
    "fetched_state": Fetched,
    "stable": Stable,
    "stop": Stop,
    "learner": Learner,
    **dict.fromkeys(("link_up", "link_down", "suspect", "trust", "gone", "goodbye"), About),
}


def is_sound(line: Mapping[str, Any]) -> bool:
    """Whether the fields that a picture is made of are of their types and in range."""
    try:
        msgspec.convert(line, SHAPES.get(line["kind"], Common))
    except (msgspec.ValidationError, KeyError, TypeError):
        return False
    return True
