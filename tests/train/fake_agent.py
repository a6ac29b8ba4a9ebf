"""An honest run of a few peers in one thread: speaks the worker protocol, reduces with torch in float64.

Every peer has its own socket, shared memory and bookkeeping, as if it had its own agent; agreement between
agents is what the single thread replaces. Tests script it by step: `at`, `skip`, `stop_at`, `leave_at`.
"""

from __future__ import annotations

import mmap
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

import chaos
from chaos.core.data import advance
from chaos.core.types import DataState, Layout, StateManifest
from chaos.core.worker_messages import (
    Boundary,
    BucketReady,
    Commit,
    Contribution,
    DeclareData,
    Declined,
    Failed,
    Finished,
    FromAgent,
    FromWorker,
    LoadState,
    PrepareSnapshot,
    Proceed,
    Register,
    SnapshotPrepared,
    SnapshotTaken,
    StateLoaded,
    StateRefused,
    TakeSnapshot,
    Welcome,
)

SLOTS = 64
"""A worker that replays must not lag further than this."""
SECONDS = 60.0
_environ = threading.Lock()


@dataclass
class Peer:
    """One worker as its agent sees it."""

    index: int
    path: str
    listener: socket.socket
    sock: socket.socket | None = None
    inbox: bytearray = field(default_factory=bytearray)
    fds: deque[int] = field(default_factory=deque)
    log: list[FromWorker] = field(default_factory=list)
    layout: Layout | None = None
    memory: mmap.mmap | None = None
    ring: mmap.mmap | None = None
    snapshot: mmap.mmap | None = None
    boundary: Boundary | None = None
    declares: tuple[str, int] | None = None
    role: str = "absent"
    has_state: bool = False
    applied: int = 0
    early: dict[int, bytes] = field(default_factory=dict)
    """Bytes of the segments announced by BucketReady in this step."""
    early_weights: set[float] = field(default_factory=set)

    @property
    def id(self) -> str:
        return f"{self.index + 1:016x}"

    def of(self, kind: type) -> list:
        """Messages of one kind that this worker sent, in order."""
        return [message for message in self.log if isinstance(message, kind)]


