"""`chaos events`: what happened, at all peers, in causal order."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from chaos.core.errors import ChaosError
from chaos.observe.sentences import sentence
from chaos.observe.trace import Tail, in_order, trace_files

FOLLOW_S = 0.5
"""Between two looks."""
SETTLE_S = 1.0
"""While following, a line is shown once it is so old: those of other peers that come before it are there by then."""
QUIET = frozenset({"commit", "stable", "boundary", "sample", "trace", "dial_failed"})
"""Not shown unless asked for by --kind."""
_STYLES = {"failure": "red", "suspect": "red", "gone": "red", "paused": "red", "worker_died": "red", "view": "bold"}

Line = dict[str, Any]


def paths_of(given: Iterable[str]) -> list[Path]:
    """Files as they are, and the traces in directories. Raises ChaosError if a directory has none."""
    found: list[Path] = []
    for path in map(Path, given):
        found += trace_files(path) if path.is_dir() else [path]
    return found


def wanted(lines: Iterable[Line], peers: set[str], kinds: set[str]) -> Iterator[Line]:
    """Lines of these peers (also those about them) and kinds; all but the quiet ones if none are named."""
    for line in lines:
        if peers and line["peer"] not in peers and line.get("about") not in peers:
            continue
        if line["kind"] in kinds if kinds else line["kind"] not in QUIET:
            yield line


class Printer:
    """Each line as one line of text, or of JSON."""

    def __init__(self, as_json: bool) -> None:
        self._json = as_json
        self._console = Console()

    def show(self, lines: Iterable[Line]) -> None:
        for line in lines:
            if self._json:
                print(json.dumps(line))
            else:
                self._console.print(in_a_row(line), soft_wrap=True)
        sys.stdout.flush()


def in_a_row(line: Line) -> Text:
    clock = datetime.fromtimestamp(line["wall"]).strftime("%H:%M:%S.%f")[:-3]
    text = Text(f"{clock}  ", style="dim")
    text.append(f"view {line.get('in_view', 0):<3} step {line.get('at_step', 0):<6}", style="dim")
    text.append(f"{line['peer']:<12} ", style="cyan")
    text.append(f"{line['kind']:<17} ", style=_STYLES.get(line["kind"], "green"))
    text.append(sentence(line))
    return text


def follow(new_lines: Callable[[], list[Line]], show: Callable[[list[Line]], None]) -> None:
    """Show what comes, in causal order as far as it has settled, until `new_lines` raises."""
    waiting: list[Line] = []
    while True:
        waiting = in_order([[line] for line in (*waiting, *new_lines())])
        latest = int((time.time() - SETTLE_S) * 1e6)
        # A host whose clock is ahead pulls all stamps ahead: what is newest there is as new as it gets.
        latest = max(latest, waiting[-1]["stamp"] - int(SETTLE_S * 1e6)) if waiting else latest
        settled = sum(line["stamp"] <= latest for line in waiting)
        show(waiting[:settled])
        waiting = waiting[settled:]
        time.sleep(FOLLOW_S)


def show_events(source: Source, following: bool, peers: set[str], kinds: set[str], as_json: bool) -> None:
    """Print what there is, in causal order; with `following` also what comes, until interrupted."""
    printer = Printer(as_json)

    def show(lines: list[Line]) -> None:
        printer.show(wanted(lines, peers, kinds))

    if following:
        follow(source.read, show)
    else:
        show(in_order(source.by_writer()))


class Source(Protocol):
    """Where lines come from."""

    def read(self) -> list[Line]:
        """What is new since the last call."""

    def by_writer(self) -> list[list[Line]]:
        """All there is, those of each writer in the order in which it wrote them."""


class FileSource:
    """Trace files, and those that are or come to be in directories."""

    def __init__(self, given: list[str]) -> None:
        self._given = given
        self._tails: dict[Path, Tail] = {}

    def read(self) -> list[Line]:
        return [line for lines in self.by_writer() for line in lines]

    def by_writer(self) -> list[list[Line]]:
        for path in paths_of(self._given):
            self._tails.setdefault(path, Tail(path))
        return [tail.read() for tail in self._tails.values()]


class AgentSource:
    """What an agent knows of all peers' lines."""

    def __init__(self, address: str, party: Path | None, plain: bool) -> None:
        self._ask = address, party, plain
        self._number = 0

    def read(self) -> list[Line]:
        from chaos.agent.client import request_lines

        address, party, plain = self._ask
        lines, self._number = request_lines(address, self._number, party, plain)
        return lines

    def by_writer(self) -> list[list[Line]]:
        found: dict[str, list[Line]] = {}
        for line in self.read():
            found.setdefault(line["peer"], []).append(line)
        return list(found.values())


def source_of(given: list[str], party: Path | None, plain: bool) -> FileSource | AgentSource:
    """Trace files, if all that was given is on disk; else that agent, or one of this user's on this host."""
    from chaos.cli.status import ask_address

    if given and all(Path(text).exists() for text in given):
        return FileSource(given)
    if len(given) > 1:
        raise ChaosError(f"{next(t for t in given if not Path(t).exists())} is no file; give one peer, or trace files")
    return AgentSource(ask_address(given[0] if given else None, alone=False), party, plain)
