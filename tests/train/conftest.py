from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from tests.train.fake_agent import FakeAgent


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Several workers share one process here; more threads would only fight."""
    torch.set_num_threads(1)


@pytest.fixture
def agents() -> Iterator[Callable[..., FakeAgent]]:
    """Makes fake agents, and ends them with the test. A short folder: socket paths are limited to 107 bytes."""
    made: list[FakeAgent] = []
    with TemporaryDirectory(prefix="chaos-") as folder:

        def make(**options: int) -> FakeAgent:
            path = Path(folder) / str(len(made))
            path.mkdir()
            made.append(FakeAgent(path, **options))
            return made[-1]

        yield make
        for agent in made:
            agent.close()
            assert not agent.problems
