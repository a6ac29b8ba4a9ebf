"""`chaos run`: starts a peer's agent and its worker, restarts what dies, and ends with both.

Exit codes: 0 the run is complete or this peer left; 1 the script failed or input makes no sense; 4 the run
refused this peer; 5 the training state is lost; 6 the run ended before this peer became a member;
7 the script ended, but nobody confirms its last step; 70 the agent broke; 128+n it was ended by signal n.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import msgspec

from chaos.agent import words
from chaos.agent.client import deliver_words, open_party, security_of
from chaos.agent.process import AgentOrder, Ready, encode_order
from chaos.agent.settings import RunSettings
from chaos.core.codec import decode_words
from chaos.core.departure import TOO_LATE
from chaos.core.errors import ChaosError
from chaos.core.messages import Sealed

READY_S = 60.0
"""How long the agent may take until it listens. A guess: starting takes 0.5 s on an idle machine."""
GRACE_S = 30.0
"""How long worker and agent may take to end after they were asked to, before they are killed."""
WORKER_NICE = 10
"""Of a registered worker. Agents on a busy host come first, and a trainer still gets a tenth of a core beside any
other program. Until it registers it goes at normal priority: a joiner's imports took 3 s beside three busy peers."""
DASHBOARD_NICE = 15
"""Behind everything else: whoever looks can wait."""
SPARE_TOKEN = "CHAOS_DASHBOARD_SPARE_TOKEN"
"""Environment variable: the token for a page that needs one and was given none; the same after a restart."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start_agent(environment: Mapping[str, str]) -> str:
    """For a Session outside `chaos run`: an agent for this process. Returns the worker socket's address."""
    order = AgentOrder(settings=RunSettings.resolve(environment), launcher=os.getpid())
    _, ready = _spawn_agent(order)
    return ready.worker


