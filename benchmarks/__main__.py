"""`python -m benchmarks [WHICH]...`: measures and prints tables. Default: all."""

from __future__ import annotations

import argparse

from benchmarks import allreduce, handling, join, kill, leave, observing
from benchmarks.report import machine

ALL = {
    "allreduce": allreduce.run,
    "handling": handling.run,
    "join": join.run,
    "kill": kill.run,
    "leave": leave.run,
    "observing": observing.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"of {', '.join(ALL)}")
    which = parser.parse_args().which or list(ALL)
    for name in which:
        if name not in ALL:
            parser.error(f"there is no benchmark {name!r}: choose from {', '.join(ALL)}")
    for name in which:
        print(machine(), flush=True)
        print(ALL[name]().text(), flush=True)


if __name__ == "__main__":
    main()
