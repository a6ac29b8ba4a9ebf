"""Last words: locks that end with their process, and words that are whole whenever it was killed."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.agent import words
from chaos.agent.words import MAX_WORDS, NoWords, OwnWords, PeerLock, find, prune, runtime_directory, try_seal, unlocked
from chaos.core.errors import ChaosError
from chaos.core.messages import Sealed

PEER = "0123456789abcdef"
SIGNATURE = bytes(range(64))
SLOT = MAX_WORDS + 4096
"""Where the second slot lies in the file."""


@contextmanager
def child(work: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """A forked process that does `work(fd)` and then waits to be killed: its id, and what it writes to `fd`."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            work(writer)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        yield pid, reader
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def body(number: int, size: int) -> tuple[bytes, bytes]:
    """Words and signature that belong together, and differ in every byte from those of another number."""
    start = number.to_bytes(8, "little")
    return start + hashlib.shake_128(start).digest(size), hashlib.sha512(start).digest()


# --- the directory ------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CHAOS_RUNTIME_DIR", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return monkeypatch


def test_a_given_directory_comes_first_and_is_made_private(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("CHAOS_RUNTIME_DIR", str(tmp_path / "a" / "b"))
    environment.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert runtime_directory() == tmp_path / "a" / "b"


def test_then_the_session_then_tmp(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory() == tmp_path / "chaos"
    environment.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert runtime_directory() == Path(f"/tmp/chaos-{os.getuid()}")


def test_a_link_is_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    environment.setenv("CHAOS_RUNTIME_DIR", str(tmp_path / "link"))
    with pytest.raises(ChaosError, match="link is a symbolic link"):
        runtime_directory()


def test_somebody_elses_directory_is_refused(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("CHAOS_RUNTIME_DIR", str(tmp_path))
    environment.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ChaosError, match="belongs to another user; set CHAOS_RUNTIME_DIR"):
        runtime_directory()


def test_a_directory_that_others_may_write_to_is_refused_and_left_alone(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o1777)
    environment.setenv("CHAOS_RUNTIME_DIR", str(tmp_path / "open"))
    with pytest.raises(ChaosError, match="can be written by other users"):
        runtime_directory()
    assert (tmp_path / "open").stat().st_mode & 0o7777 == 0o1777


def test_a_file_in_its_place_is_named(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment.setenv("CHAOS_RUNTIME_DIR", str(tmp_path / "file"))
    with pytest.raises(ChaosError, match=r"cannot make .*file: File exists"):
        runtime_directory()


# --- one process per peer -----------------------------------------------------------------------------


def test_a_peer_runs_once_until_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_RETRY_S", 0.0)
    assert PeerLock.is_free(tmp_path, PEER)
    lock = PeerLock.acquire(tmp_path, PEER, "alice")
    assert not PeerLock.is_free(tmp_path, PEER)
    with pytest.raises(
        ChaosError, match=r"a peer named alice of this party already runs .* choose another with --name"
    ):
        PeerLock.acquire(tmp_path, PEER, "alice")
    PeerLock.acquire(tmp_path, "f" * 16, "bob").release()
    lock.release()
    lock.release()
    assert PeerLock.is_free(tmp_path, PEER)
    PeerLock.acquire(tmp_path, PEER, "alice").release()


def test_a_killed_peer_runs_no_more(tmp_path: Path) -> None:
    def work(fd: int) -> None:
        PeerLock.acquire(tmp_path, PEER, "alice")
        os.write(fd, b".")

    with child(work) as (pid, reader):
        os.read(reader, 1)
        # The lock object is dropped in the child, but only `release` or the end of the process frees it.
        assert not PeerLock.is_free(tmp_path, PEER)
        kill(pid)
        assert PeerLock.is_free(tmp_path, PEER)


def test_looking_whether_it_is_free_never_makes_an_acquire_fail(tmp_path: Path) -> None:
    def look(fd: int) -> None:
        PeerLock.acquire(tmp_path, PEER, "alice").release()
        os.write(fd, b".")
        while True:
            PeerLock.is_free(tmp_path, PEER)

    with child(look) as (_, reader):
        os.read(reader, 1)
        for _ in range(200):
            PeerLock.acquire(tmp_path, PEER, "alice").release()


def test_programs_started_by_the_owner_do_not_inherit_its_locks(tmp_path: Path) -> None:
    lock = PeerLock.acquire(tmp_path, PEER, "alice")
    own = OwnWords(tmp_path, "run", PEER, 1)
    script = "import os; print(*[os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')])"
    files = subprocess.run([sys.executable, "-c", script], close_fds=False, capture_output=True, check=True).stdout
    assert str(tmp_path) not in files.decode()
    lock.release()
    own.close(remove=True)


def test_release_and_close_unlock_even_if_a_forked_process_has_the_descriptors(tmp_path: Path) -> None:
    lock = PeerLock.acquire(tmp_path, PEER, "alice")
    own = OwnWords(tmp_path, "run", PEER, 1)
    with child(lambda _: None):
        lock.release()
        own.close(remove=False)
        assert PeerLock.is_free(tmp_path, PEER)
        assert unlocked(tmp_path) == [own.path]


# --- words --------------------------------------------------------------------------------------------


def test_words_are_sealed_only_once_their_peer_is_gone(tmp_path: Path) -> None:
    def work(fd: int) -> None:
        own = OwnWords(tmp_path, "run", PEER, 3)
        for number in range(5):
            own.write(*body(number, 1000))
        os.write(fd, b".")
        signal.pause()

    assert find(tmp_path, "run", PEER, 3) is None
    with child(work) as (pid, reader):
        os.read(reader, 1)
        path = find(tmp_path, "run", PEER, 3)
        assert path is not None
        assert try_seal(path) is None
        assert unlocked(tmp_path) == []
        os.kill(pid, signal.SIGSTOP)
        assert try_seal(path) is None
        kill(pid)
        assert unlocked(tmp_path) == [path]
        assert try_seal(path) == Sealed(*body(4, 1000))
        assert try_seal(path) == Sealed(*body(4, 1000))
    assert find(tmp_path, "run", PEER, 4) is None
    assert find(tmp_path, "other", PEER, 3) is None


def test_words_are_whole_whenever_their_peer_is_killed(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    bodies = [body(number, MAX_WORDS - 8 - number % 2) for number in range(4)]
    for turn in range(100):

        def work(fd: int, turn: int = turn) -> None:
            own = OwnWords(tmp_path, "run", PEER, turn)
            number = 0
            while True:
                own.write(*bodies[number % 4])
                os.write(fd, bytes([number % 4]))
                number += 1

        with child(work) as (pid, reader):
            for _ in range(chance.randint(1, 6)):
                last = os.read(reader, 1)[0]
            for _ in range(chance.randint(0, 4000)):
                pass
            kill(pid)
            path = find(tmp_path, "run", PEER, turn)
            assert path is not None
            found = try_seal(path)
            assert isinstance(found, Sealed), f"seed {seed}, turn {turn}: {found}"
            said = bodies.index((found.words, found.signature))
            # What was reported as written is there, or what came after it.
            reported = os.read(reader, 1000)
            last = reported[-1] if reported else last
            assert said in (last, (last + 1) % 4), f"seed {seed}, turn {turn}"
            path.unlink()


def test_a_peer_killed_before_it_spoke_leaves_no_words(tmp_path: Path) -> None:
    own = OwnWords(tmp_path, "run", PEER, 1)
    own.close(remove=False)
    assert try_seal(own.path) == NoWords(f"{own.path.name} holds no whole words")
    assert isinstance(try_seal(tmp_path / "absent.words"), NoWords)


def test_a_new_file_is_locked_by_the_time_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link
    looks = []

    def link_and_look(old: Path, new: Path) -> None:
        link(old, new)
        looks.append((try_seal(new), unlocked(tmp_path)))

    monkeypatch.setattr(os, "link", link_and_look)
    OwnWords(tmp_path, "run", PEER, 1).close(remove=True)
    assert looks == [(None, [])]


def test_an_incarnation_speaks_once(tmp_path: Path) -> None:
    OwnWords(tmp_path, "run", PEER, 1).close(remove=False)
    with pytest.raises(ChaosError, match="another process has spoken as this peer"):
        OwnWords(tmp_path, "run", PEER, 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"run-{PEER}-1.words"]


def test_ids_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    for run in ("../x", "", "a/b", "a\n"):
        with pytest.raises(ChaosError, match="no id of a run"):
            find(tmp_path, run, PEER, 1)


def test_removed_words_are_found_by_nobody(tmp_path: Path) -> None:
    own = OwnWords(tmp_path, "run", PEER, 1)
    own.write(b"words", SIGNATURE)
    own.close(remove=True)
    own.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_too_long_or_not_signed_is_refused_and_the_former_words_stay(tmp_path: Path) -> None:
    own = OwnWords(tmp_path, "run", PEER, 1)
    own.write(b"former", SIGNATURE)
    with pytest.raises(ChaosError, match="exceed"):
        own.write(bytes(MAX_WORDS + 1), SIGNATURE)
    with pytest.raises(ValueError, match="64 bytes"):
        own.write(b"unsigned", b"")
    own.close(remove=False)
    assert try_seal(own.path) == Sealed(b"former", SIGNATURE)


def test_a_full_disk_is_said_and_the_former_words_stay(tmp_path: Path) -> None:
    own = OwnWords(tmp_path, "run", PEER, 1)
    own.write(b"first", SIGNATURE)
    own.write(b"second", SIGNATURE)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (SLOT, SLOT + 1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(ChaosError, match=r"cannot write .*\.words"):
                own.write(bytes(5000), SIGNATURE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    os.fsync(own._fd)
    own.close(remove=False)
    assert try_seal(own.path) == Sealed(b"second", SIGNATURE)


def test_the_file_takes_no_more_room_than_was_written(tmp_path: Path) -> None:
    own = OwnWords(tmp_path, "run", PEER, 1)
    for number in range(10):
        own.write(*body(number, 3000))
    assert own.path.stat().st_blocks * 512 <= 4 * 4096
    own.close(remove=True)


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, 95 + 500), flip=st.integers(1, 255), cut=st.booleans())
def test_a_torn_slot_gives_way_to_the_former_one(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, cut: bool
) -> None:
    directory = tmp_path_factory.mktemp("torn")
    own = OwnWords(directory, "run", PEER, 1)
    former, newer = body(2, 492), body(3, 492)
    own.write(*body(1, 492))
    own.write(*former)
    own.write(*newer)
    own.close(remove=False)
    data = bytearray(own.path.read_bytes())
    start = SLOT  # the third write went to the second slot
    header = len(data) - SLOT - 500
    position = min(position, header + 499)
    if cut:
        del data[start + position :]
    else:
        data[start + position] ^= flip
    own.path.write_bytes(data)
    assert try_seal(own.path) == Sealed(*former)


def test_prune_takes_what_is_old_and_gone(tmp_path: Path) -> None:
    alive, old, young = (OwnWords(tmp_path, "run", PEER, number) for number in range(3))
    for own in (old, young):
        own.close(remove=False)
    left = tmp_path / f".run-{PEER}-9.words.77.new"
    left.touch()
    for path in (alive.path, old.path, left):
        os.utime(path, (1, 1))
    assert set(prune(tmp_path, 3600)) == {old.path, left}
    assert {path.name for path in tmp_path.iterdir()} == {alive.path.name, young.path.name}
    assert prune(tmp_path, -1) == [young.path]
    alive.close(remove=True)