def _spawn_agent(order: AgentOrder) -> tuple[subprocess.Popen[str], Ready]:
    command = [sys.executable, "-m", "chaos.agent.process", encode_order(order)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert agent.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(agent.stdout, selectors.EVENT_READ)
        if not selector.select(READY_S):
            agent.kill()
            raise ChaosError(f"the agent did not start within {READY_S:g} s; see what it printed above")
    line = agent.stdout.readline()
    if not line:
        code = agent.wait()
        raise SystemExit(code)  # it has said why on standard error
    ready = msgspec.json.decode(line, type=Ready)
    print(f"chaos: peer {ready.name} listens at {ready.addresses[0]}", file=sys.stderr, flush=True)
    return agent, ready


def _as_worker(parent: int) -> None:
    """In the worker before its script: die with the launcher."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the launcher answers for all


def _as_dashboard(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(DASHBOARD_NICE)


class Launcher:
    """One peer's two processes."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._restarts = 0
        self._agent: subprocess.Popen[str] | None = None
        self._ready: Ready | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._dashboard: subprocess.Popen[bytes] | None = None
        self._token = secrets.token_urlsafe(24)
        self._leaving = 0
        self._deadline = 0.0

    def run(self) -> int:
        """Until both have ended. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self._start_agent(self._settings, ())
            self._start_worker()
            return self._supervise()
        finally:
            self._kill_all()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """First: leave properly. Second: now."""
        if self._leaving:
            self._deadline = time.monotonic()
        self._leaving = number
        if self._agent is not None:
            self._agent.send_signal(signal.SIGTERM)

    # --- starting ------------------------------------------------------------------------------------------

    def _start_agent(self, settings: RunSettings, sealed: tuple[Sealed, ...]) -> None:
        order = AgentOrder(settings=settings, sealed=sealed, launcher=os.getpid())
        self._agent, self._ready = _spawn_agent(order)
        self._start_dashboard()

    def _start_dashboard(self) -> None:
        """A page that asks the agent as it listens now. What it has to complain of it says itself."""
        listen, settings = self._settings.dashboard, self._settings
        if listen is None:
            return
        assert self._ready is not None
        self._stop_dashboard()
        parent = os.getpid()
        command = [sys.executable, "-m", "chaos.cli.main", "dashboard", self._ready.local, "--listen", listen]
        command += ["--party", str(settings.party)] if settings.party is not None else []
        command += ["--plain"] if settings.plain else []
        self._dashboard = subprocess.Popen(
            command, env=os.environ | {SPARE_TOKEN: self._token}, preexec_fn=lambda: _as_dashboard(parent)
        )

    def _stop_dashboard(self) -> None:
        if self._dashboard is not None:
            self._dashboard.kill()
            self._dashboard.wait()
            self._dashboard = None

    def _start_worker(self) -> None:
        assert self._ready is not None and self._settings.script is not None
        parent = os.getpid()
        environment = os.environ | {"CHAOS_AGENT": self._ready.worker, "CHAOS_WORKER_NICE": str(WORKER_NICE)}
        environment.setdefault("OMP_NUM_THREADS", str(threads_per_peer()))
        self._worker = subprocess.Popen(
            [sys.executable, str(self._settings.script), *self._settings.args],
            env=environment,
            preexec_fn=lambda: _as_worker(parent),
        )

    # --- watching ------------------------------------------------------------------------------------------

    def _supervise(self) -> int:
        """Look at both every 10 ms: the agent itself reports the worker's death long before."""
        assert self._agent is not None
        while True:
            agent_code = self._agent.poll()
            if agent_code is not None:
                code = self._agent_ended(agent_code)
                if code is not None:
                    return code
            elif self._worker is not None and (worker_code := self._worker.poll()) is not None:
                self._worker = None
                code = self._worker_ended(worker_code)
                if code is not None:
                    return code
            if self._deadline and time.monotonic() > self._deadline:
                return 128 + self._leaving if self._leaving else 1
            time.sleep(0.01)

    def _worker_ended(self, code: int) -> int | None:
        """None to go on: restarted, or the agent lingers until the last step is stable."""
        if code == 0 or self._leaving:
            return None
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code > 0 and code in (3, 4, 5):
            return self._end_agent(code)
        if code > 0 or self._restarts >= self._settings.max_restarts:
            if code < 0:
                print(
                    f"chaos: error: the worker died {self._restarts + 1} times, last by {reason}; giving up "
                    "(--max-restarts allows more)",
                    file=sys.stderr,
                    flush=True,
                )
            return self._end_agent(1)
        self._restarts += 1
        print(f"chaos: the worker died by {reason}; restart {self._restarts}", file=sys.stderr, flush=True)
        self._start_worker()
        return None

    def _end_agent(self, code: int) -> int:
        """The script is not to be run again: the peer leaves, and this is the exit code."""
        assert self._agent is not None
        self._agent.send_signal(signal.SIGTERM)
        try:
            agent_code = self._agent.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return code
        return agent_code if agent_code > 0 else code

    def _agent_ended(self, code: int) -> int | None:
        """None to go on with a new agent."""
        if code >= 0 or self._leaving:
            if code == TOO_LATE:
                self._stop_worker()
            self._wait_for_worker()
            return code if code >= 0 else 128 + self._leaving
        reason = f"signal {-code}"
        if self._restarts >= self._settings.max_restarts:
            print(f"chaos: error: the agent died by {reason} once too often; giving up", file=sys.stderr, flush=True)
            return 128 - code
        self._restarts += 1
        print(f"chaos: the agent died by {reason}; restart {self._restarts}", file=sys.stderr, flush=True)
        self._stop_worker()
        sealed, addresses = self._seal()
        if not addresses:
            print("chaos: error: no other member is known; start again from a checkpoint", file=sys.stderr, flush=True)
            return 5
        assert self._ready is not None
        again = msgspec.structs.replace(self._settings, join=addresses, min_peers=1, name=self._ready.name)
        self._start_agent(again, sealed)
        self._start_worker()
        return None

    def _seal(self) -> tuple[tuple[Sealed, ...], tuple[str, ...]]:
        """The dead agent's last words, handed to the others at once; and where the others are."""
        assert self._ready is not None
        runtime = words.runtime_directory()
        sealed = [
            found
            for path in words.unlocked(runtime)
            if self._ready.peer in path.name and isinstance(found := words.try_seal(path), Sealed)
        ]
        addresses: list[str] = []
        for found in sealed:
            said = decode_words(found)
            members = [p for p in said.view.members if p.id != self._ready.peer]
            addresses = [address for p in members for address in p.addresses]
            party = open_party(self._settings.party)
            security = security_of(party, party.peer(self._ready.name), self._settings.plain)
            deliver_words(found, addresses, security)
        return tuple(sealed), tuple(dict.fromkeys((*addresses, *self._settings.join)))

    # --- ending --------------------------------------------------------------------------------------------

    def _wait_for_worker(self) -> None:
        """The agent is gone: a script at its end may finish, one in its loop gets an error at its next step."""
        if self._worker is not None:
            try:
                self._worker.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                self._stop_worker()

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            self._worker = None

    def _kill_all(self) -> None:
        self._stop_dashboard()
        self._stop_worker()
        if self._agent is not None and self._agent.poll() is None:
            self._agent.terminate()
            try:
                self._agent.wait(1.0)
            except subprocess.TimeoutExpired:
                self._agent.kill()
                self._agent.wait()


def threads_per_peer() -> int:
    """Cores over peers of this user on this host, at least one, so that trainers and agents fit side by side."""
    agents = len(list(Path(words.runtime_directory()).glob("agent-*.json")))
    return max(1, (os.cpu_count() or 1) // max(1, agents))


def launch(settings: RunSettings) -> int:
    """Run one peer to its end; returns the exit code."""
    return Launcher(settings).run()
