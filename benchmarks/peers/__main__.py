"""`python -m benchmarks.peers [SYSTEM]...`: Chaos beside what users would pick instead.

Writes `results/peers-DATE.md` and `.json` after every event, and extends what it wrote earlier that day. Without
options: all systems on loopback, under two sorts of churn with half a second of computing a step, and over links of
200 Mbit/s with two.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.peers.churn import EVERY_S
from benchmarks.peers.hosts import TooLate
from benchmarks.peers.measure import EVENTS, Noted, Plan, measure
from benchmarks.peers.page import page, pictures
from benchmarks.peers.places import Links, Place
from benchmarks.peers.results import Observation, Results, Setting, read, this_call, write
from benchmarks.peers.systems import SYSTEMS, VENVS, System
from benchmarks.report import draw, progress
from chaos.cli.lab import enter_user_namespace
from chaos.core.errors import ChaosError
from chaos.lab.wire import missing

RESULTS = Path(__file__).parents[1] / "results"
VARIANTS = ("tight", "default")


@dataclass(frozen=True)
class Work:
    """Links, seconds of computing between the steps, and what is to happen."""

    links: Links
    compute: float
    events: tuple[str, ...] = EVENTS
    every: float = EVERY_S
    """Seconds between two events of the churn."""


SINGLE = tuple(event for event in EVENTS if event != "churn")
DEFAULT = (
    Work(Links(), 0.0, SINGLE),
    Work(Links(), 0.5, ("churn",)),
    Work(Links(), 0.5, ("churn",), every=5.0),
    Work(Links("200mbit"), 2.0, SINGLE),
)
"""At 200 Mbit/s a step's 100 MB take 5.3 s at least: computing is a quarter of a step."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    path = options.out / f"peers-{datetime.now(UTC):%Y-%m-%d}.json"
    if options.page:
        write_page(path, read(path))
        return
    namespaces = may_make_namespaces()
    path.parent.mkdir(parents=True, exist_ok=True)
    results = read(path)
    results.calls.append("; ".join(part for part in (this_call(), options.note) if part))
    progress(results.calls[-1])
    for work in options.work:
        plan = Plan(work.events, options.rounds, options.churn * 60, work.every, options.seed, options.patience)
        every = work.every if "churn" in work.events else 0.0
        if work.links.rate and not namespaces:
            progress(f"left out: {work.links}, as there is no right to make shaped links")
            continue
        for name, tuned in wanted(options.systems, options.settings):
            label = SYSTEMS[name].label or name
            setting = Setting(label, tuned, str(work.links), work.compute, options.millions, every)
            progress(f"--- {setting.label}, {setting.links}")
            measure_one(Row(name, setting, work, namespaces), plan, results, path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"of {', '.join(SYSTEMS)}; default: all")
    parser.add_argument("--millions", type=int, default=25, help="parameters")
    parser.add_argument("--links", metavar="RATE", help="200mbit, or loopback; default: both")
    parser.add_argument("--delay", default="0ms", help="one way, where links have a rate")
    parser.add_argument("--compute", type=float, metavar="SECONDS", help="of each step in which workers only sleep")
    parser.add_argument("--rounds", type=int, default=3, help="joins, leaves, kills and freezes of each")
    parser.add_argument("--settings", choices=(*VARIANTS, "both"), default="both")
    parser.add_argument("--events", help=f"of {','.join(EVENTS)}; '' for steps only")
    parser.add_argument("--churn", type=float, default=4.0, metavar="MINUTES")
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="between two events of the churn; default: 15 and 5, 15 with other options",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the churn")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds; what takes longer has failed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for the results")
    parser.add_argument("--note", default="", help="what else is to be known of this call, for the page")
    parser.add_argument("--page", action="store_true", help="measure nothing, only write today's page anew")
    options = parser.parse_args(arguments)
    for name in options.systems:
        if name not in SYSTEMS:
            parser.error(f"there is no system {name!r}: choose from {', '.join(SYSTEMS)}")
    try:
        options.work = works(options)
    except (ValueError, ChaosError) as error:
        parser.error(str(error))
    return options


def works(options: argparse.Namespace) -> list[Work]:
    """Those asked for; raises ValueError or ChaosError."""
    given = options.links, options.compute, options.events, options.every
    if options.links is None and options.delay != "0ms":
        raise ValueError("--delay needs --links")
    if options.every is not None and options.every < 1:
        raise ValueError(f"--every {options.every:g}: at least a second lies between two events")
    if given == (None, None, None, None):
        return list(DEFAULT)
    events = EVENTS if options.events is None else tuple(event for event in options.events.split(",") if event)
    for event in events:
        if event not in EVENTS:
            raise ValueError(f"there is no event {event!r}: choose from {', '.join(EVENTS)}")
    links = Links.parse(options.links or "loopback", options.delay)
    return [Work(links, options.compute or 0.0, events, options.every or EVERY_S)]


def wanted(names: Sequence[str], settings: str) -> list[tuple[str, str]]:
    """Systems with their settings. Chaos has only one sort of settings."""
    variants = VARIANTS if settings == "both" else (settings,)
    rows = []
    for name in names or list(SYSTEMS):
        if name.startswith("chaos"):
            rows.append((name, ""))
        elif not (VENVS / SYSTEMS[name].name).exists():
            progress(f"{name} is left out: there is no {VENVS / SYSTEMS[name].name}; `make bench-peers` makes it")
        else:
            rows += [(name, variant) for variant in variants]
    return rows


def may_make_namespaces() -> bool:
    with suppress(ChaosError):  # what is missing is said next
        enter_user_namespace("benchmarks.peers")
    if (reason := missing()) is not None:
        progress(f"no namespaces: {reason}; bytes are not counted")
        return False
    return True


@dataclass(frozen=True)
class Row:
    """One system, as it is measured now."""

    name: str
    setting: Setting
    work: Work
    namespaces: bool

    @contextmanager
    def opened(self) -> Iterator[System]:
        with Place(self.work.links, self.namespaces) as place:
            kind, setting = SYSTEMS[self.name], self.setting
            with kind(place, setting.millions, setting.compute, setting.tuned == "tight") as system:
                yield system


def write_page(path: Path, results: Results) -> None:
    path.with_suffix(".md").write_text(page(results, path.stem.removeprefix("peers-"), path.name))
    for name, table in pictures(results, path.stem).items():
        draw(table, path.with_name(name))
    progress(f"written: {path.with_suffix('.md')}")


def measure_one(row: Row, plan: Plan, results: Results, path: Path) -> None:
    def note(noted: Noted) -> None:
        number = len(results.calls)
        results.observations.append(
            Observation(row.setting, noted.event, noted.values, noted.printed, noted.failed, number)
        )
        write(path, results)
        write_page(path, results)

    try:
        measure(row.opened, plan, note)
    except (ChaosError, TooLate, OSError) as error:
        note(Noted("steady", failed=f"could not be started: {error}"))


if __name__ == "__main__":
    main()
