"""What a report shows as pictures. Needs matplotlib, which `pip install 'chaos-train[report]'` brings."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaos.core.errors import ChaosError
from chaos.observe.picture import Picture
from chaos.observe.shapes import is_sound

WIDTH_IN = 9.0
LABELLED = 24
"""Events that get a mark of their own in the timeline: the newest, as more can't be told apart."""
COLOURS = {
    "member": "#0072b2",
    "learner": "#e69f00",
    "loss": "#000000",
    "rate": "#009e73",
    "step": "#0072b2",
    "usual": "#999999",
    "event": "#d55e00",
    "control": "#56b4e9",
    "gradients": "#0072b2",
    "state": "#e69f00",
    "late": "#d55e00",
}
"""Okabe and Ito's, which people with any kind of colour blindness tell apart."""
DONORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")


STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and is escaped
    "text.parse_math": False,  # a name may have dollar signs in it
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
Drawing = tuple[str, str, float, Callable[[Any], None], bool]
"""Name, title, height in inches, what draws it on a figure, whether there is anything to draw."""


@dataclass(frozen=True)
class Span:
    """A peer had a role from `start` to `end`: seconds since 1970."""

    peer: str
    role: str
    start: float
    end: float


@dataclass(frozen=True)
class Plot:
    """One picture: drawn for the page, and for a file."""

    name: str
    title: str
    svg: str
    png: bytes


def presence(lines: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Who was member or learner, and when: from the views, each as it was first installed."""
    found: list[Span] = []
    now: dict[str, tuple[str, float]] = {}
    newest, at = 0, 0.0
    for line in filter(is_sound, lines):
        at = max(at, line["stamp"] / 1e6)
        if line["kind"] != "view" or line["view"] <= newest:
            continue
        newest = line["view"]
        roles = dict.fromkeys(map(str, line["learners"]), "learner") | dict.fromkeys(
            map(str, line["members"]), "member"
        )
        for peer, (role, since) in list(now.items()):
            if roles.get(peer) != role:
                found.append(Span(peer, role, since, at))
                del now[peer]
        for peer, role in roles.items():
            now.setdefault(peer, (role, at))
    return found + [Span(peer, role, since, at) for peer, (role, since) in now.items()]


def _drawings(picture: Picture, spans: Sequence[Span]) -> list[Drawing]:
    peers, joins, links = picture.peers.values(), picture.joins.values(), picture.links.values()
    what_happened = "Who was there, and what happened"
    return [
        ("training", "Loss and time per step", 3.2, lambda f: _training(f, picture), bool(picture.series.points)),
        ("timeline", what_happened, _height(spans), lambda f: _timeline(f, picture, spans), bool(spans)),
        ("contributions", "Steps that each peer had a part in", _bars(len(peers)), lambda f: _parts(f, picture),
         any(peer.contributed for peer in peers)),
        ("joins", "Where the state of each joiner came from", _bars(len(joins)), lambda f: _joins(f, picture),
         any(join.sources for join in joins)),
        ("links", "Bytes over each link, by purpose", _bars(2 * len(links)), lambda f: _links(f, picture),
         any(link.sends for link in links)),
    ]  # fmt: skip


def draw_all(picture: Picture, spans: Sequence[Span]) -> list[Plot]:
    """Those pictures for which there is something to show. Raises ChaosError: matplotlib is not there."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ChaosError("a report needs matplotlib: pip install 'chaos-train[report]'") from error
    found = []
    for name, title, height, draw, wanted in _drawings(picture, spans):
        if wanted:
            with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
                figure = Figure(figsize=(WIDTH_IN, height))
                draw(figure)
                found.append(Plot(name, title, _svg(figure), _png(figure)))
    return found


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = re.sub("<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)  # it names other hosts
    return text[text.index("<svg") :]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _bars(count: int) -> float:
    return 1.0 + 0.28 * max(count, 1)


def _height(spans: Sequence[Span]) -> float:
    return 1.4 + 0.28 * len({span.peer for span in spans})


# --- one each --------------------------------------------------------------------------------------------


def _training(figure: Any, picture: Picture) -> None:
    from matplotlib.ticker import LogFormatter  # in plain digits; the usual one sets mathematics

    points = picture.series.points
    seconds = [at - picture.began for at, *_ in points]
    left, right = figure.subplots(1, 2)
    left.plot(seconds, [p[2] if p[2] is not None else float("nan") for p in points], color=COLOURS["loss"], lw=1)
    left.set(xlabel="seconds", ylabel="loss")
    right.plot(seconds, [(p[4] or float("nan")) * 1000 for p in points], color=COLOURS["step"], lw=1, label="step")
    if picture.usual_s:
        right.axhline(picture.usual_s * 1000, color=COLOURS["usual"], ls="--", lw=1, label="usual")
    changes = [event.at - picture.began for event in picture.events if event.handling_ms]
    for number, at in enumerate(changes):
        label = "change of the view" if number == 0 else None
        right.axvline(at, color=COLOURS["event"], ls=":", lw=1, label=label)
    right.set(xlabel="seconds", ylabel="ms per step", yscale="log")
    right.yaxis.set_major_formatter(LogFormatter())
    right.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2.0, 0.5)))
    right.legend(frameon=False, fontsize=8)


