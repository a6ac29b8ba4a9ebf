"""Checkpoints: bit for bit what went in, and always a whole one to go on from, whatever happened in between."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from chaos.agent.checkpoint import Checkpoint, latest, load, write
from chaos.agent.shared_memory import SharedMemory
from chaos.core.errors import ChaosError
from chaos.core.types import DataState, Lease, StateManifest, TensorEntry

RUN = "run-1"
DTYPES = {
    **{"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1},
    **{"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex64": 8},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1},
}


def entries(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> StateManifest:
    """A manifest of tensors (dtype and shape by name), each at a multiple of 64 bytes."""
    found, offset = [], 0
    for name, (dtype, shape) in shapes.items():
        nbytes = DTYPES[dtype] * int(np.prod(shape, dtype=int))
        found.append(TensorEntry(name, dtype, shape, offset, nbytes))
        offset += -(-nbytes // 64) * 64
    return StateManifest(7, offset, tuple(found), b"\x81scalars\xff")


SMALL = entries({"weight": ("float32", (300, 7)), "bias": ("bfloat16", (7,)), "steps": ("int64", ())})


def checkpoint(step: int, manifest: StateManifest = SMALL, created: float | None = None, run: str = RUN) -> Checkpoint:
    return Checkpoint(
        run=run,
        lineage="line",
        view_id=5,
        step=step,
        head=struct.pack(">I", step) * 8,
        data=DataState("shard", 1000, 2, ((0, 10), (20, 30)), (Lease("0" * 16, 10, 20),), ()),
        manifest=manifest,
        created=float(step) if created is None else created,
        members=("alice", "bob"),
    )


def state(step: int, manifest: StateManifest = SMALL) -> memoryview:
    """Random bytes (any bit pattern: NaN with payloads, denormals), and zeros in the gaps."""
    content = np.random.default_rng(step).integers(0, 256, manifest.nbytes, np.uint8)
    end = 0
    for entry in manifest.tensors:
        content[end : entry.offset] = 0
        end = entry.offset + entry.nbytes
    content[end:] = 0
    return memoryview(content)


def broken_is_an_error(warning: str) -> None:
    raise AssertionError(warning)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


@contextmanager
def tiny_disk(directory: Path, nbytes: int) -> Iterator[Path]:
    """A file system with so little room; without the right to mount one, a limit on the size of files."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(directory)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[1]))
    try:
        yield directory
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        if mounted:
            subprocess.run(["umount", str(directory)], check=True)


# --- round trip ---------------------------------------------------------------------------------------


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shapes = [(), (1,), (3, 5, 7), (0,), (4, 0, 2)]
    manifest = entries({f"{dtype}/{shape}": (dtype, shape) for dtype in DTYPES for shape in shapes})
    path = write(tmp_path, checkpoint(7, manifest), state(1, manifest))
    found = latest(tmp_path, broken_is_an_error)
    assert found == (checkpoint(7, manifest), path)
    memory = load(path, found[0].manifest)
    assert memory.view == state(1, manifest)
    memory.close()


def test_a_state_without_tensors_comes_back(tmp_path: Path) -> None:
    manifest = entries({})
    path = write(tmp_path, checkpoint(7, manifest), memoryview(b""))
    assert latest(tmp_path, broken_is_an_error) == (checkpoint(7, manifest), path)
    memory = load(path, manifest)
    assert memory.nbytes == 0
    memory.close()


def test_others_can_read_it(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint(7), state(1))
    assert path.name == "step-000000000007-00000007"
    with safe_open(path / "state.safetensors", "np") as file:
        weight = file.get_tensor("weight")
    assert weight.dtype == np.float32
    assert weight.tobytes() == bytes(state(1)[: 300 * 7 * 4])
    text = json.loads((path / "manifest.json").read_text())
    assert text["checkpoint"]["members"] == ["alice", "bob"]
    assert text["checkpoint"]["data"]["leases"] == [{"peer": "0" * 16, "start": 10, "stop": 20}]
    assert text["checkpoint"]["manifest"]["tensors"][1]["name"] == "bias"


def test_the_memory_may_be_longer_than_the_state_but_not_shorter(tmp_path: Path) -> None:
    write(tmp_path, checkpoint(7), memoryview(bytes(state(1)) + bytes(5000)))
    with pytest.raises(ChaosError, match="'bias' lies outside of the snapshot"):
        write(tmp_path, checkpoint(8), state(1)[:8405])
    assert names(tmp_path) == ["step-000000000007-00000007"]


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    manifest = StateManifest(7, 64, (TensorEntry("phase", "complex128", (4,), 0, 64),), b"")
    with pytest.raises(ChaosError, match="complex128"):
        write(tmp_path, checkpoint(7, manifest), memoryview(bytes(64)))
    assert names(tmp_path) == []


