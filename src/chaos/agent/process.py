"""The agent as a process of its own: `python -m chaos.agent.process SETTINGS`, started by the launcher.

It writes one line of JSON to standard output once it listens, and its exit code is the run's for this peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from chaos.agent import held, words
from chaos.agent.advertise import advertised
from chaos.agent.checkpoint import latest, load
from chaos.agent.client import announce, open_party, security_of
from chaos.agent.driver import Agent, AgentSetup
from chaos.agent.identity import Identity, verify
from chaos.agent.party import Party
from chaos.agent.progress import Progress
from chaos.agent.settings import RunSettings
from chaos.agent.shared_memory import SharedMemory
from chaos.agent.transport import Security, TransportConfig
from chaos.core.context import NodeConfig
from chaos.core.errors import ChaosError
from chaos.core.events import LeaveRequested
from chaos.core.messages import Sealed
from chaos.core.node import Founding
from chaos.core.types import PeerInfo
from chaos.observe.record import Recorder
from chaos.observe.trace import TraceWriter

STALE_WORDS_S = 7 * 86400.0
"""Words of dead peers are kept for a week, in case the rest of the run is paused for as long."""
BROKEN = 70
"""Exit code of an agent that failed by a fault of its own (EX_SOFTWARE)."""
_PR_SET_PDEATHSIG = 1


class AgentOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher hands to the agent process."""

    settings: RunSettings
    sealed: tuple[Sealed, ...] = ()
    """Words of the agent's earlier incarnations."""
    launcher: int = 0
    """Process id of the launcher: the agent leaves when it ends. 0: it stays."""


def encode_order(order: AgentOrder) -> str:
    return msgspec.json.encode(order, enc_hook=str).decode()


def decode_order(text: str) -> AgentOrder:
    return msgspec.json.decode(text, type=AgentOrder, dec_hook=lambda kind, value: kind(value))


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The line on standard output."""

    name: str
    peer: str
    addresses: tuple[str, ...]
    local: str
    """HOST:PORT for clients on this host, which may not reach it as others do."""
    worker: str
    """Address of the Unix socket for the worker (CHAOS_AGENT)."""


def leave_with(parent: int) -> None:
    """Get SIGTERM when the launcher ends, whatever way it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def claim_identity(settings: RunSettings, party: Party, runtime: Path) -> tuple[Identity, words.PeerLock]:
    """The certificate of this peer's name, and the lock that keeps a second agent from using it."""
    if settings.name is not None:
        identity = party.peer(settings.name)
        return identity, words.PeerLock.acquire(runtime, identity.peer_id, settings.name)
    base = socket.gethostname().split(".")[0] or "peer"
    for number in range(1, 100):
        name = base if number == 1 else f"{base}-{number}"
        identity = party.peer(name)
        if words.PeerLock.is_free(runtime, identity.peer_id):
            with contextlib.suppress(words.NameTaken):  # another peer was faster: the next name
                return identity, words.PeerLock.acquire(runtime, identity.peer_id, name)
    raise ChaosError("99 peers of this party run on this host already; name this one with --name")


def founding(
    settings: RunSettings, read: Callable[[int, int], None]
) -> tuple[Founding | None, SharedMemory | None, list[str]]:
    """How to begin: None for a joiner; from the newest whole checkpoint if there is one. And warnings.

    `read` is told the bytes of the checkpoint, and how many of them have been read.
    """
    if settings.join:
        return None, None, []
    new_lineage = secrets.token_hex(8)
    warnings: list[str] = []
    there = settings.checkpoint is not None and settings.checkpoint.is_dir()
    found = latest(settings.checkpoint, warnings.append, read) if settings.checkpoint and there else None
    if found is None:
        return Founding(run=secrets.token_hex(8), lineage=new_lineage), None, warnings
    content, path = found
    resumed = Founding(
        run=content.run,
        lineage=new_lineage,
        view_id=content.view_id + 1,
        step=content.step,
        head=content.head,
        data=content.data,
        manifest=content.manifest,
    )
    return resumed, load(path, content.manifest), warnings


