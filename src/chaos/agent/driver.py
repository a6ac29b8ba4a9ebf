"""The agent: carries events to its node, and the node's actions out into the world.

One event loop, one thread; hashing and disk go to executor threads and come back as events. The driver
decides nothing about the protocol.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from chaos.agent import words as words_files
from chaos.agent.answers import Answers
from chaos.agent.checkpoint import Checkpoint, write
from chaos.agent.host import Host
from chaos.agent.identity import Identity
from chaos.agent.observer import Observer
from chaos.agent.progress import Progress
from chaos.agent.reduce import Kind, Reducer
from chaos.agent.requests import encode_answer
from chaos.agent.shards import SHARD, Snapshots
from chaos.agent.shared_memory import ResultRing, SharedMemory, results_on_disk, ring_slots
from chaos.agent.transport import BulkHeader, DialFailed, Transport, TransportConfig, Verdict
from chaos.agent.transport.security import Security
from chaos.agent.worker_link import WorkerLink
from chaos.agent.wrapping import Content, unwrap, wrap
from chaos.core import actions as act
from chaos.core import events as ev
from chaos.core.codec import decode, encode, encode_words
from chaos.core.context import NodeConfig
from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.messages import Goodbye, LastWords, PeerMessage, Seal, Sealed
from chaos.core.node import Founding, Node
from chaos.core.routes import ways
from chaos.core.types import PeerInfo
from chaos.core.worker_messages import (
    Boundary,
    BucketReady,
    Commit,
    FromWorker,
    LoadState,
    Proceed,
    Register,
    SnapshotPrepared,
    SnapshotTaken,
    Told,
    Welcome,
)
from chaos.observe.record import Recorder
from chaos.observe.trace import TraceWriter

SEAL_TRIES = (0.0, *(0.002,) * 50, *(0.05,) * 40)
"""Seconds between attempts to take a dead peer's lock: its descriptors close one by one, within milliseconds;
a host that is only slow is tried for two seconds."""
MEASURE_S = 0.5
"""Between two looks at the links' rates and at the routes."""
TELL_S = 0.25
"""Between two messages with what this peer sees: a page that shows a run is a second behind at most."""
DIAL_S = 15.0
"""How long a joiner tries the addresses it was given before it gives up."""


@dataclass(frozen=True, kw_only=True)
class AgentSetup:
    """What an agent is started with, beyond its node's configuration."""

    me: PeerInfo
    identity: Identity
    security: Security
    admitted: Callable[[], tuple[Security, frozenset[str]] | None]
    """Security and parties anew if the parties that this one admits have changed since the last call, else None."""
    listen: tuple[str, ...]
    advertise: Callable[[list[str]], tuple[str, ...]]
    """From bound addresses to those that others are told."""
    join: tuple[str, ...]
    runtime: Path
    node: NodeConfig
    transport: TransportConfig
    founding: Founding | None
    resume: SharedMemory | None
    checkpoint: Path | None
    spill: Path | None
    """Where results may be kept that wait for learners. None: nowhere."""
    spill_bytes: int
    sealed: tuple[Sealed, ...]
    """Words of earlier incarnations, to be passed on once a member is linked."""


