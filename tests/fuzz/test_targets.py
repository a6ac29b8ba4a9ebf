"""What the fuzzer's targets say to honest input and to damaged one, without the fuzzer: a few hundred inputs each."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_honest_input_is_taken(name: str) -> None:
    assert all(TARGETS[name](data) is not None for data in seeds(name))


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_raises_nothing(name: str) -> None:
    random, refused = Random(name), 0
    for data in seeds(name):
        for _ in range(max(1, 200 // len(seeds(name)))):
            damaged = bytearray(data)
            for _ in range(random.choice([0, 1, 4])):
                damaged[random.randrange(len(damaged))] = random.randrange(256)
            cut = bytes(damaged[: random.choice([len(damaged), random.randrange(len(damaged) + 1)])])
            refused += TARGETS[name](cut) is None
    assert refused or name in ("bulk", "trace", "node")
