"""How each system's hosts are started. They differ in nothing else: see `measure.py`."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.hosts import COORDINATOR, ROOT, Host, TooLate, start
from benchmarks.peers.log import Lines
from benchmarks.peers.places import Place
from chaos.lab.peer import LISTENS

HERE = Path(__file__).parent
VENVS = ROOT / ".venv-peers"
START_S = 60.0


class System(ABC):
    """Hosts of one system. `with system(place, millions, compute, tight) as it`."""

    name: str
    """Of its worker's script and its environment."""
    label = ""
    """What tables call it, if not by its name."""
    timeouts = (0.0, 0.0)
    """Seconds within which a step's communication has to be over in tight settings: on loopback, over shaped links."""
    coordinator: str
    """The process whose loss is tried; if the system has none, the one that came first stands in for it."""

    together = 3
    """Hosts that a trial begins with."""

    def __init__(self, place: Place, millions: int, compute: float, tight: bool) -> None:
        self.place = place
        self.directory = place.directory
        self.tight = tight
        self.hosts: dict[str, Host] = {}
        """Those that run, by name, the longest there first."""
        timeout = self.timeouts[bool(place.links.rate)] if tight else 0.0
        self._work = ["--millions", str(millions), "--compute", str(compute), "--timeout", str(timeout)]

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.kill()

    def start(self, name: str) -> Host:
        """Another host, or one that ended, anew."""
        self.hosts.pop(name, None)
        log = self.directory / f"{name}.jsonl"
        work = ["--log-steps", str(log), "--name", name, "--address", self.place.address(name), *self._work]
        printed = self.directory / f"{name}.txt"
        before = printed.stat().st_size if printed.exists() else 0
        self.hosts[name] = Host(name, self._launch(name, work), Lines(log), printed, before)
        return self.hosts[name]

    def kill(self, name: str) -> None:
        self.hosts.pop(name).kill()
        self.place.leave(name)

    def kill_coordinator(self) -> None:
        """Systems with one of its own override this."""
        if self.hosts:
            self.kill(next(iter(self.hosts)))

    @abstractmethod
    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]: ...

    def _contacts(self) -> list[str]:
        """Where all listen that live, once one does; nothing if this is the first host. Raises TooLate."""
        deadline = time.monotonic() + START_S
        while self.hosts:
            there = [self._listens(host) for host in self.hosts.values() if not host.ended()]
            if any(there):
                return [address for address in there if address]
            if not there or time.monotonic() > deadline:
                raise TooLate(f"none of {', '.join(self.hosts)} listens")
            time.sleep(0.05)
        return []

    def _listens(self, host: Host) -> str:
        """Where a newcomer finds it, by what it said; empty: nowhere yet. Of systems in which hosts find each other."""
        raise NotImplementedError

    def _start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """On the host of that name."""
        place = self.place
        own = {**place.environment(name), **(environment or {})}
        return start(self.directory, name, [*place.enter(name), *command], own)

    def _python(self) -> str:
        return str(VENVS / self.name / "bin" / "python")

    def _script(self) -> str:
        return str(HERE / f"{self.name}_worker.py")


class Chaos(System):
    name = "chaos"
    coordinator = "none; the founder is killed"
    options: tuple[str, ...] = ()

    def __enter__(self) -> System:
        command = [sys.executable, "-m", "chaos.cli.main", "party", "init", "--name", "bench", "--dir"]
        start(self.directory, "party", [*command, str(self.directory / "party")]).wait()
        return self

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        listen = f"{self.place.address(name)}:0"
        command = [sys.executable, "-m", "chaos.cli.main", "run", "--name", name, "--listen", listen]
        command += ["--party", str(self.directory / "party"), *self.options]
        contacts = self._contacts()
        for contact in contacts:
            command += ["--join", contact]
        command += [] if contacts else ["--min-peers", str(self.together)]
        return self._start(name, [*command, self._script(), *work])

    def _listens(self, host: Host) -> str:
        found = LISTENS.search(host.said())
        return found.group(1) if found else ""


class ChaosPlain(Chaos):
    """Without encryption, as all the others are."""

    label = "chaos, plain links"
    options = ("--plain",)


class Torchrun(System):
    """One elastic agent per host; the first one's holds the store by which all meet."""

    name = "torchrun"
    coordinator = "the agent that holds the store"

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        address = self.place.address(name)
        if not hasattr(self, "_store"):
            self._holder, self._store = name, f"{address}:{free_port()}"
        settings = f"is_host={'1' if name == self._holder else '0'}"
        if self.tight:
            settings += ",last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
        command = [self._python(), "-m", "torch.distributed.run", "--nnodes=1:16", "--nproc-per-node=1"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={self._store}", "--rdzv-id=bench"]
        command += [f"--rdzv-conf={settings}", "--max-restarts=1000", f"--local-addr={address}"]
        command += ["--monitor-interval=0.1"] if self.tight else []
        kept = self.directory / f"{name}.parameters"
        environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return self._start(name, [*command, self._script(), *work, "--store", str(kept)], environment)


class Torchft(System):
    """Replica groups of one worker each, and a lighthouse."""

    name = "torchft"
    timeouts = (3.0, 10.0)
    coordinator = "the lighthouse"

    def __enter__(self) -> System:
        port = free_port()
        self._contact = f"http://{self.place.address(COORDINATOR)}:{port}"
        command = [str(VENVS / self.name / "bin" / "torchft_lighthouse"), "--min_replicas", "1"]
        command += ["--bind", f"[::]:{port}"]
        # At 200 Mbit/s a join timeout of 1 s never ends: a step takes longer. The default of 60 s works.
        joining = [] if self.place.links.rate else ["--join_timeout_ms", "1000"]
        command += [*joining, "--heartbeat_timeout_ms", "1000"] if self.tight else []
        self._lighthouse = self._start(COORDINATOR, command)
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.kill_coordinator()

    def kill_coordinator(self) -> None:
        self._lighthouse.kill()
        self._lighthouse.wait()

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        return self._start(name, [self._python(), self._script(), *work, "--contact", self._contact])


class Hivemind(System):
    """Nodes of a distributed hash table."""

    name = "hivemind"
    timeouts = (15.0, 30.0)
    coordinator = "none; the first one is killed"

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        address = self.directory / f"{name}.address"
        address.unlink(missing_ok=True)
        contact = " ".join(self._contacts())
        return self._start(name, [self._python(), self._script(), *work, "--store", str(address), "--contact", contact])

    def _listens(self, host: Host) -> str:
        path = self.directory / f"{host.name}.address"
        return path.read_text() if path.exists() else ""


SYSTEMS: dict[str, type[System]] = {
    "chaos": Chaos,
    "chaos-plain": ChaosPlain,
    "torchft": Torchft,
    "torchrun": Torchrun,
    "hivemind": Hivemind,
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