def _timeline(figure: Any, picture: Picture, spans: Sequence[Span]) -> None:
    axes = figure.subplots()
    peers = sorted({span.peer for span in spans})
    labelled: set[str] = set()
    for span in spans:
        label = None if span.role in labelled else span.role
        labelled.add(span.role)
        start, width = span.start - picture.began, span.end - span.start
        hatch = "///" if span.role == "learner" else None
        axes.barh(peers.index(span.peer), width, left=start, height=0.6, color=COLOURS[span.role], hatch=hatch,
                  edgecolor="white", linewidth=0, label=label)  # fmt: skip
    marked = [event for event in picture.events if event.handling_ms][-LABELLED:]
    for number, event in enumerate(marked, 1):
        axes.axvline(event.at - picture.began, color=COLOURS["event"], ls=":", lw=1)
        axes.annotate(
            str(number),
            (event.at - picture.began, -0.6 - 0.35 * (number % 2)),
            ha="center",
            color=COLOURS["event"],
            fontsize=8,
        )
    axes.set_yticks(range(len(peers)), peers)
    axes.set_ylim(len(peers) - 0.4, -1.2)
    axes.set_xlabel("seconds; the numbers are those of the events below")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _stacked(axes: Any, names: Sequence[str], parts: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    """Horizontal bars; each part has its own colour and hatching."""
    base = [0.0] * len(names)
    for number, (part, values) in enumerate(parts.items()):
        hatch = (None, "///", "...", "xxx")[number % 4]
        axes.barh(range(len(names)), values, left=base, height=0.6, color=colours[part], hatch=hatch, edgecolor="white",
                  linewidth=0, label=part)  # fmt: skip
        base = [a + b for a, b in zip(base, values, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    if parts:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _parts(figure: Any, picture: Picture) -> None:
    axes = figure.subplots()
    peers = [peer for peer in picture.peers.values() if peer.contributed or peer.late]
    parts = {"contributed": [float(p.contributed) for p in peers]}
    if any(p.late for p in peers):
        parts["late"] = [float(p.late) for p in peers]
    _stacked(axes, [p.name for p in peers], parts, {"contributed": COLOURS["member"], "late": COLOURS["late"]})
    axes.set_xlabel("steps")


def _joins(figure: Any, picture: Picture) -> None:
    axes = figure.subplots()
    joins = [join for join in picture.joins.values() if join.sources]
    donors = sorted({donor for join in joins for donor in join.sources})
    parts = {donor: [join.sources.get(donor, 0) / 1e6 for join in joins] for donor in donors}
    colours = {donor: DONORS[number % len(DONORS)] for number, donor in enumerate(donors)}
    _stacked(axes, [join.peer for join in joins], parts, colours)
    axes.set_xlabel("MB of shards, by donor")


def _links(figure: Any, picture: Picture) -> None:
    axes = figure.subplots()
    ways = [(f"{a} to {b}", link.sends[a].bytes) for link in picture.links.values()
            for a, b in (link.ends, link.ends[::-1]) if a in link.sends]  # fmt: skip
    purposes = [p for p in ("control", "gradients", "state") if any(p in sent for _, sent in ways)]
    parts = {purpose: [sent.get(purpose, 0) / 1e6 for _, sent in ways] for purpose in purposes}
    _stacked(axes, [name for name, _ in ways], parts, COLOURS)
    axes.set_xlabel("MB since the link came up")
