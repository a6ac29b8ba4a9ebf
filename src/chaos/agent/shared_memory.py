"""Anonymous memory that an agent and its worker share, and the ring of results that lies in it.

The memory has no name on the host: it lives as long as somebody has it mapped or holds its descriptor, so
a killed group leaves nothing behind, and a worker that dies takes nothing away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
from pathlib import Path

import psutil

from chaos.core.errors import ChaosError

PAGE = 4096
"""Alignment of result slots, in bytes."""

RING_BYTES = 2 * 2**30
"""What a ring of results takes at most if it has more than `MIN_SLOTS`."""

MIN_SLOTS = 4
"""The result in progress, the last one, one that a neighbour still fetches, and one for the step ahead."""

MAX_SLOTS = 64

RESIDENT_SLOTS = 3
"""Slots that keep their pages when they are freed: what a run in its usual state uses over and over."""

DISK_BYTES = 8 * 2**30
"""What results on disk take at most, by default. A guess: an hour of a model of 2 MB and a step per second, or eighty
steps of one of 100 MB; a newer snapshot is cheaper than more of them."""
DISK_SHARE = 4
"""They take no more than one part in so many of what is free."""
WRITE_BYTES = 4 * 2**20
"""At a time: what reads the same memory need not wait for more."""
GIVE_BACK_BYTES = 8 * 2**20
"""At a time: a millisecond where they lie on disk, in its cache."""
DISK_SLOTS = 2048
"""Nor more results than this: half as many as anybody may be behind."""


class SharedMemory:
    """A mapping of anonymous memory and its descriptor, both of which it owns until `close`."""

    def __init__(self, fd: int, mapped: mmap.mmap, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        self.view = memoryview(mapped)[:nbytes]
        """`nbytes` bytes; read-only if attached so."""
        self._map = mapped

    @classmethod
    def create(cls, name: str, nbytes: int, prefault: bool = False) -> SharedMemory:
        """New zeroed memory that nobody can make smaller or larger. `name` is what tools such as lsof show.

        With `prefault` its pages exist on return, so that the first copy into it runs at full speed.

        Raises:
            ChaosError: this host has not so much memory available, or a limit of the process forbids it.
        """
        size = max(nbytes, PAGE)
        fd = -1
        try:
            available = _available()
            if nbytes > available:
                raise ChaosError(
                    f"{name} needs {_mib(nbytes)} of memory and {_mib(available)} are available: free some on this host"
                )
            fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            if prefault:
                os.posix_fallocate(fd, 0, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            mapped = mmap.mmap(fd, size)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise ChaosError(f"cannot allocate {_mib(nbytes)} for {name}: {_limit(error)}") from error
        return cls(fd, mapped, nbytes)

    @classmethod
    def in_file(cls, path: Path, nbytes: int) -> SharedMemory:
        """New memory that lies in a file, which must not exist: it outlives this process.

        Raises:
            ChaosError: there is no room, or the file can't be made.
        """
        size, fd = max(nbytes, PAGE), -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(fd, 0, size)  # a full disk is an error now, and not a signal in mid-transfer
            mapped = mmap.mmap(fd, size)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                path.unlink(missing_ok=True)
            raise ChaosError(f"cannot make {path} of {_mib(nbytes)}: {_limit(error)}") from error
        return cls(fd, mapped, nbytes)

    @classmethod
    def on_disk(cls, directory: Path, nbytes: int) -> SharedMemory:
        """A file of `nbytes` zeros without a name and without blocks: `reserve` before you write. Ends with its users.

        Raises:
            ChaosError: the file can't be made.
        """
        fd = -1
        try:
            fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.ftruncate(fd, nbytes)
            mapped = mmap.mmap(fd, nbytes)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise ChaosError(f"cannot make a file of {_mib(nbytes)} in {directory}: {_limit(error)}") from error
        return cls(fd, mapped, nbytes)

    def reserve(self, offset: int, nbytes: int) -> None:
        """Have blocks for [offset, offset + nbytes): a full disk is an error now, and not a signal on the first write.

        Raises:
            ChaosError: the disk is full.
        """
        try:
            os.posix_fallocate(self.fd, offset, nbytes)
        except OSError as error:
            raise ChaosError(f"no room for {_mib(nbytes)} on disk: {_limit(error)}") from error

    @classmethod
    def attach(cls, fd: int, nbytes: int, writable: bool) -> SharedMemory:
        """Maps memory that another process made. Owns `fd` if it returns, leaves it to the caller if it raises.

        Raises:
            ChaosError: the memory is smaller than `nbytes`, or can't be mapped.
        """
        size = max(nbytes, 1)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            there = os.fstat(fd).st_size
            if there < size:
                raise ChaosError(f"shared memory of {there} bytes came where {size} are needed: restart this peer")
            mapped = mmap.mmap(fd, size, prot=protection)
        except OSError as error:
            raise ChaosError(f"cannot map {_mib(nbytes)} of shared memory: {_limit(error)}") from error
        return cls(fd, mapped, nbytes)

    def release_pages(self, offset: int, nbytes: int) -> None:
        """Gives the whole pages within [offset, offset + nbytes) back to the host; they read as zeros from then on.

        For everybody who has them mapped, so nobody may still need what was there.
        """
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise ValueError(f"[{offset}, {offset + nbytes}) is not within {self.nbytes} bytes")
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._map.madvise(mmap.MADV_REMOVE, first, last - first)

    def close(self) -> None:
        """Closes the descriptor and lets go of the mapping. A second call does nothing.

        Arrays made from `view` stay valid: the mapping itself ends with the last of them.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()


