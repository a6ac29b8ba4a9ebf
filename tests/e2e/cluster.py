"""Real peers for the end-to-end tests: `chaos run` processes on loopback, killed for sure at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from chaos.agent.party import Party
from tests.e2e.job import Job

SCRIPT = Path(__file__).with_name("job.py")
REPOSITORY = SCRIPT.parents[2]
MARK = "CHAOS_RUNTIME_DIR"
LISTENS = re.compile(r"^chaos: peer \S+ listens at (\S+)$", re.MULTILINE)
START_S = 120.0
"""Importing torch takes seconds of processor time, and several peers start at once."""
PATIENCE_S = 5.0
"""How long processes may take to be gone after their launcher is."""

Entry = dict[str, Any]


class Peer:
    """One `chaos run`, with what it printed and traced."""

    def __init__(self, name: str, script: Path, log: Path, trace: Path) -> None:
        self.name = name
        self.log = log
        self.trace = trace
        self._script = script
        self._offset = 0
        self._entries: list[Entry] = []
        self._log_offset = log.stat().st_size if log.exists() else 0
        """Earlier peers of this name wrote to the same file."""
        self.launcher: subprocess.Popen[bytes]

    # --- what it says ------------------------------------------------------------------------------------

    def output(self) -> str:
        """What it printed since it was started."""
        return self.log.read_bytes()[self._log_offset :].decode(errors="replace") if self.log.exists() else ""

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Its trace so far, or the lines of one kind."""
        if self.trace.exists():
            with self.trace.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._entries += [json.loads(line) for line in whole.splitlines()]
        return [entry for entry in self._entries if kind in (None, entry["kind"])]

    @property
    def step(self) -> int:
        """The last step it committed."""
        commits = self.entries("commit")
        return int(commits[-1]["step"]) if commits else 0

    @property
    def epoch(self) -> int:
        commits = self.entries("commit")
        return int(commits[-1]["epoch"]) if commits else 0

    @property
    def view(self) -> Entry:
        """The view it installed last; empty before the first."""
        views = self.entries("view")
        return views[-1] if views else {"members": [], "role": "joiner", "view": 0}

    def address(self) -> str:
        """HOST:PORT, once it listens."""
        deadline = time.monotonic() + START_S
        while (found := LISTENS.search(self.output())) is None:
            if self.launcher.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} does not listen: {self.output()[-2000:]}")
            time.sleep(0.02)
        return found.group(1)

    def tail(self, lines: int = 25) -> str:
        """The ends of output and trace, for a failure's message."""
        quiet = ("boundary", "stable", "commit", "sample")
        loud = [e for e in self.entries() if e["kind"] not in quiet][-lines:]
        last = [e for e in self.entries() if e["kind"] in quiet][-3:]
        shown = [json.dumps({k: v for k, v in e.items() if k not in ("t", "peer")})[:400] for e in loud + last]
        state = self.launcher.poll()
        return "\n".join([f"--- {self.name}, exit code {state}", self.output()[-2000:], *shown])

    # --- what becomes of it ------------------------------------------------------------------------------

    def freeze(self, frozen: bool = True) -> None:
        """SIGSTOP of agent and worker, or SIGCONT."""
        for process in self.processes("both"):
            process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def processes(self, what: str) -> list[psutil.Process]:
        """Those named by `what` ('worker', 'agent', 'both', 'group') that run now; of a group the agent first."""
        agents, workers = [], []
        for child in psutil.Process(self.launcher.pid).children():
            try:
                command = child.cmdline()
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if "chaos.agent.process" in command:
                agents.append(child)
            elif str(self._script) in command[1:2]:
                workers.append(child)
        found = {"worker": workers, "agent": agents, "both": agents + workers}
        return found.get(what) or [*agents, *workers, psutil.Process(self.launcher.pid)]

    def kill(self, what: str) -> float:
        """SIGKILL; returns the time just before, in seconds since 1970."""
        doomed = self.processes(what)
        assert doomed, f"{self.name} has no {what} to kill"
        at = time.time()
        for process in doomed:
            process.kill()
        if what == "group":
            self.launcher.wait(PATIENCE_S)
        return at

    def leave(self) -> None:
        """SIGTERM to the launcher, as a user or a system that shuts down sends it."""
        self.launcher.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 30.0) -> int:
        """Its exit code."""
        try:
            return self.launcher.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds:g} s") from None


