"""What the host is doing: processor, memory, disk, network, and graphics cards where their library is installed."""

from __future__ import annotations

import importlib
import importlib.util
import time
from pathlib import Path
from typing import Any

import psutil


class Host:
    """`sample` may block on a slow disk: call it in a thread of its own, one at a time."""

    def __init__(self, disk: Path) -> None:
        """`disk`: any path on the file system whose free space matters."""
        self._disk = disk
        self._process = psutil.Process()
        self._cards = cards()
        self._net: tuple[float, int, int] | None = None

    def sample(self) -> dict[str, Any]:
        """Bytes, bytes per second, and shares from 0 to 1. `agent_cpu`: cores that this agent keeps busy."""
        memory = psutil.virtual_memory()
        return {
            "cpu": round(psutil.cpu_percent() / 100, 3),
            "cores": psutil.cpu_count() or 1,
            "agent_cpu": round(self._process.cpu_percent() / 100, 3),
            "memory": memory.total - memory.available,
            "memory_total": memory.total,
            "disk_free": self._free(),
            **self._network(),
        }

    def _free(self) -> int | None:
        try:
            return int(psutil.disk_usage(str(self._disk)).free)
        except OSError:
            return None  # the directory is not there yet

    def _network(self) -> dict[str, int]:
        """Of all interfaces but loopback."""
        now = time.monotonic()
        counters = [c for name, c in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        received, sent = sum(c.bytes_recv for c in counters), sum(c.bytes_sent for c in counters)
        before, self._net = self._net, (now, received, sent)
        if before is None or now <= before[0]:
            return {"net_in": 0, "net_out": 0}
        seconds = now - before[0]
        return {"net_in": int((received - before[1]) / seconds), "net_out": int((sent - before[2]) / seconds)}

    def cards(self) -> list[dict[str, Any]]:
        """One entry per graphics card."""
        return [self._cards.card(index) for index in range(self._cards.count)] if self._cards else []


class Cards:
    """Graphics cards, by the vendor's library (nvidia-ml-py)."""

    def __init__(self, library: Any) -> None:
        library.nvmlInit()
        self._library = library
        self.count = int(library.nvmlDeviceGetCount())

    def card(self, index: int) -> dict[str, Any]:
        library = self._library
        handle = library.nvmlDeviceGetHandleByIndex(index)
        memory = library.nvmlDeviceGetMemoryInfo(handle)
        name = library.nvmlDeviceGetName(handle)
        try:
            use: float | None = library.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except library.NVMLError:
            use = None  # a card that is divided among several users does not tell
        return {
            "name": name.decode() if isinstance(name, bytes) else name,
            "use": use,
            "memory": int(memory.used),
            "memory_total": int(memory.total),
        }


def cards() -> Cards | None:
    """None without the library, a driver or a card."""
    if importlib.util.find_spec("pynvml") is None:
        return None
    library = importlib.import_module("pynvml")
    try:
        found = Cards(library)
    except library.NVMLError:
        return None
    return found if found.count else None
