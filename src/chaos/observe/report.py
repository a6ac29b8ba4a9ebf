"""A run's report: one page of HTML that needs nothing else, and its pictures as files. From traces, by the fold.

All text of other peers (names, reasons, tracebacks) is escaped where it is put in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from chaos.core.errors import ChaosError
from chaos.observe.fold import Fold
from chaos.observe.picture import Event, Picture
from chaos.observe.plots import LABELLED, Plot, draw_all, presence
from chaos.observe.sentences import CAUSES
from chaos.observe.trace import merge

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.warn { border-left: 4px solid #d55e00; padding: .4rem .8rem; background: #fdf3ec; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2rem; padding: 0; } .facts div { min-width: 7rem; }
.facts dt { color: #595959; font-size: .85rem; } .facts dd { margin: 0; font-size: 1.15rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { width: 100%; height: auto; } pre { background: #f6f6f6; padding: .6rem; overflow-x: auto; font-size: .85rem; }
"""


def write_report(traces: Sequence[Path], out: Path) -> Path:
    """Writes `report.html` and the pictures (`NAME.png`) to `out`; returns the page's path.

    Raises:
        ChaosError: a trace can't be read, nothing can be written, or matplotlib is missing.
    """
    lines = merge(traces)
    picture = Fold().take_all(lines)
    plots = draw_all(picture, presence(lines))
    failures = [
        (str(line["peer"]), str(line.get("traceback", ""))) for line in lines if line["kind"] == "worker_failed"
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            (out / f"{plot.name}.png").write_bytes(plot.png)
        path = out / "report.html"
        path.write_text(page(picture, plots, failures, [p.name for p in traces]), encoding="utf-8")
    except OSError as error:
        raise ChaosError(f"cannot write the report to {out}: {error.strerror}; give another --out DIR") from error
    return path


def page(picture: Picture, plots: Sequence[Plot], failures: Sequence[tuple[str, str]], sources: Sequence[str]) -> str:
    """The whole page."""
    drawn = {plot.name: plot for plot in plots}
    began = datetime.fromtimestamp(picture.began).strftime("%Y-%m-%d %H:%M:%S") if picture.began else "never"
    title = f"Chaos run {picture.run or picture.lineage}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(picture.standing())}; began {began}, {picture.at - picture.began:.0f} s in the traces.</p>",
        _fewer(picture),
        _facts(picture),
        _section("Training", _figure(drawn.get("training"))),
        _section("Timeline", _figure(drawn.get("timeline")), _events(picture)),
        _section("Peers", _peers(picture), _figure(drawn.get("contributions"))),
        _section("Joins", _joins(picture), _figure(drawn.get("joins"))) if picture.joins else "",
        _section("Links", _links(picture), _figure(drawn.get("links"))) if picture.links else "",
        _section("Tracebacks", *(f"<p>{escape(peer)}</p><pre>{escape(text)}</pre>" for peer, text in failures))
        if failures
        else "",
        f"<p><small>From {escape(', '.join(sources))}.</small></p>",
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<style>{STYLE}</style></head><body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


# --- pieces ----------------------------------------------------------------------------------------------


def _section(title: str, *content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(content)}</section>"


def _figure(plot: Plot | None) -> str:
    if plot is None:
        return ""
    svg = plot.svg.replace("<svg", f'<svg role="img" aria-label="{escape(plot.title)}"', 1)
    return f'<figure style="margin:1rem 0">{svg}<figcaption><small>{escape(plot.title)}.</small></figcaption></figure>'


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """Every cell is escaped; columns in `numbers` are aligned to the right."""

    def cells(tag: str, values: Sequence[Any]) -> str:
        marks = [' class="n"' if number in numbers else "" for number in range(len(values))]
        return "".join(f"<{tag}{m}>{escape(str(v))}</{tag}>" for m, v in zip(marks, values, strict=True))

    head = f"<tr>{cells('th', titles)}</tr>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _fewer(picture: Picture) -> str:
    if len(picture.members) >= picture.most_members:
        return ""
    text = f"It ended with {len(picture.members)} of the {picture.most_members} members that it had at most"
    had = {peer.party: peer.name for peer in picture.peers.values() if peer.contributed}
    still = {picture.peers[name].party for name in picture.members if name in picture.peers}
    if missing := [f"{party[:8]} ({name})" for party, name in had.items() if party not in still]:
        text += f", and without parties {', '.join(missing)}"
    return f'<p class="warn">{escape(text)}.</p>'


def _facts(picture: Picture) -> str:
    losses = [step.loss for step in picture.steps if step.loss is not None]
    seconds = picture.at - picture.began
    facts = {
        "last step": picture.step,
        "stable up to": picture.stable,
        "loss": f"{losses[-1]:.4f}" if losses else "none",
        "samples": f"{picture.samples:.0f}",
        "samples per s": f"{picture.samples / seconds:.0f}" if seconds else "unknown",
        "usual step": f"{picture.usual_s * 1000:.1f} ms" if picture.usual_s else "unknown",
        "views": picture.view,
        "peers": len(picture.peers),
        "lineage": picture.lineage,
    }
    inner = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{inner}</dl>'


def _events(picture: Picture) -> str:
    """Changes of the view bear the number that they have in the timeline."""
    marked = [event for event in picture.events if event.handling_ms][-LABELLED:]
    rows = []
    for event in picture.events:
        number = next((n for n, other in enumerate(marked, 1) if other is event), "")
        handled = f"{max(event.handling_ms.values()):.1f} ms" if event.handling_ms else ""
        worked = f"{max(event.computing_ms.values()):.2f} ms" if event.computing_ms else ""
        cost = f"{event.extra_s * 1000:.0f} ms" if event.handling_ms and event.usual_s is not None else ""
        times = f" ({event.times} times)" if event.times > 1 else ""
        rows.append(
            (number, f"{event.at - picture.began:.2f} s", event.peer, _what(event) + times, handled, worked, cost)
        )
    dropped = picture.events_told - len(picture.events)
    note = f"<p><small>{dropped} older ones are left out.</small></p>" if dropped > 0 else ""
    titles = ("", "at", "told by", "what", "to the new view", "of it work", "steps took longer")
    return _table(titles, rows, (0, 1, 4, 5, 6)) + note


def _what(event: Event) -> str:
    causes = "; ".join(f"{about} {CAUSES.get(kind, kind)}".strip() for kind, about in event.causes)
    return f"view {event.view}: {causes} ({event.reason})" if causes else event.text


def _peers(picture: Picture) -> str:
    seen = picture.step - picture.first_step + 1 if picture.first_step else 0
    rows = [
        (p.name, p.party[:8], p.state, p.why, p.step, p.contributed, f"{p.contributed / seen:.0%}" if seen else "",
         p.late or "")
        for p in picture.peers.values()
    ]  # fmt: skip
    titles = ("peer", "party", "in the end", "why", "step", "part in steps", "of all", "left out of")
    return _table(titles, rows, (4, 5, 6, 7))


def _joins(picture: Picture) -> str:
    rows = []
    for join in picture.joins.values():
        took = f"{join.ended - join.began:.2f} s" if join.ended else "not over"
        sources = ", ".join(f"{donor} {count / 1e6:.1f} MB" for donor, count in join.sources.items())
        rows.append((join.peer, f"{join.began - picture.began:.2f} s", took, join.outcome or join.phase,
                     f"{join.bytes / 1e6:.1f} MB", sources, f"{join.extra_s * 1000:.0f} ms"))  # fmt: skip
    titles = ("peer", "began", "took", "outcome", "state", "shards from", "others' steps took longer")
    return _table(titles, rows, (1, 2, 4, 6))


def _links(picture: Picture) -> str:
    rows = []
    for link in picture.links.values():
        a, b = link.ends
        sent = [link.sends.get(end) for end in (a, b)]
        totals = [f"{sum(way.bytes.values()) / 1e6:.1f} MB" if way else "" for way in sent]
        rates = [f"{way.rate / 1e6:.1f} MB/s" if way and way.rate else "" for way in sent]
        rtt = f"{link.rtt_s * 1000:.1f} ms" if link.rtt_s else ""
        rows.append((a, b, link.state, rtt, totals[0], totals[1], rates[0], rates[1], link.losses or "", link.why))
    titles = ("from", "to", "in the end", "round trip", "there", "back", "rate there", "rate back", "lost", "why")
    return _table(titles, rows, (3, 4, 5, 6, 7, 8))
