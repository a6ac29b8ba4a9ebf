"""How each system's hosts are started. They differ in nothing else: see `measure.py`."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from benchmarks.peers.hosts import ROOT, Host, start

HERE = Path(__file__).parent
VENVS = ROOT / ".venv-peers"
LISTENS = re.compile(r"^chaos: peer \S+ listens at (\S+)$", re.MULTILINE)
START_S = 60.0


class System(ABC):
    """Hosts of one system, on loopback. `with system(directory, millions, compute_ms, tight) as it`."""

    name: str
    """Of its worker's script and its environment."""
    label = ""
    """What tables call it, if not by its name."""
    coordinator: str
    """The process whose loss is tried; if the system has none, the one that came first stands in for it."""

    def __init__(self, directory: Path, millions: int, compute_ms: float, tight: bool) -> None:
        self.directory = directory
        self.tight = tight
        self.hosts: dict[str, Host] = {}
        """Those that run."""
        self._work = ["--millions", str(millions), "--compute-ms", str(compute_ms), *(["--tight"] if tight else [])]

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_coordinator()
        for host in self.hosts.values():
            host.kill()

    def start(self, name: str) -> Host:
        """Another host, or one that was killed, anew."""
        log = self.directory / f"{name}.jsonl"
        process = self._launch(name, ["--log-steps", str(log), "--name", name, *self._work])
        self.hosts[name] = Host(name, process, log, self.directory / f"{name}.txt")
        return self.hosts[name]

    def kill(self, name: str) -> None:
        self.hosts.pop(name).kill()

    def kill_coordinator(self) -> None:
        """Systems with one of its own override this."""
        if self.hosts:
            self.kill(next(iter(self.hosts)))

    @abstractmethod
    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]: ...

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
        command = [sys.executable, "-m", "chaos.cli.main", "run", "--name", name, "--listen", "127.0.0.1:0"]
        command += ["--party", str(self.directory / "party"), *self.options]
        if self.hosts:
            command += ["--join", self._address(next(iter(self.hosts.values())))]
        (self.directory / f"{name}.txt").unlink(missing_ok=True)
        return start(self.directory, name, [*command, self._script(), *work])

    def _address(self, host: Host) -> str:
        deadline = time.monotonic() + START_S
        while (found := LISTENS.search(host.printed.read_text(errors="replace"))) is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{host.name} does not listen: {host.last_words()}")
            time.sleep(0.05)
        return found.group(1)


class ChaosPlain(Chaos):
    """Without encryption, as all the others are."""

    label = "chaos, plain links"
    options = ("--plain",)


class Torchrun(System):
    """One elastic agent per host; the first one's holds the store by which all meet."""

    name = "torchrun"
    coordinator = "the agent that holds the store"

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        first = not hasattr(self, "_port")
        if first:
            self._port = free_port()
        settings = f"is_host={'1' if first else '0'}"
        if self.tight:
            settings += ",last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
        command = [self._python(), "-m", "torch.distributed.run", "--nnodes=1:16", "--nproc-per-node=1"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{self._port}", "--rdzv-id=bench"]
        command += [f"--rdzv-conf={settings}", "--max-restarts=1000", "--local-addr=127.0.0.1"]
        command += ["--monitor-interval=0.1"] if self.tight else []
        kept = self.directory / f"{name}.parameters"
        return start(
            self.directory,
            name,
            [*command, self._script(), *work, "--store", str(kept)],
            {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )


class Torchft(System):
    """Replica groups of one worker each, and a lighthouse."""

    name = "torchft"
    coordinator = "the lighthouse"

    def __enter__(self) -> System:
        port = free_port()
        self._contact = f"http://localhost:{port}"
        command = [str(VENVS / self.name / "bin" / "torchft_lighthouse"), "--min_replicas", "1"]
        command += ["--bind", f"[::]:{port}"]
        command += ["--join_timeout_ms", "1000", "--heartbeat_timeout_ms", "1000"] if self.tight else []
        self._lighthouse = start(self.directory, "lighthouse", command)
        return self

    def kill_coordinator(self) -> None:
        self._lighthouse.kill()
        self._lighthouse.wait()

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        return start(self.directory, name, [self._python(), self._script(), *work, "--contact", self._contact])


class Hivemind(System):
    """Nodes of a distributed hash table."""

    name = "hivemind"
    coordinator = "none; the first one is killed"

    def _launch(self, name: str, work: list[str]) -> subprocess.Popen[bytes]:
        address = self.directory / f"{name}.address"
        address.unlink(missing_ok=True)
        contact = self._address() if self.hosts else ""
        return start(
            self.directory,
            name,
            [self._python(), self._script(), *work, "--store", str(address), "--contact", contact],
        )

    def _address(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for name in self.hosts:
                path = self.directory / f"{name}.address"
                if path.exists() and (found := path.read_text()):
                    return found
            time.sleep(0.05)
        raise RuntimeError("no host of hivemind listens")


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
