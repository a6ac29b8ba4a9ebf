"""A peer's last words on this host: kept where others can read them, and final once its process is gone.

Each peer has one file, on which it holds a lock from before the file has its name until its process ends,
however it ends. Whoever then gets the lock knows that the peer is gone and that its words are final. The
kernel lets go of the lock only when all of the process's threads have stopped, so no write can follow. (A
process forked without exec would keep the lock; agents start programs by exec only, and the descriptor is
closed there.)

The words outlive the process, not the host: they are not flushed to disk, as a host that went down can't be
told from one that is cut off, and its peer has to be outvoted. They are written with a system call rather
than through a mapping, so that a full disk is an error and not the end of the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

import xxhash

from chaos.core.errors import ChaosError
from chaos.core.messages import Sealed

MAX_WORDS = 2 * 2**20
"""What `Sealed` may hold."""

_HEADER = struct.Struct("<8sQI64sQ")
"""Magic, sequence number, length of the words, signature, checksum of the three and the words."""

_MAGIC = b"chaoswd1"
_SLOT = MAX_WORDS + 4096
"""Distance of the two slots. The file is sparse: it takes what was written."""

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RETRIES = 25
_RETRY_S = 0.01
"""Somebody who looks whether a lock is free holds it for some microseconds; its owner tries this often."""


def runtime_directory() -> Path:
    """Where the peers of one user on this host leave locks and last words for one another; made if need be.

    $CHAOS_RUNTIME_DIR, else chaos in $XDG_RUNTIME_DIR if that is a directory of this user, else
    /tmp/chaos-<uid>. Peers with different ones don't see each other.

    Raises:
        ChaosError: it can't be made, is a symbolic link, or others may write to it.
    """
    given = os.environ.get("CHAOS_RUNTIME_DIR")
    if given:
        directory = Path(given)
    elif _is_own_directory(session := os.environ.get("XDG_RUNTIME_DIR", "")):
        directory = Path(session) / "chaos"
    else:
        directory = Path(f"/tmp/chaos-{os.getuid()}")
    remedy = "set CHAOS_RUNTIME_DIR to a directory of your own"
    try:
        directory.mkdir(mode=0o700, parents=bool(given), exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise ChaosError(f"cannot make {directory}: {error.strerror}; {remedy}") from error
    if not S_ISDIR(status.st_mode):
        raise ChaosError(f"{directory} is a symbolic link, which others may have put there; remove it or {remedy}")
    if status.st_uid != os.getuid():
        raise ChaosError(f"{directory} belongs to another user; {remedy}")
    if status.st_mode & 0o022:
        raise ChaosError(f"{directory} can be written by other users; run `chmod 700 {directory}` or {remedy}")
    return directory


def _is_own_directory(path: str) -> bool:
    try:
        return path != "" and Path(path).is_dir() and Path(path).stat().st_uid == os.getuid()
    except OSError:
        return False


class NameTaken(ChaosError):
    """Another process on this host is this peer already."""


class PeerLock:
    """Keeps a second process from being the same peer on this host. Ends with the process or `release`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def acquire(cls, directory: Path, peer_id: str, name: str) -> PeerLock:
        """Raises NameTaken if another process is this peer. Tries for a quarter of a second."""
        path = directory / f"{peer_id}.lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ChaosError(f"cannot open {path}: {error.strerror}") from error
        for attempt in range(_RETRIES):
            if _try_lock(fd, fcntl.LOCK_EX):
                return cls(fd)
            if attempt < _RETRIES - 1:
                time.sleep(_RETRY_S)
        os.close(fd)
        raise NameTaken(f"a peer named {name} of this party already runs on this host; choose another with --name")

    @staticmethod
    def is_free(directory: Path, peer_id: str) -> bool:
        """Whether no process on this host is this peer at the moment."""
        with _opened(directory / f"{peer_id}.lock") as fd:
            return fd is None or _try_lock(fd, fcntl.LOCK_SH)

    def release(self) -> None:
        """Twice is fine. The empty file stays: removing it could leave two holders."""
        if self._fd >= 0:
            _unlock_and_close(self._fd)
            self._fd = -1


