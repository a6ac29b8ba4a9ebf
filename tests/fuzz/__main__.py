"""`make fuzz`: libFuzzer over each target in a process of its own, and a line of what it did.

    python -m tests.fuzz [--seconds 60] [--corpus DIR] [TARGET ...]

An input that breaks a target is printed, kept in the corpus, and ends the whole with exit code 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS, seeds

LARGEST = 4096
"""Bytes of an input: enough for any field; lengths that lie are the interesting ones."""
DONE = re.compile(r"Done (\d+) runs in (\d+) second")


def fuzz(name: str, seconds: int, place: Path) -> int:
    """Runs one target in a process of its own. Returns the number of executions, or -1 if it broke."""
    corpus = place / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(data)
    order = [sys.executable, "-m", "tests.fuzz.one", name]
    options = [f"-max_total_time={seconds}", f"-max_len={LARGEST}", "-rss_limit_mb=2048", "-timeout=20"]
    options += ["-verbosity=1", f"-artifact_prefix={corpus}/broken-", str(corpus)]
    done = subprocess.run([*order, *options], capture_output=True, text=True, timeout=seconds + 300)
    found = DONE.search(done.stderr)
    if done.returncode or found is None:
        print(f"{name}: BROKEN\n{done.stderr[-4000:]}", flush=True)
        return -1
    print(f"{name}: {int(found[1])} executions in {found[2]} s, {len(list(corpus.iterdir()))} inputs kept", flush=True)
    return int(found[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, help="kept between runs; default: a temporary directory")
    args = parser.parse_args()
    if unknown := [name for name in args.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}: choose among {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory(prefix="chaos-fuzz-") as temporary:
        counts = [fuzz(name, args.seconds, args.corpus or Path(temporary)) for name in args.targets or TARGETS]
    print(f"{sum(c for c in counts if c > 0)} executions, {sum(c < 0 for c in counts)} of {len(counts)} targets broken")
    return 1 if min(counts) < 0 else 0


if __name__ == "__main__":
    sys.exit(main())