class ResultRing:
    """Slots of equal size for the results of steps, in memory that the worker maps read-only.

    Slots from `slots` on lie on disk, for results that wait for a learner, or for one's own state to come.
    """

    def __init__(self, nbytes: int, slots: int, disk: SharedMemory | None = None) -> None:
        """`slots` results of `nbytes` bytes each, and as many more as fit on `disk`, which it owns from then on.

        ChaosError if there is no memory for them.
        """
        self.nbytes = nbytes
        self.slots = slots
        self.stride = _stride(nbytes)
        """Bytes from one slot's start to the next one's."""
        self.memory = SharedMemory.create("chaos-results", self.stride * slots)
        self.disk = disk
        self.disk_slots = disk.nbytes // self.stride if disk is not None else 0
        self._used = [False] * slots
        self._on_disk: set[int] = set()
        self._stale: dict[int, int] = {}
        """Free slots whose pages the host has not got back yet, and how many bytes of each it has."""

    def slot_view(self, slot: int) -> memoryview:
        """The `nbytes` bytes of a slot."""
        if not 0 <= slot < self.slots + self.disk_slots:
            raise IndexError(f"slot {slot} of {self.slots + self.disk_slots}")
        memory, start = self._place(slot)
        return memory.view[start : start + self.nbytes]

    def _place(self, slot: int) -> tuple[SharedMemory, int]:
        if slot < self.slots:
            return self.memory, slot * self.stride
        assert self.disk is not None
        return self.disk, (slot - self.slots) * self.stride

    def allocate(self) -> int | None:
        """The lowest free slot in memory, which is then in use (its bytes are undefined); None if all are."""
        slot = next((i for i, used in enumerate(self._used) if not used), None)
        if slot is not None:
            self._used[slot] = True
            self._stale.pop(slot, None)
        return slot

    def allocate_on_disk(self) -> int | None:
        """The same on disk.

        Raises:
            ChaosError: the disk has no room for it.
        """
        numbers = range(self.slots, self.slots + self.disk_slots)
        slot = next((number for number in numbers if number not in self._on_disk), None)
        if slot is not None:
            memory, start = self._place(slot)
            memory.reserve(start, self.stride)
            self._on_disk.add(slot)
            self._stale.pop(slot, None)
        return slot

    def is_on_disk(self, slot: int) -> bool:
        return slot >= self.slots

    def write(self, slot: int, content: memoryview) -> None:
        """Fill a slot on disk, without holding other threads up. Raises OSError if the disk takes it not."""
        memory, at = self._place(slot)
        while content:
            count = os.pwrite(memory.fd, content[:WRITE_BYTES], at)
            content, at = content[count:], at + count

    def free(self, slot: int) -> None:
        """The slot's result is needed no more, neither here nor by the worker. `give_back` sees to its pages."""
        if not (slot in self._on_disk or (slot < self.slots and self._used[slot])):
            raise ValueError(f"slot {slot} is not in use")
        if slot < self.slots:
            self._used[slot] = False
        self._on_disk.discard(slot)
        if slot >= RESIDENT_SLOTS:
            self._stale[slot] = 0

    @property
    def has_stale_pages(self) -> bool:
        """Whether `give_back` has something to do."""
        return bool(self._stale)

    def give_back(self) -> None:
        """Give the host some pages of free slots back: `GIVE_BACK_BYTES` at most."""
        if not self._stale:
            return
        slot, done = next(iter(self._stale.items()))
        memory, start = self._place(slot)
        count = min(GIVE_BACK_BYTES, self.stride - done)
        memory.release_pages(start + done, count)
        self._stale[slot] += count
        if self._stale[slot] == self.stride:
            del self._stale[slot]

    @property
    def in_use(self) -> int:
        """How many slots are, in memory."""
        return sum(self._used)

    @property
    def bytes_on_disk(self) -> int:
        """What the results on disk take of it now."""
        return len(self._on_disk) * self.stride


def ring_slots(nbytes: int) -> int:
    """How many results of `nbytes` to keep room for: 2 GiB or a quarter of the memory available, 4 to 64."""
    room = min(RING_BYTES, _available() // 4)
    return max(MIN_SLOTS, min(MAX_SLOTS, room // _stride(nbytes)))


def results_on_disk(directory: Path, nbytes: int, most_bytes: int) -> SharedMemory | None:
    """Room for results of `nbytes` each in a file: `most_bytes`, or a quarter of what is free. None: for not even one.

    Raises:
        ChaosError: the file can't be made.
    """
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise ChaosError(f"no results can be kept in {directory}: {error.strerror}") from error
    slots = min(DISK_SLOTS, min(most_bytes, free // DISK_SHARE) // _stride(nbytes))
    return SharedMemory.on_disk(directory, slots * _stride(nbytes)) if slots > 0 else None


def _available() -> int:
    """Bytes that this host can hand out without swapping."""
    return int(psutil.virtual_memory().available)


def _stride(nbytes: int) -> int:
    return max(1, -(-nbytes // PAGE)) * PAGE


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _limit(error: OSError) -> str:
    """Which limit was hit, and what to do about it."""
    match error.errno:
        case errno.EFBIG:
            return "the limit on file sizes (ulimit -f) is lower, raise it"
        case errno.EMFILE | errno.ENFILE:
            return "too many files are open, raise the limit (ulimit -n)"
        case errno.ENOMEM | errno.ENOSPC:
            return "memory or the limit on address space (ulimit -v) is used up, free or raise it"
    return f"{error.strerror}"