class Agent:
    """One peer's agent. `await start()`, then `await run()`."""

    def __init__(
        self,
        setup: AgentSetup,
        trace: TraceWriter,
        recorder: Recorder | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._setup = setup
        self._progress = progress or Progress(setup.me.name)
        self._observer = Observer(trace, self._place)
        self._recorder = recorder
        self._me = setup.me
        self.node = Node(setup.me, setup.node, setup.founding)
        run = setup.founding.run if setup.founding else ""
        self.transport = Transport(setup.me, run, list(setup.listen), setup.security, self, setup.transport)
        self._answers = Answers(self.node, self.transport, self._observer, self.post)
        self.worker_link = WorkerLink(self._on_worker, lambda reason: self.post(ev.WorkerDied(reason)))
        self._reducer = Reducer(setup.me.id, self.transport, self.post, self._write_trace)
        self._snapshots = Snapshots(setup.me.id, self.transport, self.post, self._write_trace, setup.runtime)
        if setup.resume is not None:
            self._snapshots.resume_from(setup.resume)
        self._memory: tuple[SharedMemory, ResultRing] | None = None
        self._words: words_files.OwnWords | None = None
        self._events: deque[ev.AnyEvent] = deque()
        self._busy = False
        self._sealing: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: asyncio.Future[act.Stop] = asyncio.get_running_loop().create_future()
        self._passed_on = False
        self._topology = 0
        """What `_ways` was made of; see `Liveness.topology`."""
        self._ways: dict[str, tuple[str, ...]] = {}
        """How each peer is reached: over whom, itself last."""
        self._contact: asyncio.Task[None] | None = None

    # --- life ----------------------------------------------------------------------------------------------

    async def start(self) -> list[str]:
        """Listen for peers and for the worker. Returns the bound addresses."""
        bound = await self.transport.start()
        self._me = msgspec.structs.replace(self._me, addresses=self._setup.advertise(bound))
        self.node.ctx.me = self._me
        self.transport.set_me(self._me)
        self.worker_link.start()
        return bound

    async def run(self) -> act.Stop:
        """Until the node stops. Raises what a task of the agent raised: an agent that is broken must not linger."""
        asyncio.get_running_loop().set_exception_handler(self._broken)
        self._spawn(self._ticks())
        self._spawn(self._measures())
        self._spawn(self._tells())
        self._spawn(self._samples())
        self._seek_contact()
        try:
            return await self._stopped
        finally:
            await self._close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.transport.close()
        self.worker_link.close()
        if self._words is not None:
            ended = self._stopped.done() and not self._stopped.cancelled() and not self._stopped.exception()
            proper = ended and self._stopped.result().code == 0
            # of an agent that broke, or had nobody to say goodbye to, its words are the only proof
            self._words.close(remove=proper)
        self._observer.close()
        if self._recorder is not None:
            self._recorder.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._stopped.done():
            self._stopped.set_exception(error)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised what nobody handles: the agent's state can't be trusted any more."""
        error = context.get("exception")
        if isinstance(error, Exception) and not self._stopped.done():
            self._stopped.set_exception(error)
        else:
            loop.default_exception_handler(context)

    async def _ticks(self) -> None:
        while True:
            self.post(ev.Tick())
            await asyncio.sleep(self._setup.node.tick_s)

    async def _measures(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_S)
            links = {peer: (info.rate_bps, info.rtt_s) for peer, info in self.transport.links().items()}
            known = {peer: (rate, rtt or 0.0) for peer, (rate, rtt) in links.items() if rate or rtt}
            self.post(ev.LinksMeasured(known))
            self._route()
            self._admit_anew()

    async def _tells(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            self._tell_others()

    async def _samples(self) -> None:
        """What this peer measures of itself becomes a line of its trace."""
        loop, host = asyncio.get_running_loop(), Host(self._setup.checkpoint or Path.cwd())
        while True:
            links = self.transport.links()
            measured = await loop.run_in_executor(None, host.sample)
            cards = await loop.run_in_executor(None, host.cards)
            named = {self.node.ctx.name(peer): info for peer, info in links.items()}
            self._observer.sample(measured, cards, named, self.node.learner.fetching())
            await asyncio.sleep(self._observer.pause(links.values()))

    def _tell_others(self) -> None:
        """What this peer sees, to everybody in the view and whoever is linked."""
        observer, ctx = self._observer, self.node.ctx
        others = {info.id for info in (ctx.view.everybody() if ctx.views else ()) if info.id != ctx.id}
        others |= ctx.linked.keys()
        observer.forget(others)
        if others and (news := observer.news()):
            message = wrap(Content.LINES, observer.causal.stamp(), news)
            sent = sum(self.transport.send_control(peer, message) for peer in sorted(others))
            observer.spread_bytes += sent * len(message)

    def _admit_anew(self) -> None:
        """`chaos party admit` while this agent runs: let the party in; one that was removed loses its links."""
        changed = self._setup.admitted()
        if changed is None:
            return
        security, parties = changed
        self.transport.set_security(security)
        self._write_trace("parties", {"admitted": sorted(party[:16] for party in parties)})
        for info in list(self.node.ctx.linked.values()):
            if info.party not in parties:
                self.transport.disconnect(info.id, f"party {info.party[:16]} is not admitted here any more")

    def _route(self) -> None:
        ctx = self.node.ctx
        self._topology = self.node.liveness.topology
        before, self._ways = self._ways, ways(self._me.id, ctx.linked, self.node.liveness.neighbours)
        self.transport.set_routes({peer: way[0] for peer, way in self._ways.items() if len(way) > 1})
        for peer in [peer for peer, way in self._ways.items() if way != before.get(peer)]:
            self._reducer.path_changed(peer, self.node.steps.held_by(peer))
            if len(self._ways[peer]) > 1:
                self.post(ev.PathChanged(peer))

    def _seek_contact(self) -> None:
        """A joiner without any link looks for a member at the addresses it was given."""
        if not self._setup.join or self.node.ctx.views or self.node.ctx.linked:
            return
        if self._contact is None or self._contact.done():
            self._contact = self._spawn(self._first_contact())

    async def _first_contact(self) -> None:
        """Dial the given addresses, in order and again, until one answers; any member is as good as another."""
        deadline = time.monotonic() + DIAL_S
        while True:
            refused: list[ChaosError] = []
            for address in self._setup.join:
                try:
                    await self.transport.dial(address)
                    return
                except DialFailed as error:
                    refused.append(error)
                    self._write_trace("dial_failed", {"address": address, "reason": str(error)})
                except ChaosError as error:
                    self.post(ev.DialRefused(address, str(error)))
                    return
            if time.monotonic() > deadline:
                self.post(ev.DialRefused(self._setup.join[0], str(refused[-1])))
                return
            await asyncio.sleep(0.5)

    # --- events in -----------------------------------------------------------------------------------------

    def post(self, event: ev.AnyEvent) -> None:
        """Have the node handle an event, after those before it. Actions may post further events."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                self._handle(self._events.popleft())
                if self.node.liveness.topology != self._topology:
                    self._route()
        finally:
            self._busy = False

    def _handle(self, event: ev.AnyEvent) -> None:
        now, handling = time.monotonic(), self.node.views.handling
        stage = handling.stage
        self._observer.stopwatch.begin()
        try:
            actions = self.node.handle(event, now)
        except RemoteProtocolError as error:
            self._record(now, event, None)
            source = event.src if isinstance(event, ev.Received) else ""
            self._write_trace("protocol_error", {"peer": source, "reason": str(error)})
            if source:
                self.transport.disconnect(source, str(error))
            return
        self._observer.stopwatch.thought(event, stage, handling.stage)
        self._record(now, event, actions)
        for action in actions:
            self._do(action)
        self._observer.stopwatch.acted(handling.open)

    def _record(self, now: float, event: ev.AnyEvent, actions: list[act.AnyAction] | None) -> None:
        if self._recorder is not None:
            self._recorder.write(self._me, now, event, actions)

    def on_link_up(self, info: PeerInfo, run: str) -> None:
        if run and not self.transport.run_id:
            self.transport.set_run_id(run)
        self.post(ev.LinkUp(info, run or self.transport.run_id))
        self._route()
        if self._setup.sealed and not self._passed_on:
            self._passed_on = True
            for sealed in self._setup.sealed:
                self._send(info.id, Seal(sealed))

    def on_link_down(self, peer: str, reason: str) -> None:
        self.post(ev.LinkDown(peer, reason))
        self._route()
        self._seek_contact()

    def on_refused(self, address: str, reason: str) -> None:
        self._write_trace("link_refused", {"address": address, "reason": reason})

    def on_control(self, src: str, body: bytes) -> None:
        """A message. One that does not decode raises RemoteProtocolError: the transport drops its link."""
        content, stamp, message = unwrap(body)
        self._observer.causal.hear(stamp)
        if content is Content.PROTOCOL:
            self.post(ev.Received(src, decode(message)))
        elif self.node.ctx.takes_part(src) or src in self.node.ctx.linked:
            self._observer.hear(src, self.node.ctx.name(src), message, time.monotonic())

    def bulk_sink(self, _peer: str, header: BulkHeader) -> memoryview | Verdict:
        if header.kind == SHARD:
            return self._snapshots.sink(header)
        if header.kind not in (Kind.CONTRIBUTION, Kind.FINAL, Kind.RESULT):
            raise RemoteProtocolError(f"bulk frames of kind {header.kind} are unknown")
        return self._reducer.sink(header)

    def on_bulk(self, _peer: str, header: BulkHeader, payload: memoryview) -> None:
        if header.kind == SHARD:
            self._snapshots.arrived(header, payload)
            self._progress.arrived(len(payload))
        else:
            self._reducer.received(header, payload)

    def bulk_aborted(self, _peer: str, _header: BulkHeader, _payload: memoryview) -> None:
        """The frame comes again, or is asked for again; what was written is overwritten then."""

    async def on_client(self, payload: bytes, party: str) -> bytes:
        return encode_answer(await self._answers.to(payload, party))

    # --- the worker ----------------------------------------------------------------------------------------

    def _on_worker(self, message: FromWorker, fds: list[int]) -> None:
        match message:
            case BucketReady(step, segment, weight):
                self._reducer.bucket_ready(step, segment, weight)
            case Register(layout=layout, listens=listens):
                self._observer.listen(listens)
                if self._memory is None:
                    contribution = SharedMemory.create("chaos-contribution", max(layout.nbytes, 1))
                    ring = self._result_ring(max(layout.nbytes, 1))
                    self._memory = contribution, ring
                    self.post(ev.ResultMemory(ring.slots, ring.disk_slots))
                self._reducer.configure(layout, *self._memory)
            case Boundary(applied, part, compute_s):
                weight = part.weight if part is not None else 0.0
                self._observer.monitor.boundary(applied, compute_s, message.update_s, weight, time.monotonic())
            case SnapshotPrepared(nbytes):
                self._snapshots.prepared(fds[0], nbytes)
            case SnapshotTaken(manifest):
                self._snapshots.own_nbytes = manifest.nbytes
        self.post(ev.WorkerSaid(message))

    def _result_ring(self, nbytes: int) -> ResultRing:
        disk, directory = None, self._setup.spill
        try:
            if directory is not None:
                disk = results_on_disk(directory, nbytes, self._setup.spill_bytes)
        except ChaosError as error:
            self._write_trace("no_results_on_disk", {"reason": str(error)})
        return ResultRing(nbytes, ring_slots(nbytes), disk)

    def _tell_worker(self, message: Any) -> None:
        match message:
            case Welcome():
                assert self._memory is not None
                contribution, ring = self._memory
                message = msgspec.structs.replace(
                    message, slots=ring.slots, slot_stride=ring.stride, disk_slots=ring.disk_slots
                )
                fds = (contribution.fd, ring.memory.fd, *((ring.disk.fd,) if ring.disk is not None else ()))
                self.worker_link.send(message, fds)
            case LoadState():
                assert self._snapshots.received is not None
                self.worker_link.send(message, (self._snapshots.received.fd,))
            case Commit():
                self.worker_link.send(msgspec.structs.replace(message, slot=self._reducer.slot(message.step)))
            case Proceed():
                if lines := self._observer.for_worker():
                    self.worker_link.send(Told(lines))
                self.worker_link.send(message)
            case _:
                self.worker_link.send(message)

    # --- actions out ---------------------------------------------------------------------------------------

    def _do(self, action: act.AnyAction) -> None:
        match action:
            case act.Send(dst, message):
                self._send(dst, message)
            case act.ToWorker(message):
                self._tell_worker(message)
            case act.Trace(kind, fields):
                self._write_trace(kind, fields)
            case act.Persist(words):
                self._persist(words)
            case act.Connect(info):
                self.transport.connect(info)
            case act.Disconnect(peer, reason):
                self.transport.disconnect(peer, reason)
            case act.TrySeal(info):
                self._start_sealing(info)
            case act.StopSeal(peer):
                self._stop_sealing(peer)
            case act.SendGoodbye():
                self._say_goodbye(action)
            case act.Tell(text):
                print(f"chaos: {text}", file=sys.stderr, flush=True)
            case act.Stop():
                if not self._stopped.done():
                    asyncio.get_running_loop().call_soon(self._stop, action)
            case _:
                self._do_bulk(action)

    def _do_bulk(self, action: act.AnyAction) -> None:
        reducer, snapshots = self._reducer, self._snapshots
        match action:
            case act.SetViews(views, finished):
                reducer.set_views(views, finished)
            case act.OpenRound(view_id, step):
                reducer.open_round(view_id, step)
            case act.SendContribution(view_id, step, weight, empty):
                reducer.send_contribution(view_id, step, weight, empty)
            case act.ContributionKnown(view_id, step, peer, _, empty):
                self._observer.monitor.contribution(step, time.monotonic())
                reducer.contribution_known(view_id, step, peer, empty)
            case act.Finish(step):
                self._observer.monitor.finished(step, time.monotonic())
                reducer.finish(step)
            case act.ReleaseResults(step):
                reducer.release(step)
            case act.MoveResults(step):
                reducer.move(step)
            case act.FetchRound(view_id, step):
                reducer.fetch(view_id, step)
            case act.ServeResult(dst, view_id, step):
                reducer.serve(dst, view_id, step)
            case act.HashSnapshot():
                self._spawn(snapshots.hash_own(action))
            case act.ReceiveSnapshot():
                self._spawn(snapshots.expect(action))
                self._progress.expect(action.step, action.nbytes)
            case act.ServeShards():
                snapshots.serve(action)
            case act.ReleaseSnapshot(received):
                if received:
                    snapshots.forget_received()
            case act.WriteCheckpoint():
                self._spawn(self._write_checkpoint(action))
            case _:
                raise AssertionError(f"the driver has no hand for {type(action).__name__}")

    def _stop(self, stop: act.Stop) -> None:
        self._tell_others()
        if not self._stopped.done():
            self._stopped.set_result(stop)

    def _send(self, dst: str, message: PeerMessage) -> None:
        self.transport.send_control(dst, wrap(Content.PROTOCOL, self._observer.causal.stamp(), encode(message)))

    def _write_trace(self, kind: str, fields: dict[str, Any]) -> None:
        self._observer.write(kind, fields)
        self._progress.take(kind, fields)

    def _place(self) -> tuple[int, int]:
        ctx = self.node.ctx
        return ctx.view.id if ctx.views else 0, self.node.steps.finished

    # --- last words ----------------------------------------------------------------------------------------

    def _persist(self, words: LastWords) -> None:
        if self._words is None:
            me = self._me
            self._words = words_files.OwnWords(self._setup.runtime, words.run, me.id, me.incarnation)
        body = encode_words(words)
        self._words.write(body, self._setup.identity.sign(body))

    def _say_goodbye(self, goodbye: act.SendGoodbye) -> None:
        words = self.node.views.words()
        if words is None:
            return
        body = encode_words(words)
        sealed = Sealed(body, self._setup.identity.sign(body))
        for peer in goodbye.peers:
            self._send(peer, Goodbye(sealed, goodbye.reason, goodbye.complete))

    def _start_sealing(self, info: PeerInfo) -> None:
        self._stop_sealing(info.id)
        path = words_files.find(self._setup.runtime, self.node.ctx.run, info.id, info.incarnation)
        if path is not None:
            self._sealing[info.id] = self._spawn(self._seal(path))

    def _stop_sealing(self, peer: str) -> None:
        task = self._sealing.pop(peer, None)
        if task is not None:
            task.cancel()

    async def _seal(self, path: Path) -> None:
        """Its process still holds the lock while it lives; once it does not, its words are final."""
        for pause in SEAL_TRIES:
            await asyncio.sleep(pause)
            found = words_files.try_seal(path)
            if isinstance(found, Sealed):
                self.post(ev.WordsFound(found))
                return

    # --- checkpoints ---------------------------------------------------------------------------------------

    async def _write_checkpoint(self, action: act.WriteCheckpoint) -> None:
        assert self._setup.checkpoint is not None and self._snapshots.own is not None
        content = Checkpoint(
            run=self.node.ctx.run,
            lineage=action.view.lineage,
            view_id=action.view.id,
            step=action.step,
            head=action.head,
            data=action.data,
            manifest=action.manifest,
            created=time.time(),
            members=tuple(m.name for m in action.view.members),
        )
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        try:
            path = await loop.run_in_executor(None, write, self._setup.checkpoint, content, self._snapshots.own.view)
        except ChaosError as error:
            self._write_trace("checkpoint_failed", {"step": action.step, "reason": str(error)})
            print(f"chaos: warning: no checkpoint of step {action.step}: {error}", file=sys.stderr, flush=True)
        else:
            took = round(time.monotonic() - began, 3)
            self._write_trace("checkpoint", {"step": action.step, "path": str(path), "seconds": took})
        self.post(ev.SnapshotFreed(action.step))
