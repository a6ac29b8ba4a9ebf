"""The data plane of replication: snapshot memory, hashed, served and received in shards."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from chaos.agent.held import ReceivedFile, take_over
from chaos.agent.reduce import Outlet
from chaos.agent.shared_memory import SharedMemory
from chaos.agent.transport import BulkHeader, Verdict
from chaos.core.actions import HashSnapshot, ReceiveSnapshot, ServeShards
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import ShardsHeld, ShardStored, SnapshotHashed

HASHING_NICE = 15
"""Hashing a large state takes seconds of a core; training on the same host goes before it (workers run at 10)."""
SHARD = 16
"""Kind of the bulk frames that carry a shard; `index` is its number, `step` its snapshot's."""


def spans(nbytes: int, shard_bytes: int) -> list[tuple[int, int]]:
    """(start, stop) of each shard."""
    return [(at, min(at + shard_bytes, nbytes)) for at in range(0, nbytes, shard_bytes)]


def hash_shards(memory: memoryview, nbytes: int, shard_bytes: int) -> tuple[bytes, ...]:
    """BLAKE3 of each shard, 32 bytes each. Releases the GIL while it works."""
    return tuple(blake3(memory[start:stop]).digest() for start, stop in spans(nbytes, shard_bytes))


def _yield_to_training() -> None:
    """Linux gives each thread a nice value of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HASHING_NICE)


class Snapshots:
    """The snapshot that the own worker took, and the one that is being received."""

    def __init__(
        self,
        me: str,
        outlet: Outlet,
        happened: Callable[[ShardStored | ShardsHeld | SnapshotHashed], None],
        note: Callable[[str, dict[str, Any]], None],
        directory: Path | None,
    ) -> None:
        self._me = me
        self._note = note
        self._file = ReceivedFile(directory, me)
        self._outlet = outlet
        self._happened = happened
        self._hashing = ThreadPoolExecutor(1, "chaos-hash", initializer=_yield_to_training)
        self.own: SharedMemory | None = None
        self.own_nbytes = 0
        self._shard_bytes = 1
        self._asked: dict[str, tuple[int, set[int]]] = {}
        """Per learner, the step and all shards that were queued for it, sent or not."""
        self._relay: dict[str, dict[int, None]] = {}
        """Per learner, shards of the received snapshot that it is to get once they are here."""
        self.received: SharedMemory | None = None
        self._receiving: ReceiveSnapshot | None = None
        self._stored: set[int] = set()

    # --- the own snapshot ----------------------------------------------------------------------------------

    def prepared(self, fd: int, nbytes: int) -> None:
        """The worker made snapshot memory of `nbytes`; `fd` becomes ours."""
        if self.own is not None:
            self.own.close()
        self.own = SharedMemory.attach(fd, nbytes, writable=False)

    async def hash_own(self, order: HashSnapshot) -> None:
        """Hash the own snapshot off the loop's thread."""
        assert self.own is not None
        self._shard_bytes = order.shard_bytes
        memory, nbytes = self.own.view[:], self.own_nbytes  # a slice stays valid if the memory is replaced meanwhile
        loop = asyncio.get_running_loop()
        hashes = await loop.run_in_executor(self._hashing, hash_shards, memory, nbytes, order.shard_bytes)
        self._happened(SnapshotHashed(order.step, order.shard_bytes, hashes))

    def serve(self, order: ServeShards) -> None:
        """Queue shards for a learner instead of what was still queued for it. Gradients go before them."""
        begun = self._call_back(order.dst, order.step)
        if order.afresh:
            begun.clear()
        self._asked[order.dst] = order.step, begun
        wanted = [shard for shard in order.shards if shard not in begun]
        if order.received:
            self._relay[order.dst] = dict.fromkeys(shard for shard in wanted if shard not in self._stored)
            wanted = [shard for shard in wanted if shard in self._stored]
        for shard in wanted:
            self._send(order.dst, order.step, shard, order.received)

    def _send(self, dst: str, step: int, shard: int, received: bool) -> None:
        memory = self.received if received else self.own
        if memory is None:
            return
        if received:
            assert self._receiving is not None
            nbytes, size = self._receiving.nbytes, self._receiving.shard_bytes
        else:
            nbytes, size = self.own_nbytes, self._shard_bytes
        self._asked[dst][1].add(shard)
        payload = memory.view[shard * size : min((shard + 1) * size, nbytes)]
        self._outlet.send_bulk(dst, BulkHeader(SHARD, 0, step, shard), payload)

    def _call_back(self, dst: str, step: int) -> set[int]:
        """Take out of the queue what this peer was to send to `dst`. Returns what of this step it has begun to send."""
        waiting: set[int] = set()

        def mine(header: BulkHeader) -> bool:
            if header.kind != SHARD or header.dst != dst or header.src != self._me:
                return False
            waiting.add(header.index)
            return True

        self._outlet.drop_bulk(mine)
        self._relay.pop(dst, None)
        last, asked = self._asked.pop(dst, (step, set()))
        return asked - waiting if last == step else set()

    # --- the received snapshot -----------------------------------------------------------------------------

    async def expect(self, order: ReceiveSnapshot) -> None:
        """Make room for a snapshot, and look what of it is here."""
        sources = [view for view in (self._file.former(),) if view is not None]
        if self.own is not None and self.own_nbytes:
            sources.append(self.own.view[: self.own_nbytes])
        if self.received is not None:
            self.received.close()
        self.received, obstacle = self._file.create(order.nbytes)
        if obstacle:
            self._note("snapshot_in_memory", {"reason": obstacle})
        self._receiving = order
        self._stored.clear()
        self._relay.clear()
        loop, target = asyncio.get_running_loop(), self.received.view[:]
        found: tuple[int, ...] = ()
        if sources and order.nbytes:
            found = await loop.run_in_executor(self._hashing, take_over, order, sources, target)
        if self._receiving is order:
            self._stored.update(found)
            self._happened(ShardsHeld(order.step, found))

    def resume_from(self, memory: SharedMemory) -> None:
        """A checkpoint takes the place of a received snapshot."""
        self.received = memory

    def forget_received(self) -> None:
        if self.received is not None:
            self.received.close()
            self.received = None
        self._file.remove()
        self._receiving = None
        self._relay.clear()

    def sink(self, header: BulkHeader) -> memoryview | Verdict:
        """Where a shard's bytes go. Raises RemoteProtocolError if they can't be that shard's."""
        order = self._receiving
        if order is None or self.received is None or header.step != order.step or header.index in self._stored:
            return Verdict.DISCARD
        start, stop = self._place(order, header)
        return self.received.view[start:stop]

    def _place(self, order: ReceiveSnapshot, header: BulkHeader) -> tuple[int, int]:
        start = header.index * order.shard_bytes
        stop = min(start + order.shard_bytes, order.nbytes)
        if header.index >= len(order.hashes) or header.length != stop - start:
            raise RemoteProtocolError(f"shard {header.index} with {header.length} bytes does not fit the snapshot")
        return start, stop

    def arrived(self, header: BulkHeader, payload: memoryview) -> None:
        """A shard is here whole: check it against its hash."""
        order = self._receiving
        if order is None or header.step != order.step or header.index in self._stored:
            return
        ok = blake3(payload).digest() == order.hashes[header.index]
        if ok:
            self._stored.add(header.index)
            for dst, waiting in self._relay.items():
                if header.index in waiting:
                    del waiting[header.index]
                    self._send(dst, order.step, header.index, received=True)
        self._happened(ShardStored(order.step, header.index, header.src, ok))