class OwnWords:
    """The words of this process. Locked from the start until `close` or the end of the process."""

    def __init__(self, directory: Path, run: str, peer: str, incarnation: int) -> None:
        """ChaosError if the file can't be made, or exists: an incarnation speaks once."""
        self.path = _path(directory, run, peer, incarnation)
        self._sequence = 0
        fresh = directory / f".{self.path.name}.{os.getpid()}.new"
        fd = -1
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.link(fresh, self.path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            what = "another process has spoken as this peer" if error.errno == errno.EEXIST else error.strerror
            raise ChaosError(f"cannot make {self.path}: {what}; restart this peer") from error
        finally:
            fresh.unlink(missing_ok=True)
        self._fd = fd

    def write(self, words: bytes, signature: bytes) -> None:
        """Replaces the words. If the process dies in here, the former ones are found whole.

        On return they survive the process. ChaosError if the disk is full (the former ones stay) or the words
        are longer than `MAX_WORDS`.
        """
        if len(words) > MAX_WORDS:
            raise ChaosError(f"last words of {len(words)} bytes exceed {MAX_WORDS}: the run has too many peers")
        if len(signature) != 64:
            raise ValueError(f"a signature has 64 bytes, not {len(signature)}")
        sequence = self._sequence + 1
        header = _header(sequence, words, signature)
        try:
            written = os.pwritev(self._fd, [header, words], sequence % 2 * _SLOT)
        except OSError as error:
            raise ChaosError(f"cannot write {self.path}: {error.strerror}; free some space there") from error
        if written < len(header) + len(words):
            raise ChaosError(f"cannot write {self.path}: no space left; free some there")
        self._sequence = sequence

    def close(self, remove: bool) -> None:
        """Lets go of the lock: from here on this peer counts as gone. With `remove` nobody finds its words.

        Twice is fine.
        """
        if self._fd < 0:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        _unlock_and_close(self._fd)
        self._fd = -1


@dataclass(frozen=True)
class NoWords:
    """The peer is not alive in this file, and nothing can be learnt from it."""

    reason: str


def find(directory: Path, run: str, peer: str, incarnation: int) -> Path | None:
    """The file with the words of this incarnation, if it has run on this host as this user."""
    path = _path(directory, run, peer, incarnation)
    return path if path.is_file() else None


def try_seal(path: Path) -> Sealed | NoWords | None:
    """What a peer said last, if its process is gone. The signature is not checked here.

    Returns:
        None: its process lives; ask again. `NoWords`: the file is gone, unreadable, or was never written to whole.
        `Sealed`: these words are final.
    """
    try:
        with _opened(path) as fd:
            if fd is None:
                return NoWords(f"{path.name} is not there, or belongs to another user")
            if not _try_lock(fd, fcntl.LOCK_SH):
                return None
            whole = [slot for slot in (_read_slot(fd, 0), _read_slot(fd, _SLOT)) if slot is not None]
    except OSError as error:
        return NoWords(f"{path.name} cannot be read: {error.strerror}")
    if not whole:
        return NoWords(f"{path.name} holds no whole words")
    return max(whole, key=lambda slot: slot[0])[1]


def unlocked(directory: Path) -> list[Path]:
    """Files of all peers on this host that are gone, in order of their names."""
    found = []
    for path in sorted(directory.glob("*.words")):
        with _opened(path) as fd:
            if fd is not None and _try_lock(fd, fcntl.LOCK_SH):
                found.append(path)
    return found


def prune(directory: Path, older_than_s: float) -> list[Path]:
    """Removes words of peers that are gone and wrote last so many seconds ago; returns which."""
    removed = []
    limit = time.time() - older_than_s
    for path in sorted([*directory.glob("*.words"), *directory.glob(".*.words.*.new")]):
        with _opened(path) as fd:
            if fd is not None and os.fstat(fd).st_mtime <= limit and _try_lock(fd, fcntl.LOCK_EX):
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _path(directory: Path, run: str, peer: str, incarnation: int) -> Path:
    if not _RUN.fullmatch(run) or not _RUN.fullmatch(peer):
        raise ChaosError(f"{run!r} or {peer!r} is no id of a run or peer")
    return directory / f"{run}-{peer}-{incarnation}.words"


def _header(sequence: int, words: bytes, signature: bytes) -> bytes:
    checksum = xxhash.xxh3_64(struct.pack("<QI", sequence, len(words)))
    checksum.update(signature)
    checksum.update(words)
    return _HEADER.pack(_MAGIC, sequence, len(words), signature, checksum.intdigest())


def _read_slot(fd: int, offset: int) -> tuple[int, Sealed] | None:
    """Sequence number and words, or None if they are not whole."""
    header = os.pread(fd, _HEADER.size, offset)
    if len(header) < _HEADER.size:
        return None
    magic, sequence, length, signature, _ = _HEADER.unpack(header)
    if magic != _MAGIC or length > MAX_WORDS:
        return None
    words = os.pread(fd, length, offset + _HEADER.size)
    if _header(sequence, words, signature) != header:
        return None
    return sequence, Sealed(words, signature)


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor of the file while in the block (and any lock on it); None if it is not there or not for us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _unlock_and_close(fd: int) -> None:
    """Closing alone would leave the lock to a child that is between fork and exec."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
