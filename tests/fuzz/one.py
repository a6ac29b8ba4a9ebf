"""One target under libFuzzer, which ends the process: `python -m tests.fuzz.one TARGET [libFuzzer's options]`."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["chaos"]):
    from tests.fuzz.targets import TARGETS, seeds

if __name__ == "__main__":
    name = sys.argv.pop(1)
    for data in seeds(name):
        TARGETS[name](data)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
