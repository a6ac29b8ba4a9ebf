"""Shared memory against what the kernel says about it: pages that exist, limits, seals, other processes."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.agent import shared_memory
from chaos.agent.shared_memory import PAGE, ResultRing, SharedMemory, results_on_disk, ring_slots
from chaos.core.errors import ChaosError


def resident(memory: SharedMemory) -> int:
    """Bytes for which the memory has pages."""
    return os.fstat(memory.fd).st_blocks * 512


@contextmanager
def limited(which: int, value: int) -> Iterator[None]:
    old = resource.getrlimit(which)
    resource.setrlimit(which, (value, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, old)


@pytest.fixture
def available(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def pretend(nbytes: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes))

    return pretend


def in_child(work: Callable[[], None]) -> int:
    """Exit status of a forked child that does `work`: 0, or 1 if that raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_new_memory_is_zeroed_and_lazy_unless_prefaulted() -> None:
    lazy, ready = SharedMemory.create("lazy", 10 * PAGE + 5), SharedMemory.create("ready", 10 * PAGE + 5, True)
    assert bytes(lazy.view[-5:]) == bytes(5)
    assert len(ready.view) == ready.nbytes == 10 * PAGE + 5
    assert resident(lazy) <= PAGE
    assert resident(ready) >= ready.nbytes
    lazy.close()
    ready.close()


def test_the_descriptor_does_not_pass_to_programs_that_are_started() -> None:
    memory = SharedMemory.create("inherited", PAGE)
    assert not os.get_inheritable(memory.fd)
    memory.close()


def test_nobody_can_shrink_memory_under_another_process() -> None:
    memory = SharedMemory.create("sealed", 4 * PAGE)
    for size in (PAGE, 8 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    memory.close()


def test_another_process_sees_what_is_written_and_its_death_takes_nothing_away() -> None:
    memory = SharedMemory.create("common", 100)

    def work() -> None:
        other = SharedMemory.attach(os.dup(memory.fd), 100, writable=True)
        other.view[:5] = b"hello"

    assert in_child(work) == 0
    assert bytes(memory.view[:5]) == b"hello"
    memory.close()


def test_attached_for_reading_it_cannot_be_written() -> None:
    memory = SharedMemory.create("read", 100)
    other = SharedMemory.attach(os.dup(memory.fd), 100, writable=False)
    memory.view[0] = 7
    assert other.view[0] == 7
    with pytest.raises(TypeError):
        other.view[0] = 8
    memory.close()
    other.close()


def test_memory_smaller_than_announced_is_refused_and_stays_the_callers() -> None:
    memory = SharedMemory.create("small", PAGE)
    with pytest.raises(ChaosError, match="4096 bytes came where 4097"):
        SharedMemory.attach(memory.fd, PAGE + 1, writable=True)
    os.fstat(memory.fd)
    memory.close()


def test_no_bytes_at_all_are_fine() -> None:
    memory = SharedMemory.create("empty", 0)
    other = SharedMemory.attach(os.dup(memory.fd), 0, writable=False)
    assert bytes(memory.view) == bytes(other.view) == b""
    memory.close()
    other.close()


def test_too_little_memory_is_said_before_anything_is_made(available: Callable[[int], None]) -> None:
    available(100 * 2**20)
    with pytest.raises(ChaosError, match=r"results needs 101\.0 MiB .* 100\.0 MiB are available"):
        SharedMemory.create("results", 101 * 2**20)


def test_limits_of_the_process_are_named_and_no_descriptor_is_lost() -> None:
    gc.collect()  # what earlier tests left behind must not be closed in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    with limited(resource.RLIMIT_FSIZE, PAGE), pytest.raises(ChaosError, match=r"0\.0 MiB for big: .*ulimit -f"):
        SharedMemory.create("big", 2 * PAGE)
    with limited(resource.RLIMIT_NOFILE, 3), pytest.raises(ChaosError, match="ulimit -n"):
        SharedMemory.create("big", 2 * PAGE)
    with (
        limited(resource.RLIMIT_AS, psutil.Process().memory_info().vms + 2**22),
        pytest.raises(ChaosError, match="ulimit -v"),
    ):
        SharedMemory.create("big", 64 * 2**20)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_arrays_outlive_close() -> None:
    memory = SharedMemory.create("arrays", 100)
    array = np.frombuffer(memory.view, np.uint8)
    part = memory.view[10:20]
    memory.view[10] = 3
    memory.close()
    memory.close()
    del memory
    gc.collect()
    assert array[10] == part[0] == 3


def test_without_arrays_close_gives_the_memory_back() -> None:
    memory = SharedMemory.create("gone", 100)
    memory.close()
    assert "gone" not in Path("/proc/self/maps").read_text()


@given(first=st.integers(0, 4 * PAGE), length=st.integers(0, 4 * PAGE))
def test_only_whole_pages_within_the_range_are_released(first: int, length: int) -> None:
    memory = SharedMemory.create("pages", 4 * PAGE)
    memory.view[:] = b"\x01" * (4 * PAGE)
    if first + length > 4 * PAGE:
        with pytest.raises(ValueError, match="not within"):
            memory.release_pages(first, length)
    else:
        memory.release_pages(first, length)
        for page in range(4):
            whole = first <= page * PAGE and (page + 1) * PAGE <= first + length
            assert bytes(memory.view[page * PAGE : (page + 1) * PAGE]) == bytes([not whole]) * PAGE
    memory.close()


def test_a_ring_hands_out_the_lowest_free_slot() -> None:
    ring = ResultRing(PAGE + 1, 4)
    assert ring.stride == 2 * PAGE
    assert [ring.allocate() for _ in range(5)] == [0, 1, 2, 3, None]
    ring.free(1)
    ring.free(0)
    assert ring.in_use == 2
    assert ring.allocate() == 0
    with pytest.raises(ValueError, match="not in use"):
        ring.free(1)
    with pytest.raises(IndexError):
        ring.slot_view(4)
    ring.memory.close()


def test_slots_do_not_overlap() -> None:
    ring = ResultRing(PAGE + 1, 4)
    for slot in range(4):
        ring.slot_view(slot)[:] = bytes([slot]) * ring.nbytes
    assert [bytes(ring.slot_view(slot)) for slot in range(4)] == [bytes([s]) * ring.nbytes for s in range(4)]
    ring.memory.close()


def give_back(ring: ResultRing) -> None:
    while ring.has_stale_pages:
        ring.give_back()


def test_a_slot_that_is_used_again_keeps_its_bytes_however_much_of_it_was_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_memory, "GIVE_BACK_BYTES", 4 * PAGE)
    ring = ResultRing(16 * PAGE, 4)
    slots = [ring.allocate() for _ in range(4)]
    assert slots == [0, 1, 2, 3]
    ring.slot_view(3)[:] = b"\x01" * ring.nbytes
    before = resident(ring.memory)
    ring.free(3)
    ring.give_back()
    assert before - resident(ring.memory) == 4 * PAGE, "more at a time holds the agent up"
    assert ring.allocate() == 3
    ring.slot_view(3)[:] = b"\x02" * ring.nbytes
    give_back(ring)
    assert bytes(ring.slot_view(3)) == b"\x02" * ring.nbytes
    ring.memory.close()