class FakeAgent:
    """The agents of `founders` peers that start together and of `joiners` that come when they like."""

    def __init__(self, folder: Path, founders: int = 1, joiners: int = 0, seed: int = 0, lag: int = 1) -> None:
        self.seed, self.lag = seed, lag
        self.data = DataState()
        self.finished = 0
        self.commits: dict[int, tuple[Commit, bytes]] = {}
        self.contributions: dict[int, dict[str, Contribution]] = {}
        self.at: dict[int, Callable[[FakeAgent], None]] = {}
        """Called when all members stand before `step`'s commit."""
        self.skip: dict[int, str] = {}
        self.stop_at: set[int] = set()
        self.leave_at: dict[int, int] = {}
        self.decline: dict[int, str] = {}
        self.problems: list[str] = []
        self.load_for: dict[int, tuple[StateManifest, bytes]] = {}
        """A state to push to a member at its next boundary: peer index to snapshot."""
        self.promote = True
        """Whether a learner that has the state becomes a member with the next step."""
        self.state_given = threading.Event()
        """Some worker answered to `LoadState`."""
        self._donor_wanted = False
        self._selector = selectors.DefaultSelector()
        self.peers = [self._listen(folder, index) for index in range(founders + joiners)]
        for peer in self.peers[:founders]:
            peer.role = "founder"
        self._wake, waker = socket.socketpair()
        self._selector.register(waker, selectors.EVENT_READ, "stop")
        self._waker = waker
        self._thread = threading.Thread(target=self._serve, name="fake-agent", daemon=True)
        self._thread.start()

    # --- for tests ---------------------------------------------------------------------------------------

    @contextmanager
    def worker(self, index: int, *args: object, **options: object) -> Iterator[chaos.Session]:
        """A session of peer `index`, entered as `with chaos.Session(...)` would be."""
        session = chaos.Session(*args, **options)
        with _environ:
            os.environ["CHAOS_AGENT"] = self.peers[index].path
            try:
                session.__enter__()
            finally:
                del os.environ["CHAOS_AGENT"]
        try:
            yield session
        except BaseException as error:
            session.__exit__(type(error), error, error.__traceback__)
            raise
        session.__exit__(None, None, None)

    def run(self, *scripts: Callable[[int], object]) -> list:
        """Run one script per peer, each in a thread; the first error ends all of them and is raised."""
        results: list = [None] * len(scripts)
        with ThreadPoolExecutor(len(scripts)) as pool:
            futures = {pool.submit(script, index): index for index, script in enumerate(scripts)}
            try:
                for future in as_completed(futures, timeout=SECONDS):
                    results[futures[future]] = future.result()
            except BaseException:
                self.close()
                raise
        self._hear_them_out()
        return results

    def _hear_them_out(self) -> None:
        """Scripts have ended; what they said last may still be on its way into the log."""
        deadline = time.monotonic() + SECONDS
        while any(peer.sock is not None for peer in self.peers) and time.monotonic() < deadline:
            time.sleep(0.001)

    def close(self) -> None:
        """End all agents at once, as a crash would."""
        if self._thread.is_alive():
            self._wake.close()
            if threading.current_thread() is not self._thread:
                self._thread.join(SECONDS)

    def tell(self, peer: Peer, message: FromAgent, fds: tuple[int, ...] = ()) -> None:
        body = msgspec.msgpack.encode(message)
        if peer.sock is None:
            return  # its script has ended
        try:
            socket.send_fds(peer.sock, [struct.pack("<I", len(body)) + body], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            self._gone(peer)

    def cut_off(self, index: int) -> None:
        """The others go on without this peer, whose worker waits at its boundary."""
        self.peers[index].role = "cut off"

    def heal(self, index: int) -> None:
        """A peer that was cut off comes back as a learner."""
        self.peers[index].role, self.peers[index].has_state = "learner", False
        self._donor_wanted = True

    # --- sockets -----------------------------------------------------------------------------------------

    def _listen(self, folder: Path, index: int) -> Peer:
        path = str(folder / f"agent-{index}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        peer = Peer(index, path, listener)
        self._selector.register(listener, selectors.EVENT_READ, ("accept", peer))
        return peer

    def _serve(self) -> None:
        stop = False
        while not stop:
            for key, _ in self._selector.select():
                if key.data == "stop":
                    stop = True
                    break
                what, peer = key.data
                if what == "accept":
                    peer.sock, _ = peer.listener.accept()
                    self._selector.register(peer.sock, selectors.EVENT_READ, ("read", peer))
                else:
                    self._read(peer)
        for peer in self.peers:
            self._gone(peer)
            peer.listener.close()

    def _read(self, peer: Peer) -> None:
        assert peer.sock is not None
        try:
            data, fds, _, _ = socket.recv_fds(peer.sock, 1 << 16, 4)
        except ConnectionResetError:
            data, fds = b"", []
        if not data:
            self._gone(peer)
            self._pump()
            return
        peer.inbox += data
        peer.fds.extend(fds)
        while len(peer.inbox) >= 4 and len(peer.inbox) >= 4 + struct.unpack("<I", peer.inbox[:4])[0]:
            length = struct.unpack("<I", peer.inbox[:4])[0]
            message = msgspec.msgpack.decode(bytes(peer.inbox[4 : 4 + length]), type=FromWorker)
            del peer.inbox[: 4 + length]
            peer.log.append(message)
            self._on(peer, message)
            self._pump()

    def _gone(self, peer: Peer) -> None:
        if peer.sock is not None:
            self._selector.unregister(peer.sock)
            peer.sock.close()
            peer.sock = None
        if peer.role != "absent":
            peer.role = "gone"

    # --- protocol ----------------------------------------------------------------------------------------

    def _on(self, peer: Peer, message: FromWorker) -> None:
        match message:
            case Register():
                self._register(peer, message)
            case DeclareData():
                peer.declares = (message.kind, message.samples)
            case BucketReady():
                self._bucket_ready(peer, message)
            case Boundary():
                peer.boundary = message
                if message.contribution is not None:
                    self._check_early(peer, message.contribution)
                elif peer.role == "learner" and not peer.has_state:
                    self._donor_wanted = True
                elif peer.role == "learner":
                    self._up_to_date(peer)
            case SnapshotPrepared():
                peer.snapshot = mmap.mmap(peer.fds.popleft(), message.nbytes, prot=mmap.PROT_READ)
            case SnapshotTaken():
                self._on_snapshot(peer, message.manifest)
            case StateLoaded():
                peer.applied, peer.has_state = message.step, True
                self.state_given.set()
                self._up_to_date(peer)
            case StateRefused():
                self.tell(peer, Declined(message.reason))
                self.state_given.set()
            case Finished() | Failed():
                self._gone(peer)
            case _:
                pass

    def _register(self, peer: Peer, message: Register) -> None:
        if (reason := self.decline.get(peer.index)) is not None:
            self.tell(peer, Declined(reason))
            return
        peer.layout = message.layout
        stride = -(-message.layout.nbytes // 4096) * 4096
        contribution, ring = os.memfd_create("contribution"), os.memfd_create("ring")
        os.ftruncate(contribution, message.layout.nbytes)
        os.ftruncate(ring, SLOTS * stride)
        peer.memory, peer.ring = mmap.mmap(contribution, message.layout.nbytes), mmap.mmap(ring, SLOTS * stride)
        founder = peer.role == "founder"
        welcome = Welcome(
            peer.id, f"peer-{peer.index}", "run", self.seed, SLOTS, stride, founder, self.finished, self.data
        )
        self.tell(peer, welcome, (contribution, ring))
        os.close(contribution)
        os.close(ring)
        peer.role = "member" if founder else "learner"
        self._proceed(peer)

    def _members(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.role in ("member", "founder")]

    def _pump(self) -> None:
        """Finish the step once every member has contributed to it."""
        members = self._members()
        if not members or not all(peer.boundary is not None and peer.role == "member" for peer in members):
            return
        for index in [p.index for p in members if p.index in self.load_for]:
            manifest, data = self.load_for.pop(index)
            self._load(self.peers[index], manifest, data)
            self.peers[index].boundary = Boundary(manifest.step, None, 0.0)
            return
        if self._donor_wanted:
            self._donor_wanted = False
            self.tell(members[0], PrepareSnapshot())
            self.tell(members[0], TakeSnapshot(self.finished))
        step = self.finished + 1
        if step in self.at:
            self.at.pop(step)(self)
            if self._members() != members:
                self._pump()
                return
        self._commit(step, members)
        for peer in members:
            self._replay(peer)
        for peer in [p for p in self.peers if p.role == "loaded"]:
            self._replay(peer)
            peer.role = "member"
            members.append(peer)
        for peer in members:
            self._proceed(peer)

    def _commit(self, step: int, members: list[Peer]) -> None:
        parts = {p.id: p.boundary.contribution for p in members if p.boundary and p.boundary.contribution}
        for peer in members:
            if peer.declares is not None and self.data.kind == "none" and peer.id in parts:
                parts[peer.id] = msgspec.structs.replace(parts[peer.id], declares=peer.declares)
        real = [(peer, parts[peer.id]) for peer in members if peer.id in parts and not parts[peer.id].empty]
        weight = sum(c.weight for _, c in real)
        result, culprits = _reduce(real)
        skip = self.skip.get(step, "")
        if culprits:
            skip = f"non-finite gradient from {', '.join(culprits)}"
        elif weight == 0:
            skip = "no member had samples"
        losses = [(c.loss, c.weight) for _, c in real if c.loss is not None]
        total = sum(w for _, w in losses)
        touched = 0
        for _, c in real:
            touched |= int.from_bytes(c.touched, "little")
        width = max((len(c.touched) for _, c in real), default=0)
        commit = Commit(
            step=step,
            slot=step % SLOTS,
            weight=weight,
            loss=sum(v * w for v, w in losses) / total if total else None,
            touched=touched.to_bytes(width, "little"),
            scalars=next((c.scalars for _, c in real if c.scalars), b""),
            skip=skip,
            stop=step in self.stop_at,
        )
        self.commits[step] = (commit, result)
        self.contributions[step] = parts
        self.data = advance(self.data, parts)
        self.finished = step

    def _replay(self, peer: Peer) -> None:
        """Give the worker every commit it lacks."""
        while peer.applied < self.finished:
            commit, result = self.commits[peer.applied + 1]
            assert peer.ring is not None
            start = commit.slot * (len(peer.ring) // SLOTS)
            peer.ring[start : start + len(result)] = result
            self.tell(peer, commit)
            peer.applied += 1

    def _proceed(self, peer: Peer) -> None:
        peer.boundary = None
        peer.early.clear()
        peer.early_weights.clear()
        step = self.finished + 1
        leaving = self.leave_at.get(peer.index, step + 1) <= step
        role = "learner" if peer.role == "learner" else "member"
        members = len(self._members())
        self.tell(peer, Proceed(step, role, members, self.data, max(0, self.finished - self.lag), leaving))
        if leaving:
            peer.role = "left"

    # --- state -------------------------------------------------------------------------------------------

    def _up_to_date(self, peer: Peer) -> None:
        """A worker that was given a state gets what came since; a learner may become a member then."""
        self._replay(peer)
        if peer.role == "learner" and self.promote:
            peer.role = "loaded"
        elif peer.role == "learner":
            self._proceed(peer)

    def _on_snapshot(self, donor: Peer, manifest: StateManifest) -> None:
        assert donor.snapshot is not None
        for peer in self.peers:
            if peer.role == "learner" and peer.boundary is not None:
                self._load(peer, manifest, donor.snapshot[: manifest.nbytes])

    def _load(self, peer: Peer, manifest: StateManifest, data: bytes) -> None:
        fd = os.memfd_create("state")
        os.write(fd, data)
        self.tell(peer, LoadState(manifest), (fd,))
        os.close(fd)

    # --- overlap -----------------------------------------------------------------------------------------

    def _bucket_ready(self, peer: Peer, message: BucketReady) -> None:
        assert peer.layout is not None and peer.memory is not None
        if message.step != self.finished + 1 or peer.role != "member":
            self.problems.append(f"BucketReady for step {message.step} as {peer.role} at {self.finished}")
        segment = peer.layout.segments[message.segment]
        peer.early[message.segment] = peer.memory[segment.offset : segment.offset + segment.nbytes]
        peer.early_weights.add(message.weight)

    def _check_early(self, peer: Peer, contribution: Contribution) -> None:
        assert peer.layout is not None and peer.memory is not None
        for number, data in peer.early.items():
            segment = peer.layout.segments[number]
            if peer.memory[segment.offset : segment.offset + segment.nbytes] != data:
                self.problems.append(f"segment {number} changed after it was announced")
        if peer.early_weights - {contribution.weight}:
            self.problems.append(f"announced {peer.early_weights}, contributed {contribution.weight}")


def _reduce(real: list[tuple[Peer, Contribution]]) -> tuple[bytes, list[str]]:
    """Weighted means and maxima over the contributors, and the names of those that were not finite."""
    if not real:
        return b"", []
    layout = real[0][0].layout
    assert layout is not None
    result = bytearray(layout.nbytes)
    culprits: list[str] = []
    total = sum(c.weight for _, c in real)
    for segment in layout.segments:
        dtype = getattr(torch, segment.dtype)
        count = segment.nbytes // dtype.itemsize
        values = [torch.frombuffer(p.memory, dtype=dtype, count=count, offset=segment.offset) for p, _ in real]
        out = torch.frombuffer(result, dtype=dtype, count=count, offset=segment.offset)
        if segment.op == "max":
            out.copy_(torch.stack(values).amax(0))
            continue
        culprits += [f"peer-{p.index}" for (p, _), v in zip(real, values, strict=True) if not torch.isfinite(v).all()]
        mean = sum(v.double() * (c.weight / total) for v, (_, c) in zip(values, real, strict=True))
        out.copy_(mean)
    return bytes(result), sorted(set(culprits))