def watch_parties(
    party: Party, identity: Identity, plain: bool
) -> Callable[[], tuple[Security, frozenset[str]] | None]:
    """A function that says, each time it is called, whether the admitted parties changed since the last time."""
    known = frozenset(root.fingerprint for root in party.roots())

    def changed() -> tuple[Security, frozenset[str]] | None:
        nonlocal known
        try:
            now = frozenset(root.fingerprint for root in party.roots())
        except ChaosError:
            return None  # somebody is at work in the directory: the last readable state stays in force
        if now == known or plain:
            return None
        known = now
        return security_of(party, identity), now

    return changed


def set_up(order: AgentOrder, runtime: Path, progress: Progress) -> tuple[AgentSetup, words.PeerLock, list[str]]:
    """Everything an agent needs before it listens. Raises ChaosError for what the user must mend."""
    settings = order.settings
    party = open_party(settings.party)
    identity, lock = claim_identity(settings, party, runtime)
    begin, resume, warnings = founding(settings, progress.read)
    me = PeerInfo(identity.peer_id, time.time_ns(), identity.name, identity.party, identity.public_key, ())
    node = NodeConfig(
        verify=verify,
        min_peers=settings.min_peers,
        straggler_limit_s=settings.straggler_limit_s,
        checkpoint_every=settings.checkpoint_every if settings.checkpoint else 0,
    )
    setup = AgentSetup(
        me=me,
        identity=identity,
        security=security_of(party, identity, settings.plain),
        admitted=watch_parties(party, identity, settings.plain),
        listen=settings.listen,
        advertise=lambda bound: advertised(bound, settings.advertise),
        join=settings.join,
        runtime=runtime,
        node=node,
        transport=TransportConfig(),
        founding=begin,
        resume=resume,
        checkpoint=settings.checkpoint,
        spill=settings.spill if settings.spill_gb else None,
        spill_bytes=int(settings.spill_gb * 1e9),
        sealed=order.sealed,
    )
    return setup, lock, warnings


async def run(order: AgentOrder) -> int:
    """Run one agent to its end; returns its exit code."""
    runtime = words.runtime_directory()
    words.prune(runtime, STALE_WORDS_S)
    held.prune(runtime)
    progress = Progress()
    setup, lock, warnings = set_up(order, runtime, progress)
    progress.name = setup.me.name
    trace = TraceWriter(order.settings.trace or Path(os.devnull), setup.me.name)
    for warning in warnings:
        print(f"chaos: warning: {warning}", file=sys.stderr, flush=True)
        trace.write("warning", {"reason": warning})
    if setup.founding is not None and setup.founding.manifest is not None:
        print(f"chaos: resuming from the checkpoint of step {setup.founding.step}", file=sys.stderr, flush=True)
    path = order.settings.record
    recorder = Recorder(path, setup.node, setup.founding) if path is not None else None
    agent = Agent(setup, trace, recorder, progress)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.post, LeaveRequested(number.name))
    bound = await agent.start()
    addresses = advertised(bound, order.settings.advertise)
    local = advertised(bound, ())
    announced = announce(runtime, local, setup.me.name)
    ready = Ready(
        name=setup.me.name, peer=setup.me.id, addresses=addresses, local=local[0], worker=agent.worker_link.address
    )
    sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
    sys.stdout.flush()
    try:
        stop = await agent.run()
    finally:
        announced.unlink(missing_ok=True)
        lock.release()
    left_out = agent.node.stragglers.summary()
    if left_out:
        print(f"chaos: left out as late: {left_out}", file=sys.stderr, flush=True)
    kind, missing = "error: " if stop.code else "", agent.node.attendance.summary()
    print(f"chaos: {kind}{setup.me.name}: {stop.reason}{missing and '; '}{missing}", file=sys.stderr, flush=True)
    return stop.code


def main() -> int:
    order = decode_order(sys.argv[1])
    if order.launcher:
        leave_with(order.launcher)
    try:
        return asyncio.run(run(order))
    except ChaosError as error:
        print(f"chaos: error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:  # noqa: BLE001  the edge of the process: whatever it is, it is this agent's own fault
        traceback.print_exc()
        return BROKEN


if __name__ == "__main__":
    sys.exit(main())