# --- which ones are there -----------------------------------------------------------------------------


def test_there_is_none_in_an_empty_or_absent_directory(tmp_path: Path) -> None:
    assert latest(tmp_path, broken_is_an_error) is None
    assert latest(tmp_path / "absent", broken_is_an_error) is None


def test_a_file_in_place_of_the_directory_is_no_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ChaosError, match=r"cannot read .*file"):
        latest(tmp_path / "file", broken_is_an_error)
    with pytest.raises(ChaosError, match=r"to .*file: File exists; .* --checkpoint"):
        write(tmp_path / "file", checkpoint(1), state(1))


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        write(tmp_path, checkpoint(step), state(step))
    assert names(tmp_path) == [f"step-{step:012d}-{step:08x}" for step in (3, 10, 11)]
    write(tmp_path, checkpoint(12), state(12), keep=1)
    assert names(tmp_path) == ["step-000000000012-0000000c"]


def test_what_was_just_written_stays_though_a_faster_peer_is_ahead(tmp_path: Path) -> None:
    for step in (10, 11, 12, 5):
        path = write(tmp_path, checkpoint(step), state(step))
    assert load(path, SMALL).view == state(5)
    write(tmp_path, checkpoint(13), state(13))
    assert names(tmp_path) == [f"step-{step:012d}-{step:08x}" for step in (11, 12, 13)]


def test_a_new_run_in_an_old_directory_keeps_its_first_steps_and_is_the_newest(tmp_path: Path) -> None:
    for step in (500, 600, 700):
        write(tmp_path, checkpoint(step, run="old", created=step), state(step))
    path = write(tmp_path, checkpoint(1, run="new", created=1000.0), state(1))
    assert latest(tmp_path, broken_is_an_error) == (checkpoint(1, run="new", created=1000.0), path)
    assert len(names(tmp_path)) == 4


def test_a_clock_that_was_set_back_does_not_make_an_older_step_the_newest(tmp_path: Path) -> None:
    for step, created in ((1, 1000.0), (2, 2000.0), (3, 10.0)):
        path = write(tmp_path, checkpoint(step, created=created), state(step))
    assert latest(tmp_path, broken_is_an_error) == (checkpoint(3, created=10.0), path)


def test_the_same_checkpoint_is_written_once(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint(7, created=1.0), state(1))
    before = (path / "state.safetensors").stat().st_ino
    assert write(tmp_path, checkpoint(7, created=2.0), state(1)) == path
    assert (path / "state.safetensors").stat().st_ino == before
    assert latest(tmp_path, broken_is_an_error) == (checkpoint(7, created=1.0), path)


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-000000000009-00000009").mkdir()
    (tmp_path / ".tmp-step-000000000009-00000009" / "state.safetensors").write_bytes(b"half")
    write(tmp_path, checkpoint(7), state(7))
    assert names(tmp_path) == ["step-000000000007-00000007"]


# --- damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "append"])
def test_a_damaged_checkpoint_is_skipped_and_said_in_one_line(tmp_path: Path, file: str, damage: str) -> None:
    whole = write(tmp_path, checkpoint(1), state(1))
    path = write(tmp_path, checkpoint(2), state(2)) / file
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"flip": flipped, "cut": data[:-1], "empty": b"", "append": data + b"x"}[damage])
    warnings: list[str] = []
    assert latest(tmp_path, warnings.append) == (checkpoint(1), whole)
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert f"skipped checkpoint {path.parent}" in warnings[0]
    assert file in warnings[0]


