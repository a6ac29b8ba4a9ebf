"""The hosts of a lab and the peers on them. On leaving the block nothing is left, neither processes nor files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from chaos.agent.party import Party
from chaos.core.errors import ChaosError
from chaos.lab import cgroups, guard
from chaos.lab.carrier import Carrier
from chaos.lab.peer import Peer
from chaos.lab.relay import Relays
from chaos.lab.scenario import Host, Scenario
from chaos.lab.wire import Wire

PREFIX = "chaos-lab-"
JOB = Path(__file__).parents[1] / "examples" / "synthetic.py"
CLIENT_S = 30.0


class Hosts:
    """Namespaces, parties and peers of one scenario. Traces and logs go to `out`, everything else is removed.

    Args:
        base: what the scenario's own paths are relative to.
        emulate: relays on loopback instead of namespaces.
    """

    def __init__(self, scenario: Scenario, base: Path, out: Path, emulate: bool = False) -> None:
        self.scenario = scenario
        self.out = out
        self._base = base
        self._emulate = emulate
        self.peers: dict[int, Peer] = {}
        """The latest peer of each host that had one."""
        self.remarks: list[str] = []

    def __enter__(self) -> Hosts:
        self._guard = guard.Guard(PREFIX)
        self.directory = self._guard.directory
        try:
            self.wire = self._carrier()
            self._groups = [self._limited(host) for host in self.scenario.hosts]
            self._make_parties()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    # --- what is there -------------------------------------------------------------------------------------

    @property
    def stop_file(self) -> Path:
        return self.directory / "stop-step"

    def name(self, host: int) -> str:
        return self.scenario.hosts[host].name

    def trace(self, host: int) -> Path:
        return self.out / f"{self.name(host)}.jsonl"

    def peer_ids(self) -> dict[str, str]:
        """By name: they follow from the keys that the parties made for them."""
        return {host.name: str(self._parties[host.party].peer(host.name).peer_id) for host in self.scenario.hosts}

    def _carrier(self) -> Carrier:
        scenario = self.scenario
        if self._emulate:
            if scenario.loses_packets():
                self.remarks.append(
                    "no packet was lost, whatever the scenario says: relays carry what TCP has received"
                )
            return Relays([host.name for host in scenario.hosts], scenario.seed)
        return Wire(len(scenario.hosts), scenario.mtu, scenario.seed)

    def _limited(self, host: Host) -> list[Path]:
        try:
            return cgroups.make(f"{self.directory.name}-{host.name}", host.cores, host.memory_mb)
        except OSError as error:
            self.remarks.append(f"{host.name} has no limits of processor and memory: {error}")
            return []

    def _make_parties(self) -> None:
        """All admit each other, but for strangers."""
        hosts = self.scenario.hosts
        names = {host.party for host in hosts}
        strangers = {host.party for host in hosts if host.stranger}
        self._parties = {name: Party.init(self.directory / f"party-{name}", name) for name in sorted(names)}
        for name, party in self._parties.items():
            for other in sorted(names - {name}):
                if other not in strangers or name in strangers:
                    party.admit(self._parties[other].root.pem)

    # --- what is done --------------------------------------------------------------------------------------

    def start(self, host: int, contacts: list[int], *options: str) -> Peer:
        """Start its peer, which asks these hosts to let it in; without any it founds the run."""
        what, name = self.scenario.hosts[host], self.name(host)
        command = [*self.wire.enter(host), sys.executable, "-m", "chaos.cli.main", "run", "--name", name]
        command += ["--listen", self.wire.listen_at(host), "--advertise", self.wire.reached_at(host)]
        command += ["--trace", str(self.trace(host))]
        command += ["--party", str(self._parties[what.party].directory), "--max-restarts", "100", *options]
        for contact in contacts:
            command += ["--join", self.wire.reached_at(contact)]
        log = self.out / f"{name}.log"
        groups = self._groups[host]
        with log.open("wb") as output:
            started = time.monotonic()
            process = subprocess.Popen(
                [*command, *self._job()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.out,
                env=self.environment(host),
                start_new_session=True,
                preexec_fn=lambda: cgroups.enter(groups),
            )
        self.peers[host] = Peer(name, what.party, process, log, started)
        return self.peers[host]

    def client(self, host: int, *words: str) -> None:
        """A command of `chaos` on this host, with its party. Raises ChaosError if it fails."""
        directory = self._parties[self.scenario.hosts[host].party].directory
        command = [*self.wire.enter(host), sys.executable, "-m", "chaos.cli.main", *words, "--party", str(directory)]
        done = subprocess.run(
            command, env=self.environment(host), capture_output=True, text=True, timeout=CLIENT_S, check=False
        )
        if done.returncode:
            raise ChaosError(f"chaos {' '.join(words[:3])} on {self.name(host)}: {done.stderr.strip()[-300:]}")

    def admit(self, newcomer: int) -> None:
        """All parties admit the newcomer's, as their people would by hand, and it admits them."""
        party = self.scenario.hosts[newcomer].party
        own = self._parties[party]
        done = {party}
        for number, host in enumerate(self.scenario.hosts):
            if host.party not in done:
                done.add(host.party)
                own.admit(self._parties[host.party].root.pem)
                self.client(number, "party", "admit", str(own.root_file))

    def _job(self) -> list[str]:
        scenario = self.scenario
        if scenario.script:
            return [str((self._base / scenario.script).resolve()), *scenario.args]
        values = {"state-mb": scenario.state_mb, "samples": scenario.samples, "compute-ms": scenario.compute_ms}
        options = [part for name, value in values.items() for part in (f"--{name}", str(value))]
        return [str(JOB), *options, "--stop-file", str(self.stop_file), *scenario.args]

    def environment(self, host: int) -> dict[str, str]:
        """Each host has its own runtime directory: there, and only there, can a dead peer's last words be found."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CHAOS_")}
        runtime = guard.runtime_of(self.directory) / self.name(host)
        runtime.mkdir(mode=0o700, parents=True, exist_ok=True)
        return inherited | {guard.MARK: str(runtime), "TMPDIR": str(self.directory), "OMP_NUM_THREADS": "1"}

    def _end(self) -> None:
        gone = self._guard.end()
        if hasattr(self, "wire"):
            self.wire.close()
        for peer in self.peers.values():
            peer.exit_code()  # reaps it
        if not gone:
            raise ChaosError(f"the lab could not be cleaned up: try `chaos lab clean`; see {self.directory}")


def leftovers() -> list[Path]:
    """Directories of labs whose owners have ended."""
    return [path for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")) if not guard.is_owned(path)]
