from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.e2e.cluster import Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Peers in a folder of their own; a short one, as paths of sockets are limited to 107 bytes."""
    with TemporaryDirectory(prefix="chaos-e2e-") as folder:
        made = Cluster(Path(folder))
        try:
            yield made
            left = made.leaked()
        finally:
            made.kill_all()
        assert not left, f"still running after their launchers ended: {left}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its peers printed and traced last."""
    report = yield
    made = getattr(item, "funcargs", {}).get("cluster")
    if report.failed and report.when == "call" and isinstance(made, Cluster):
        report.sections.append(("peers", made.tails()))
    return report