class Cluster:
    """All peers of one test, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = folder / "runtime"
        self.runtime.mkdir(mode=0o700)
        self.peers: dict[str, Peer] = {}
        self._parties: dict[str, Party] = {}

    # --- starting ----------------------------------------------------------------------------------------

    def party(self, name: str) -> Party:
        """A party of this name, made at first use."""
        if name not in self._parties:
            self._parties[name] = Party.init(self.folder / f"party-{name}", name)
        return self._parties[name]

    def job(self, **fields: Any) -> Job:
        return Job(folder=str(self.folder), **fields)

    def start(
        self,
        name: str,
        job: Job | None,
        *options: str,
        join: Iterable[str] = (),
        party: str = "home",
        script: Path = SCRIPT,
        as_name: str | None = None,
        host: str = "",
    ) -> Peer:
        """Start `chaos run`.

        Args:
            as_name: the peer's name, where it is not to be `name`.
            host: peers of one host can prove one another dead; those of another one can't.
        """
        runtime = self.runtime / host
        runtime.mkdir(mode=0o700, exist_ok=True)
        options = (*options, *(part for address in join for part in ("--join", address)))
        if "--listen" not in options:
            options = (*options, "--listen", "127.0.0.1:0")
        peer = Peer(name, script, self.folder / f"{name}.log", self.folder / f"{name}.jsonl")
        command = [sys.executable, "-m", "chaos.cli.main", "run", "--name", as_name or name, *options]
        command += ["--party", str(self.party(party).directory), "--trace", str(peer.trace), str(script)]
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CHAOS_")}
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        with peer.log.open("ab") as log:
            peer.launcher = subprocess.Popen(
                command + ([job.argument()] if job else []),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=inherited | {MARK: str(runtime), "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
                start_new_session=True,
            )
        self.peers[name] = peer
        return peer

    def found(self, names: str, job: Job, *options: str) -> list[Peer]:
        """Start one peer per letter; the first founds the run. Returns once all are members and have trained."""
        first = self.start(names[0], job, *options, "--min-peers", str(len(names)))
        others = [self.start(name, job, *options, join=[first.address()]) for name in names[1:]]
        peers = [first, *others]
        self.until(lambda: all(p.step >= 5 for p in peers), START_S, f"{names} train together")
        return peers

    # --- watching ----------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], seconds: float, what: str, pause: float = 0.01) -> None:
        """Wait for it; AssertionError saying `what` never came."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}")
            time.sleep(pause)

    def until_member(self, peer: Peer, since: float = 0.0, seconds: float = START_S) -> None:
        """Until `peer` is a member by a view installed after `since`, and has committed a step as such."""

        def is_back() -> bool:
            view = peer.view
            return view["role"] == "member" and view["wall"] > since and peer.step >= view["first_step"]

        self.until(is_back, seconds, f"{peer.name} is a member and commits")

    def go_on_without(self, dead: Iterable[str], survivors: Iterable[Peer], killed_at: float) -> int:
        """Every survivor commits under a view without the dead within 2 s of the kill, and nobody computes twice.

        Returns the first step that was committed so.
        """
        dead, survivors = set(dead), list(survivors)

        def view_without(peer: Peer) -> Entry | None:
            views = [v for v in peer.entries("view") if v["wall"] > killed_at and not dead & set(v["members"])]
            return views[0] if views else None

        def committed(peer: Peer) -> Entry | None:
            view = view_without(peer)
            commits = peer.entries("commit")
            return next((c for c in commits if view and c["wall"] > killed_at and c["view"] >= view["view"]), None)

        self.until(lambda: all(map(committed, survivors)), 10, f"{[p.name for p in survivors]} go on without {dead}")
        step = 0
        for peer in survivors:
            commit, view = committed(peer), view_without(peer)
            assert commit is not None and view is not None
            step = int(commit["step"])
            took = commit["wall"] - killed_at
            assert took < 2.0, f"{peer.name} needed {took:.2f} s to its next step without {dead}"
            computed = [b for b in peer.entries("boundary") if b["applied"] == view["first_step"] - 1]
            assert len(computed) <= 1, f"{peer.name} computed step {view['first_step']} {len(computed)} times"
        return step

    # --- ending ------------------------------------------------------------------------------------------

    def finish(self, peers: Iterable[Peer], seconds: float = 60.0) -> None:
        """Let the scripts end after some more epochs; all these peers end with exit code 0."""
        peers = list(peers)
        part = self.folder / "stop-epoch.part"
        part.write_text(str(max(peer.epoch for peer in peers) + 3))
        part.rename(self.folder / "stop-epoch")
        codes = {peer.name: peer.wait(seconds) for peer in peers}
        assert set(codes.values()) == {0}, f"exit codes {codes}"

    def finals(self, peers: Iterable[Peer]) -> dict[str, dict[str, np.ndarray]]:
        """What the peers' scripts left: state by name of the array."""
        return {peer.name: load(self.folder / f"final-{peer.name}.npz") for peer in peers}

    def tails(self) -> str:
        return "\n".join(peer.tail() for peer in self.peers.values())

    def marked(self) -> Iterator[psutil.Process]:
        """Everything alive that belongs to this cluster."""
        for process in psutil.process_iter():
            try:
                home = Path(process.environ().get(MARK, "/"))
                if self.runtime in (home, *home.parents) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it ended just now, or belongs to somebody else

    def leaked(self) -> list[str]:
        """What peers left behind whose launchers have ended."""
        for peer in self.peers.values():
            peer.launcher.poll()
        running = {peer.launcher.pid for peer in self.peers.values() if peer.launcher.returncode is None}
        deadline = time.monotonic() + PATIENCE_S
        while True:
            left = [f"{p.pid} {_command(p)}" for p in self.marked() if not {p.pid, *_ancestors(p)} & running]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def kill_all(self) -> None:
        """Until nothing is left: one that starts meanwhile is found by the next look."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := list(self.marked())) and time.monotonic() < deadline:
            for process in found:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue  # it ended just now
            time.sleep(0.02)
        for peer in self.peers.values():
            peer.launcher.wait(PATIENCE_S)


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file that `job.save` wrote."""
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


def _ancestors(process: psutil.Process) -> list[int]:
    try:
        return [parent.pid for parent in process.parents()]
    except psutil.NoSuchProcess:
        return []


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.NoSuchProcess:
        return "(gone)"
