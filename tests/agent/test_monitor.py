"""What an agent measures of itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chaos.agent import host as host_module
from chaos.agent.host import Cards, Host, cards
from chaos.agent.monitor import SAMPLE_S, SPARE_S, Monitor
from chaos.agent.observer import Observer
from chaos.agent.shards import SHARD
from chaos.agent.transport.link import LinkInfo
from chaos.observe.fold import Fold
from chaos.observe.trace import TraceWriter


def link(**fields: Any) -> LinkInfo:
    values: dict[str, Any] = {
        "rtt_s": 0.02, "rate_bps": 5e6, "control_in": 0, "control_out": 100, "bulk_in": 0, "bulk_out": 1000,
        "kinds_out": {1: 700, SHARD: 300}, "since": 0.0, "lanes": 2, "address": "a:1",
    }  # fmt: skip
    return LinkInfo(**values | fields)


def worker(monitor: Monitor, now: float) -> dict[str, Any]:
    found: dict[str, Any] = monitor.sample({"cpu": 0.0}, [], {}, None, 0, now)["worker"]
    return found


def test_a_step_is_split_into_computing_waiting_sync_and_update() -> None:
    monitor = Monitor()
    worker(monitor, 0.0)
    monitor.boundary(0, 0.4, 0.1, 32.0, now=1.0)
    monitor.contribution(1, now=1.25)
    monitor.contribution(1, now=1.5)
    monitor.finished(1, now=1.75)
    monitor.committed(2.5)
    monitor.contribution(2, now=1.8)
    monitor.boundary(1, 0.2, 0.3, 32.0, now=2.0)
    monitor.finished(2, now=2.125)
    assert worker(monitor, 4.0) == {
        "steps": 2, "samples_per_s": 16.0, "loss": 2.5,
        "compute_s": 0.3, "waiting_s": 0.25, "sync_s": 0.1875, "update_s": 0.2,
    }  # fmt: skip
    assert worker(monitor, 5.0)["steps"] == 0
    assert worker(monitor, 5.0)["compute_s"] is None, "nothing new"


def test_a_step_that_another_peer_s_worker_did_not_compute_here_is_not_counted() -> None:
    monitor = Monitor()
    monitor.contribution(4, now=1.0)
    monitor.finished(4, now=2.0)
    assert worker(monitor, 3.0)["steps"] == 0


def test_bytes_of_a_link_by_purpose() -> None:
    sample = Monitor().sample({}, [], {"bob": link()}, None, 7, 0.0)
    expected = {"rtt_s": 0.02, "rate": 5_000_000, "out": {"control": 100, "gradients": 700, "state": 300}}
    assert sample["links"] == {"bob": expected}
    assert sample["spread_bytes"] == 7


def test_a_sample_is_a_line_that_the_fold_understands(tmp_path: Path) -> None:
    observer = Observer(TraceWriter(tmp_path / "t", "alice"), lambda: (3, 4))
    host = Host(tmp_path)
    for _ in range(2):
        observer.sample(host.sample(), host.cards(), {"bob": link()}, {"step": 1, "bytes": 2, "have": {}})
    fold = Fold()
    fold.take_all(json.loads(text) for text in observer.lines(0, True)["lines"])
    peer = fold.picture.peers["alice"]
    assert 0 <= peer.host["cpu"] <= 1
    assert 0 < peer.host["memory"] < peer.host["memory_total"]
    assert peer.host["disk_free"] > 0
    assert (peer.view, peer.step) == (3, 4)
    assert fold.picture.links["alice bob"].sends["alice"].bytes == {"control": 100, "gradients": 700, "state": 300}
    observer.close()


def test_telling_others_gets_rarer_where_it_costs_more_than_a_hundredth(tmp_path: Path) -> None:
    observer = Observer(TraceWriter(tmp_path / "t", "alice"), lambda: (0, 0))
    assert observer.pause([link(bulk_out=100_000)]) == SAMPLE_S
    observer.spread_bytes = 1002
    assert observer.pause([link(bulk_out=100_000)]) == SPARE_S
    observer.close()


class Library:
    """As pynvml."""

    class NVMLError(Exception):
        pass

    def __init__(self, divided: bool = False, driver: bool = True) -> None:
        self._divided, self._driver = divided, driver

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, _handle: int) -> bytes:
        return b"Card"

    def nvmlDeviceGetMemoryInfo(self, _handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=3, total=8)

    def nvmlDeviceGetUtilizationRates(self, _handle: int) -> SimpleNamespace:
        if self._divided:
            raise self.NVMLError
        return SimpleNamespace(gpu=50)


@pytest.mark.parametrize(("divided", "use"), [(False, 0.5), (True, None)])
def test_cards_are_shown_where_there_are_any(divided: bool, use: float | None) -> None:
    assert Cards(Library(divided)).card(0) == {"name": "Card", "use": use, "memory": 3, "memory_total": 8}


def test_without_library_or_driver_there_are_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module.importlib.util, "find_spec", lambda _: None)
    assert cards() is None
    monkeypatch.setattr(host_module.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(host_module.importlib, "import_module", lambda _: Library(driver=False))
    assert cards() is None
    monkeypatch.setattr(host_module.importlib, "import_module", lambda _: Library())
    found = cards()
    assert found is not None and found.count == 1


def test_a_disk_that_is_not_there_yet_has_no_figure(tmp_path: Path) -> None:
    assert Host(tmp_path / "later").sample()["disk_free"] is None