def test_every_changed_value_in_the_description_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint(1), state(1)) / "manifest.json"
    text = path.read_text()
    for old, new in (
        ('"step": 1', '"step": 3'),
        ("alice", "carol"),
        ('"view_id": 5', '"view_id": 6'),
        ("line", "lime"),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        warnings: list[str] = []
        assert latest(tmp_path, warnings.append) is None
        assert len(warnings) == 1
    path.write_text(json.dumps(json.loads(text)))
    assert latest(tmp_path, broken_is_an_error) is not None, "only the formatting is another"


def test_a_later_format_is_left_to_later_versions(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint(1), state(1)) / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    warnings: list[str] = []
    assert latest(tmp_path, warnings.append) is None
    assert "its format 2 is not 1" in warnings[0]


def test_load_refuses_a_file_that_does_not_hold_what_the_manifest_says(tmp_path: Path) -> None:
    path = write(tmp_path, checkpoint(1), state(1))
    for shapes, reason in (
        ({"weight": ("float32", (300, 7))}, "other tensors"),
        ({"weight": ("float32", (7, 300)), "bias": ("bfloat16", (7,)), "steps": ("int64", ())}, "'weight' in another"),
        ({"weight": ("float64", (300, 7)), "bias": ("bfloat16", (7,)), "steps": ("int64", ())}, "'weight' in another"),
    ):
        with pytest.raises(ChaosError, match=reason):
            load(path, entries(shapes))
    file = path / "state.safetensors"
    for content in (b"", b"\xff" * 8, b"\x10" + bytes(7) + b"{}", file.read_bytes()[:-1]):
        file.write_bytes(content)
        with pytest.raises(ChaosError, match=r"choose another checkpoint"):
            load(path, SMALL)


# --- full disks, deaths, neighbours -------------------------------------------------------------------


def test_a_full_disk_is_said_and_leaves_the_former_checkpoint(tmp_path: Path) -> None:
    large = entries({"weight": ("float32", (2**19,))})
    with tiny_disk(tmp_path / "disk", 2**20) as directory:
        path = write(directory, checkpoint(1), state(1))
        with pytest.raises(ChaosError, match=r"a checkpoint of 2\.0 MiB to .*disk: .*; free some space there"):
            write(directory, checkpoint(2, large), state(2, large))
        assert names(directory) == [path.name]
        assert latest(directory, broken_is_an_error) == (checkpoint(1), path)


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    manifest = entries({"weight": ("float32", (2**18,)), "bias": ("float32", (2**16,))})
    write(tmp_path, checkpoint(1, manifest), state(0, manifest))
    states = [state(step, manifest) for step in range(3)]
    step, left = 1, 0
    for turn in range(40):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for number in range(step + 1, step + 1000):
                    os.write(writer, b".")
                    write(tmp_path, checkpoint(number, manifest), states[number % 3])
            finally:
                os._exit(1)
        os.close(writer)
        for _ in range(chance.randint(1, 3)):
            os.read(reader, 1)
        for _ in range(chance.randint(0, 200_000)):
            pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        left += any(name.startswith(".tmp-") for name in names(tmp_path))
        found = latest(tmp_path, broken_is_an_error)
        assert found is not None, f"seed {seed}, turn {turn}"
        assert found[0].step >= step, f"seed {seed}, turn {turn}"
        step = found[0].step
        memory = load(found[1], manifest)
        assert memory.view == states[step % 3] or step == 1, f"seed {seed}, turn {turn}, step {step}"
        memory.close()
    assert left > 0, f"seed {seed}: none was killed while it wrote"


def test_two_writers_at_once_make_one_checkpoint_of_each_step(tmp_path: Path) -> None:
    states = [state(step) for step in range(20)]
    children = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for step in range(1, 20):
                    write(tmp_path, checkpoint(step, created=step + number / 2), states[step], keep=100)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert names(tmp_path) == [f"step-{step:012d}-{step:08x}" for step in range(1, 20)]
    for step in range(19, 0, -1):
        found = latest(tmp_path, broken_is_an_error)
        assert found is not None
        assert found[0].step == step
        memory = load(found[1], SMALL)
        assert memory.view == states[step]
        memory.close()
        shutil.rmtree(found[1])


def test_writing_and_loading_need_no_second_copy_of_the_state(tmp_path: Path) -> None:
    manifest = entries({"weight": ("float32", (2**24,)), "bias": ("float32", (2**10,))})
    memory = SharedMemory.create("state", manifest.nbytes)
    memory.view[:1000] = bytes(range(250)) * 4
    used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    old = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**24, old[1]))  # private memory; the state takes 2**26
    try:
        path = write(tmp_path, checkpoint(1, manifest), memory.view)
        assert latest(tmp_path, broken_is_an_error) is not None
        loaded = load(path, manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, old)
    assert loaded.view == memory.view
    loaded.close()
    memory.close()


def test_memory_is_given_back_if_loading_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, checkpoint(1), state(1))
    made = []
    create = SharedMemory.create

    def remember(*arguments: object) -> SharedMemory:
        made.append(create(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(SharedMemory, "create", remember)
    with pytest.raises(ChaosError):
        load(path, entries({"weight": ("float32", (300, 7))}))
    assert [memory.fd for memory in made] == [-1]
