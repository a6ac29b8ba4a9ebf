"""`python -m benchmarks [WHICH]...`: measures, prints tables, and writes them to `results/`. Default: all."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks import allreduce, handling, join, kill, leave, links, observing, scaleout
from benchmarks.report import Table, machine, progress, write

RESULTS = Path(__file__).with_name("results")
ALL: dict[str, Callable[[], Table | list[Table]]] = {
    "allreduce": allreduce.run,
    "handling": handling.run,
    "join": join.run,
    "kill": kill.run,
    "leave": leave.run,
    "links": links.run,
    "observing": observing.run,
    "scaleout": scaleout.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"of {', '.join(ALL)}")
    which = parser.parse_args().which or list(ALL)
    for name in which:
        if name not in ALL:
            parser.error(f"there is no benchmark {name!r}: choose from {', '.join(ALL)}")
    tables: list[Table] = []
    measured_on: list[str] = []
    for name in which:
        now = machine()
        print(now, flush=True)
        found = ALL[name]()
        for table in found if isinstance(found, list) else [found]:
            tables.append(table)
            measured_on.append(now)
            print(table.text(), flush=True)
        page = write(tables, measured_on, RESULTS)
    progress(f"written: {page}")


if __name__ == "__main__":
    main()
