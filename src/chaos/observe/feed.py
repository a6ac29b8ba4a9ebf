"""Keeps the picture of a run up to date, from wherever its lines come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from chaos.core.errors import ChaosError
from chaos.observe.fold import Fold
from chaos.observe.picture import Picture
from chaos.observe.trace import in_order

T = TypeVar("T")
LOOK_S = 0.4
"""Between two looks at the source."""


class Source(Protocol):
    """Where trace lines come from."""

    def read(self) -> list[dict[str, Any]]:
        """Those since the last call. Raises ChaosError if there is none to be had now."""


class Feed:
    """Reads in a thread of its own. What can't be read now is said, and tried again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._fold = Fold()
        self._version = 0
        self._trouble = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def look(self) -> None:
        """Take in what is new."""
        try:
            lines, trouble = self._source.read(), ""
        except ChaosError as error:
            lines, trouble = [], str(error)
        with self._lock:
            if lines or trouble != self._trouble:
                self._version += 1
            self._trouble = trouble
            for line in in_order([[line] for line in lines]):
                self._fold.take(line)

    @property
    def version(self) -> int:
        """Another number whenever there is anything new."""
        return self._version

    def show(self, use: Callable[[Picture, str], T]) -> T:
        """What `use` makes of the picture, and of the reason why nothing new comes (empty: it does)."""
        with self._lock:
            return use(self._fold.picture, self._trouble)

    def _run(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(LOOK_S)
