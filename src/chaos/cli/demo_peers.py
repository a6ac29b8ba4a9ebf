"""The demo's peers: real `chaos run` processes on loopback, of three parties that admit each other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from chaos.agent.party import Party
from chaos.core.errors import ChaosError
from chaos.lab.guard import MARK, Guard, runtime_of
from chaos.lab.peer import Peer

PARTIES = ("north", "south", "west")


class DemoPeers:
    """All peers of a demo. On leaving the block nothing of them is left, neither processes nor files."""

    def __init__(self, script: Path, args: list[str]) -> None:
        self._command = [str(script), *args]
        self.peers: dict[str, Peer] = {}

    def __enter__(self) -> DemoPeers:
        self._guard = Guard("chaos-demo-")
        self.directory = self._guard.directory
        self._runtime = runtime_of(self.directory)
        try:
            self._runtime.mkdir(mode=0o700)
            self._parties = {name: Party.init(self.directory / name, name) for name in PARTIES}
            for party in self._parties.values():
                for other in self._parties.values():
                    if other is not party:
                        party.admit(other.root.pem)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def trace(self, name: str) -> Path:
        """Where the peer of this name writes its trace."""
        return self.directory / f"{name}.jsonl"

    def party_of(self, number: int) -> str:
        """Name of the party that peer `number` belongs to."""
        return PARTIES[(number - 1) % len(PARTIES)]

    def peer_id(self, number: int) -> str:
        """Id of peer `number`: it follows from the key that its party made for it."""
        return str(self._parties[self.party_of(number)].peer(name_of(number)).peer_id)

    def start(self, number: int, *options: str) -> Peer:
        """Start peer `number` with further options of `chaos run`."""
        name, party = name_of(number), self.party_of(number)
        command = [sys.executable, "-m", "chaos.cli.main", "run", "--name", name, "--listen", "127.0.0.1:0"]
        command += ["--party", str(self.directory / party), "--trace", str(self.trace(name)), *options]
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            started = time.monotonic()
            process = subprocess.Popen(
                [*command, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self.environment(),
                start_new_session=True,
            )
        self.peers[name] = Peer(name, party, process, log, started)
        return self.peers[name]

    def environment(self) -> dict[str, str]:
        """The user's own settings for runs are none of the demo's business; torch's caches go where the rest is."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CHAOS_")}
        return inherited | {MARK: str(self._runtime), "TMPDIR": str(self.directory), "OMP_NUM_THREADS": "1"}

    def _end(self) -> None:
        gone = self._guard.end()
        for peer in self.peers.values():
            peer.exit_code()  # reaps it
        if not gone:
            raise ChaosError(f"the demo could not be cleaned up; see what is left in {self.directory}")


def name_of(number: int) -> str:
    """Peers are numbered from 1, which founds the run."""
    return f"peer-{number}"