def test_slots_beyond_the_third_give_their_pages_back() -> None:
    ring = ResultRing(16 * PAGE, 5)
    slots = [ring.allocate() for _ in range(5)]
    for slot in range(5):
        ring.slot_view(slot)[:] = b"\x01" * ring.nbytes
    full = resident(ring.memory)
    for slot in slots:
        assert slot is not None
        ring.free(slot)
    give_back(ring)
    assert full - resident(ring.memory) == 2 * ring.stride
    assert ring.slot_view(2)[0] == 1
    assert ring.slot_view(3)[0] == 0
    ring.memory.close()


def test_further_slots_lie_in_a_file_without_a_name_that_takes_blocks_only_while_used(tmp_path: Path) -> None:
    disk = results_on_disk(tmp_path, 16 * PAGE, 5 * 16 * PAGE + 1)
    assert disk is not None
    ring = ResultRing(16 * PAGE, 2, disk)
    assert ring.disk_slots == 5
    assert not list(tmp_path.iterdir())
    assert [ring.allocate(), ring.allocate(), ring.allocate()] == [0, 1, None]
    slots = [ring.allocate_on_disk() for _ in range(6)]
    assert slots == [2, 3, 4, 5, 6, None]
    assert ring.bytes_on_disk == 5 * ring.stride
    assert 5 <= resident(disk) / ring.stride < 6, "a block of the file system's own may be among them"
    ring.slot_view(3)[:] = b"\x01" * ring.nbytes
    ring.write(4, memoryview(b"\x02" * ring.nbytes))
    assert [bytes(ring.slot_view(slot)[:1]) for slot in (2, 3, 4, 5)] == [b"\0", b"\x01", b"\x02", b"\0"]
    ring.free(3)
    give_back(ring)
    assert 4 <= resident(disk) / ring.stride < 5 and ring.slot_view(3)[0] == 0
    assert ring.allocate_on_disk() == 3
    with pytest.raises(IndexError):
        ring.slot_view(7)
    ring.memory.close()
    disk.close()


def test_a_full_disk_is_an_error_and_no_signal(tmp_path: Path) -> None:
    disk = SharedMemory.on_disk(tmp_path, 64 * PAGE)
    with limited(resource.RLIMIT_FSIZE, 4 * PAGE), pytest.raises(ChaosError, match="ulimit -f"):
        SharedMemory.on_disk(tmp_path, 64 * PAGE)
    assert results_on_disk(tmp_path, 2**60, 2**40) is None
    with pytest.raises(ChaosError, match="no results can be kept"):
        results_on_disk(tmp_path / "missing", PAGE, 2**20)
    disk.close()


@pytest.mark.parametrize(
    ("nbytes", "memory", "slots"),
    [
        (1, 2**40, 64),
        (0, 2**40, 64),
        (100 * 2**20, 2**40, 20),
        (2**30, 2**40, 4),
        (100 * 2**20, 4 * 2**30, 10),
        (100 * 2**20, 2**20, 4),
    ],
)
def test_how_many_slots(nbytes: int, memory: int, slots: int, available: Callable[[int], None]) -> None:
    available(memory)
    assert ring_slots(nbytes) == slots
