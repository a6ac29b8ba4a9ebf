"""Real peers for the benchmarks: agents, workers and launchers on loopback, followed by their traces."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

from chaos.cli.demo_peers import DemoPeers, name_of
from chaos.core.errors import ChaosError
from chaos.lab.peer import Peer
from chaos.observe.trace_file import Entry, TraceFiles

HERE = Path(__file__).resolve().parent
WORKER = HERE / "worker.py"
PATIENCE_S = 180.0


def python_path(*more: Path) -> str:
    """What PYTHONPATH has to be for workers, which import `benchmarks`."""
    return os.pathsep.join(map(str, (HERE.parent, HERE.parent / "src", *more)))


class Peers:
    """Peers that run `benchmarks/worker.py`; none is left on leaving the block. Time is the monotonic clock's."""

    def __init__(self, args: list[str], plain: bool = False, instrument: bool = False) -> None:
        self._environment = {"PYTHONPATH": python_path(*([HERE / "instrument"] if instrument else []))}
        self._demo = DemoPeers(WORKER, args)
        self._plain = ["--plain"] if plain else []
        self._files: dict[str, TraceFiles] = {}
        self.entries: list[Entry] = []
        """All lines read so far, in order of time."""

    def __enter__(self) -> Peers:
        self._before = {key: os.environ.get(key) for key in self._environment}
        os.environ.update(self._environment)
        self._demo.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for key, value in self._before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        self._demo.__exit__(kind, error, trace)

    @property
    def directory(self) -> Path:
        return self._demo.directory

    def environment(self) -> dict[str, str]:
        """What a process gets that is to end with these peers."""
        return self._demo.environment()

    def found(self, count: int, *options: str) -> None:
        """Start so many peers; the first step waits for all of them."""
        self.start(1, "--min-peers", str(count), *options)
        for number in range(2, count + 1):
            self.join(number, 1, *options)

    def start(self, number: int, *options: str) -> Peer:
        peer = self._demo.start(number, *self._plain, *options)
        self._files.setdefault(peer.name, TraceFiles({peer.name: self._demo.trace(peer.name)}))
        return peer

    def join(self, number: int, contact: int, *options: str) -> Peer:
        return self.start(number, "--join", self._demo.peers[name_of(contact)].address(), *options)

    def peer(self, number: int) -> Peer:
        return self._demo.peers[name_of(number)]

    def peer_id(self, number: int) -> str:
        return self._demo.peer_id(number)

    def processes(self, number: int) -> list[psutil.Process]:
        """Agent, worker and launcher of a peer, in this order."""
        name = name_of(number)
        launcher = next(p for p in psutil.Process().children() if name in p.cmdline())
        children = launcher.children()
        agents = [p for p in children if "chaos.agent.process" in p.cmdline()]
        return [*agents, *(p for p in children if p not in agents), launcher]

    # --- following the traces -----------------------------------------------------------------------------

    def look(self) -> list[Entry]:
        """Read what is new."""
        new = [entry for files in self._files.values() for entry in files.read()]
        self.entries = sorted(self.entries + new, key=lambda entry: entry.t)
        return self.entries

    def dismiss(self, number: int) -> None:
        """Ask a peer to leave, and wait for its end, whatever its exit code is."""
        peer = self._demo.peers[name_of(number)]
        peer.ask_to_leave()
        deadline = time.monotonic() + PATIENCE_S
        while peer.exit_code() is None:
            if time.monotonic() > deadline:
                raise ChaosError(f"waited {PATIENCE_S:.0f} s for {peer.name} to end; see {self.directory}")
            time.sleep(0.1)
        del self._demo.peers[name_of(number)]

    def wait(self, until: Callable[[], bool], what: str) -> None:
        """Until it holds. Raises ChaosError if it never does, or if a peer failed."""
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            for peer in self._demo.peers.values():
                peer.check()
            if time.monotonic() > deadline:
                raise ChaosError(f"waited {PATIENCE_S:.0f} s for {what}; see {self.directory}")
            time.sleep(0.1)

    def wait_steps(self, number: int, count: int) -> None:
        """Until the peer has committed so many steps from now on."""
        start = self.step(number)
        self.wait(lambda: self.step(number) >= start + count, f"{count} steps of {name_of(number)}")

    def step(self, number: int) -> int:
        """The last step that the peer committed."""
        name = name_of(number)
        return max((e["step"] for e in self.look() if e.kind == "commit" and e.peer == name), default=0)

    def wait_members(self, numbers: set[int], observer: int) -> None:
        """Until the observer commits a step of exactly these contributors."""
        ids = {self.peer_id(number) for number in numbers}
        name = name_of(observer)

        def there() -> bool:
            last = next((e for e in reversed(self.look()) if e.kind == "commit" and e.peer == name), None)
            return last is not None and set(last["contributors"]) == ids

        self.wait(there, f"peers {sorted(numbers)} to train together")
