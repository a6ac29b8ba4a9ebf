"""`chaos top`: a run in a terminal. Read-only; everything is drawn from the picture."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Sparkline, Static

from chaos.observe.feed import Feed
from chaos.observe.picture import Event, Link, Peer, Picture

REDRAW_S = 0.5
SHOWN_EVENTS = 200
SHOWN_STEPS = 120
_SIGNS = {
    "member": ("●", "green"),
    "learner": ("◐", "cyan"),
    "joiner": ("○", "cyan"),
    "suspect": ("?", "yellow"),
    "paused": ("‖", "yellow"),
    "gone": ("✕", "red"),
    "left": ("→", "dim"),
    "done": ("✓", "green"),
}
_ORDER = list(_SIGNS)
PEERS = (
    "peer",
    "state",
    "for",
    "step",
    "sums",
    "part in",
    "left out",
    "computing",
    "waiting",
    "exchange",
    "cpu",
    "why",
)
LINKS = ("link", "state", "for", "carries", "rate", "round trip", "losses")
EVENTS = ("when", "view", "handled", "cost", "peer", "what")


class Top(App[None]):
    """Draws what a `Feed` shows. The feed is started and stopped by whoever made it."""

    CSS = """
    #standing { height: auto; padding: 0 1; text-style: bold; }
    #trouble { height: auto; padding: 0 1; color: $error; display: none; }
    #trouble.said { display: block; }
    #pace { height: 2; margin: 0 1; }
    #peers { height: auto; max-height: 45%; }
    #below { height: 1fr; margin-top: 1; }
    #links { width: 3fr; height: 100%; }
    #events { width: 4fr; height: 100%; margin-left: 1; }
    DataTable:focus { border-left: thick $accent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [("q", "quit", "quit"), ("tab", "focus_next", "next table")]
    ENABLE_COMMAND_PALETTE = False
    TITLE = "chaos top"

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self._drawn = -1

    def compose(self) -> ComposeResult:
        yield Static("waiting for the run", id="standing", markup=False)
        yield Static("", id="trouble", markup=False)
        yield Sparkline([], id="pace", summary_function=max)
        yield DataTable(id="peers", cursor_type="row", zebra_stripes=True)
        with Horizontal(id="below"):
            yield DataTable(id="links", cursor_type="row")
            yield DataTable(id="events", cursor_type="row")
        yield Footer()

    def on_mount(self) -> None:
        for name, columns in (("peers", PEERS), ("links", LINKS), ("events", EVENTS)):
            self.query_one(f"#{name}", DataTable).add_columns(*columns)
        self.set_interval(REDRAW_S, self.redraw)
        self.redraw()

    def redraw(self) -> None:
        """Draw anew if there is anything new."""
        if self._feed.version != self._drawn:
            self._drawn = self._feed.version
            self._feed.show(self._draw)

    def _draw(self, picture: Picture, trouble: str) -> None:
        usual = f", usual step {duration(picture.usual_s)}" if picture.usual_s else ""
        self.query_one("#standing", Static).update(f"view {picture.view}, {picture.standing()}{usual}")
        told = self.query_one("#trouble", Static)
        told.update(trouble)
        told.set_class(bool(trouble), "said")
        seconds = [step.seconds for step in list(picture.steps)[-SHOWN_STEPS:] if step.seconds is not None]
        self.query_one("#pace", Sparkline).data = seconds
        peers = sorted(picture.peers.values(), key=lambda p: (_ORDER.index(p.state), p.name))
        self._fill("peers", [peer_cells(peer, picture.at) for peer in peers])
        links = sorted(picture.links.values(), key=lambda link: link.ends)
        self._fill("links", [link_cells(link, picture.at) for link in links if concerns(link, picture)])
        self._fill("events", [event_cells(event) for event in list(picture.events)[: -SHOWN_EVENTS - 1 : -1]])

    def _fill(self, name: str, rows: list[list[Text]]) -> None:
        table = self.query_one(f"#{name}", DataTable)
        row, offset = table.cursor_row, table.scroll_offset
        table.clear()
        table.add_rows(rows)
        if rows:
            table.move_cursor(row=min(row, len(rows) - 1), scroll=False)
            table.scroll_to(offset.x, offset.y, animate=False)


def concerns(link: Link, picture: Picture) -> bool:
    """Not a link to a peer that has gone."""
    return all(
        end not in picture.peers or picture.peers[end].state not in ("gone", "left", "done") for end in link.ends
    )


def cells(*texts: str) -> list[Text]:
    return [Text(text) for text in texts]


def peer_cells(peer: Peer, now: float) -> list[Text]:
    sign, style = _SIGNS[peer.state]
    parts = [duration(peer.worker.get(f"{part}_s")) for part in ("compute", "waiting", "sync")]
    cpu = peer.host.get("cpu")
    made = cells(
        peer.name, "", duration(now - peer.since) if peer.since else "", str(peer.step or ""),
        "" if peer.share is None else f"{peer.share:.0%}", str(peer.contributed), str(peer.late or ""), *parts,
        f"{cpu:.0%}" if isinstance(cpu, float) else "", peer.why,
    )  # fmt: skip
    made[1] = Text(f"{sign} {peer.state}", style=style)
    return made


def link_cells(link: Link, now: float) -> list[Text]:
    use = sum(way.use for way in link.sends.values())
    rates = [way.rate for way in link.sends.values() if way.rate]
    style = {"up": "green", "down": "red", "cut": "yellow"}[link.state]
    made = cells(
        " - ".join(link.ends), "", duration(now - link.since) if link.since else "", f"{size(use)}/s",
        f"{size(min(rates))}/s" if rates else "", duration(link.rtt_s), str(link.losses or ""),
    )  # fmt: skip
    made[1] = Text(link.state, style=style)
    return made


def event_cells(event: Event) -> list[Text]:
    clock = datetime.fromtimestamp(event.at).strftime("%H:%M:%S")
    handled = duration(max(event.handling_ms.values()) / 1000) if event.handling_ms else ""
    cost = duration(event.extra_s) if event.first_step and event.usual_s is not None else ""
    often = f" ({event.times} times)" if event.times > 1 else ""
    made = cells(clock, str(event.view), handled, cost, event.peer, event.text + often)
    if event.kind in ("failure", "suspect", "paused", "worker_died", "worker_failed"):
        made[-1].stylize("red")
    return made


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"
