"""Serving and receiving shards: nothing begun is sent twice, nothing unverified is used, nothing here is fetched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chaos.agent.held import prune
from chaos.agent.shards import SHARD, Snapshots, hash_shards
from chaos.agent.shared_memory import SharedMemory
from chaos.agent.transport import BulkHeader, Verdict
from chaos.core.actions import HashSnapshot, ReceiveSnapshot, ServeShards
from chaos.core.errors import RemoteProtocolError
from chaos.core.events import ShardsHeld, ShardStored

SIZE, NBYTES = 1000, 9500
ME, OTHER, THIRD = "a" * 16, "b" * 16, "c" * 16


class Outlet:
    """A transport's queue: what was sent leaves one frame at a time."""

    def __init__(self) -> None:
        self.queue: list[tuple[BulkHeader, bytes]] = []
        self.left: list[tuple[BulkHeader, bytes]] = []

    def send_bulk(self, dst: str, header: BulkHeader, payload: memoryview | bytes, urgent: bool = False) -> bool:
        assert not urgent
        whole = BulkHeader(header.kind, header.view, header.step, header.index, length=len(payload), src=ME, dst=dst)
        self.queue.append((whole, bytes(payload)))
        return True

    def drop_bulk(self, predicate: Callable[[BulkHeader], bool]) -> int:
        self.queue = [entry for entry in self.queue if not predicate(entry[0])]
        return 0

    def resume_bulk(self) -> None:
        pass

    def leave(self, count: int) -> list[int]:
        out, self.queue = self.queue[:count], self.queue[count:]
        self.left += out
        return [header.index for header, _ in out]

    def waiting(self, dst: str) -> list[int]:
        return [header.index for header, _ in self.queue if header.dst == dst]


class Side:
    def __init__(self, me: str, directory: Path | None = None) -> None:
        self.outlet = Outlet()
        self.events: list[Any] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []
        note = lambda kind, fields: self.notes.append((kind, fields))  # noqa: E731
        self.snapshots = Snapshots(me, self.outlet, self.events.append, note, directory)

    def expect(self, order: ReceiveSnapshot) -> tuple[int, ...]:
        asyncio.run(self.snapshots.expect(order))
        return next(e.shards for e in reversed(self.events) if isinstance(e, ShardsHeld))

    def get(self, order: ReceiveSnapshot, state: bytes, shard: int, src: str = OTHER) -> bool:
        """A shard arrives; whether it was right. False too if it is dropped."""
        body = state[shard * SIZE : (shard + 1) * SIZE]
        header = BulkHeader(SHARD, 0, order.step, shard, length=len(body), src=src, dst=ME)
        place = self.snapshots.sink(header)
        if isinstance(place, Verdict):
            return False
        place[:] = body
        self.snapshots.arrived(header, place)
        return self.events[-1].ok


def state(seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, NBYTES, dtype=np.uint8).tobytes()


def offer(content: bytes, step: int = 7) -> ReceiveSnapshot:
    return ReceiveSnapshot(step, len(content), SIZE, hash_shards(memoryview(content), len(content), SIZE))


def donor(content: bytes) -> Side:
    side = Side(ME)
    side.snapshots.own = SharedMemory.create("test", NBYTES)
    side.snapshots.own.view[:] = content
    side.snapshots.own_nbytes = NBYTES
    asyncio.run(side.snapshots.hash_own(HashSnapshot(7, SIZE)))
    return side


def test_a_new_request_replaces_the_former_but_for_what_was_begun() -> None:
    content = state()
    side = donor(content)
    side.snapshots.serve(ServeShards(OTHER, 7, (0, 1, 2, 3)))
    side.snapshots.serve(ServeShards(THIRD, 7, (0, 5)))
    assert side.outlet.leave(2) == [0, 1]
    side.snapshots.serve(ServeShards(OTHER, 7, (0, 1, 3, 4)))
    assert side.outlet.waiting(OTHER) == [3, 4] and side.outlet.waiting(THIRD) == [0, 5]
    side.snapshots.serve(ServeShards(OTHER, 7, (1, 4), afresh=True))
    assert side.outlet.waiting(OTHER) == [1, 4]
    side.snapshots.serve(ServeShards(OTHER, 8, (0, 9)))
    assert side.outlet.waiting(OTHER) == [0, 9], "another snapshot"
    assert all(body == content[h.index * SIZE : (h.index + 1) * SIZE] for h, body in side.outlet.queue)


def test_shards_that_pass_through_this_peer_are_not_called_back() -> None:
    side = donor(state())
    foreign = BulkHeader(SHARD, 0, 7, 3, length=SIZE, src=THIRD, dst=OTHER)
    side.outlet.queue.append((foreign, b""))
    side.snapshots.serve(ServeShards(OTHER, 7, ()))
    assert side.outlet.queue == [(foreign, b"")]


def test_a_learner_passes_shards_on_as_they_come() -> None:
    content = state()
    side, order = Side(ME), offer(state())
    assert side.expect(order) == ()
    assert side.get(order, content, 2)
    side.snapshots.serve(ServeShards(THIRD, 7, (1, 2, 3), received=True))
    assert side.outlet.waiting(THIRD) == [2]
    assert side.get(order, content, 3) and side.get(order, content, 4)
    assert side.outlet.waiting(THIRD) == [2, 3]
    side.outlet.leave(1)
    side.snapshots.serve(ServeShards(THIRD, 7, (1, 2), received=True))
    assert side.outlet.waiting(THIRD) == []
    assert side.get(order, content, 1)
    assert side.outlet.waiting(THIRD) == [1]
    assert all(body == content[h.index * SIZE : (h.index + 1) * SIZE] for h, body in side.outlet.queue)


def test_a_wrong_shard_is_told_and_neither_kept_nor_passed_on() -> None:
    content, order = state(), offer(state())
    side = Side(ME)
    side.expect(order)
    side.snapshots.serve(ServeShards(THIRD, 7, (0,), received=True))
    assert not side.get(order, state(2), 0)
    assert side.events[-1] == ShardStored(7, 0, OTHER, False) and side.outlet.queue == []
    assert side.get(order, content, 0) and side.outlet.waiting(THIRD) == [0]
    assert side.snapshots.sink(BulkHeader(SHARD, 0, 7, 0, length=SIZE, src=OTHER)) is Verdict.DISCARD
    with pytest.raises(RemoteProtocolError):
        side.snapshots.sink(BulkHeader(SHARD, 0, 7, 10, length=SIZE, src=OTHER))


def test_another_process_goes_on_with_what_was_verified(tmp_path: Path) -> None:
    content, order = state(), offer(state())
    first = Side(ME, tmp_path)
    first.expect(order)
    for shard in (0, 4, 9):
        assert first.get(order, content, shard)
    assert not first.get(order, state(3), 6), "its bytes are there, and wrong"
    del first
    second = Side(ME, tmp_path)
    assert second.expect(order) == (0, 4, 9)
    for shard in (1, 2, 3, 5, 6, 7, 8):
        assert second.get(order, content, shard)
    assert bytes(second.snapshots.received.view) == content
    assert not second.get(order, content, 4), "dropped: it is here"
    second.snapshots.forget_received()
    assert list(tmp_path.iterdir()) == []


def test_of_another_step_what_did_not_change_is_taken(tmp_path: Path) -> None:
    """A frozen part of the model, say."""
    former = state()
    changed = bytearray(former)
    changed[3 * SIZE : 5 * SIZE] = b"\1" * (2 * SIZE)
    side = Side(ME, tmp_path)
    side.expect(offer(former))
    for shard in range(10):
        side.get(offer(former), former, shard)
    assert side.expect(offer(bytes(changed), 9)) == (0, 1, 2, 5, 6, 7, 8, 9)
    side.expect(offer(bytes(changed) + bytes(4000), 11))
    assert side.events[-1].shards == tuple(i for i in range(9) if i not in (3, 4)), "longer, the last shard is another"


def test_the_own_snapshot_is_looked_at_too() -> None:
    content = bytearray(state())
    side = donor(bytes(content))
    content[0] ^= 1
    assert side.expect(offer(bytes(content))) == tuple(range(1, 10))


def test_without_room_for_the_file_memory_does(tmp_path: Path) -> None:
    content, order = state(), offer(state())
    side = Side(ME, tmp_path / "absent")
    side.expect(order)
    assert side.notes[0][0] == "snapshot_in_memory" and "cannot make" in side.notes[0][1]["reason"]
    assert side.get(order, content, 0)


def test_files_of_a_week_ago_are_removed(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("x.snapshot", "y.snapshot", "z.words"))
    for path in (old, new, other):
        path.write_bytes(b"1")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["y.snapshot", "z.words"]
