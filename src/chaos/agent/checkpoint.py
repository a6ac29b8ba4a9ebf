"""Checkpoints: the state of a stable step on disk, as a safetensors file and a description that people can read.

A checkpoint is a directory that gets its name only once it is complete and on disk, so what has a name is
whole unless the disk lost it; hashes tell. Writing goes from the given memory straight to the file and needs
none of its own beyond a few MiB (the page cache apart); loading needs the new memory and no more.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
from blake3 import blake3
from msgspec import Meta
from safetensors import SafetensorError, TensorSpec, serialize_file

from chaos.agent.shared_memory import SharedMemory
from chaos.core.errors import ChaosError
from chaos.core.types import Count, DataState, Digest, Name, Record, StateManifest, TensorEntry

FORMAT_VERSION = 1
KEEP = 3

_STATE = "state.safetensors"
_DESCRIPTION = "manifest.json"
_TEMPORARY = ".tmp-"
_HASHED_AT_ONCE = 4 * 2**20
_MAX_HEADER = 100 * 2**20
"""The format's own limit on the description of tensors at the start of a safetensors file."""

_LOCK_WAIT_S = 600.0
"""How long another local peer may take to write its checkpoint before this one gives up on its own."""

_BROKEN = (OSError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, RecursionError)
"""What reading a checkpoint that is not whole may raise."""


class Checkpoint(Record, frozen=True, kw_only=True):
    """What a checkpoint holds besides the bytes of its tensors."""

    format_version: Count = FORMAT_VERSION
    run: Annotated[str, Meta(max_length=64)]
    lineage: Annotated[str, Meta(max_length=64)]
    view_id: Count
    step: Count
    """The last step that is part of the state."""
    head: Digest
    """The lineage at `step`."""
    data: DataState
    manifest: StateManifest
    created: float
    """Wall time, in seconds since 1970."""
    members: Annotated[tuple[Name, ...], Meta(max_length=1024)]


class _Description(msgspec.Struct, forbid_unknown_fields=True):
    """The content of manifest.json."""

    checkpoint: dict[str, Any]
    state_bytes: int
    state_blake3: str
    blake3: str
    """Over the three above, however the file is formatted."""


class _Placed(msgspec.Struct):
    """Where a tensor lies in a safetensors file, in bytes from the end of its header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_descriptions = msgspec.json.Decoder(_Description)
_headers = msgspec.json.Decoder(dict[str, _Placed])


def write(directory: Path, checkpoint: Checkpoint, memory: memoryview, keep: int = KEEP) -> Path:
    """Writes the state that lies in `memory` as `checkpoint.manifest` says; returns the checkpoint's directory.

    If another peer has written the same state there already, that one is returned. Of this run, the `keep`
    checkpoints with the highest steps stay (and this one); those of other runs are left alone. Takes as long as
    the disk needs, so it belongs in a thread; the interpreter is free meanwhile.

    Raises:
        ChaosError: the disk is full or the directory can't be written to; nothing is left behind then.
    """
    final = directory / f"step-{checkpoint.step:012d}-{checkpoint.head.hex()[:8]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            for stale in directory.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale, ignore_errors=True)
            if not final.exists():
                _write_new(directory, final, checkpoint, memory)
            _remove_older(directory, checkpoint.run, keep, final)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ChaosError(
            f"cannot write a checkpoint of {checkpoint.manifest.nbytes / 2**20:.1f} MiB to {directory}: {reason}; "
            "free some space there, or choose another directory with --checkpoint"
        ) from error
    return final


def latest(
    directory: Path, warn: Callable[[str], None], read: Callable[[int, int], None] | None = None
) -> tuple[Checkpoint, Path] | None:
    """The newest intact checkpoint: of the run that wrote last, the one with the highest step.

    All bytes are compared with their hashes; `read` is told of how many, and how many have been. `warn` is told in one
    line about each that is skipped as broken.
    None if there is no intact one. ChaosError if the directory can't be read.
    """
    for description, checkpoint, path in _newest_first(directory, warn):
        told = partial(read, description.state_bytes) if read is not None else None
        try:
            if _hash(path / _STATE, told) == (
                description.state_bytes,
                description.state_blake3,
            ):
                return checkpoint, path
            warn(f"skipped checkpoint {path}: {_STATE} is damaged")
        except OSError as error:
            warn(f"skipped checkpoint {path}: {_STATE}: {error.strerror}")
    return None


def newest_bytes(directory: Path) -> int | None:
    """Size of the newest checkpoint there, as its description says; None if there is none. ChaosError: unreadable."""
    found = _newest_first(directory, lambda _: None)
    return found[0][0].state_bytes if found else None


def load(path: Path, manifest: StateManifest) -> SharedMemory:
    """The tensors of the checkpoint in this directory, in new memory laid out as its manifest says.

    Raises:
        ChaosError: the file does not hold these tensors, can't be read, or there is no memory for them.
    """
    memory = SharedMemory.create("chaos-checkpoint", manifest.nbytes)
    try:
        with (path / _STATE).open("rb", buffering=0) as file:
            header, start = _read_header(file)
            if header.keys() != {entry.name for entry in manifest.tensors}:
                raise ChaosError(f"{path / _STATE} holds other tensors than its manifest: choose another checkpoint")
            for entry in sorted(manifest.tensors, key=lambda entry: header[entry.name].data_offsets):
                _read_tensor(file, start, header[entry.name], entry, memory.view)
    except _BROKEN as error:
        memory.close()
        raise ChaosError(f"cannot load {path / _STATE}: {error}; choose another checkpoint") from error
    except ChaosError:
        memory.close()
        raise
    return memory


# --- writing ------------------------------------------------------------------------------------------


def _write_new(directory: Path, final: Path, checkpoint: Checkpoint, memory: memoryview) -> None:
    """A complete checkpoint under its final name, or nothing."""
    temporary = directory / f"{_TEMPORARY}{final.name}"
    try:
        temporary.mkdir()
        _write_state(temporary / _STATE, checkpoint.manifest, memory)
        _flush(temporary / _STATE)
        size, digest = _hash(temporary / _STATE)
        described = _readable(checkpoint)
        content = {
            "checkpoint": described,
            "state_bytes": size,
            "state_blake3": digest,
            "blake3": _seal(described, size, digest),
        }
        (temporary / _DESCRIPTION).write_text(json.dumps(content, indent=1))
        _flush(temporary / _DESCRIPTION)
        _flush(temporary)
        temporary.rename(final)
        _flush(directory)
    except (OSError, SafetensorError, ChaosError):
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_state(path: Path, manifest: StateManifest, memory: memoryview) -> None:
    source = np.frombuffer(memory, np.uint8)  # holds on to the memory while the writer has addresses in it
    specs = {}
    for entry in manifest.tensors:
        if entry.offset + entry.nbytes > len(source):
            raise ChaosError(f"'{entry.name}' lies outside of the snapshot: restart this peer")
        specs[entry.name] = TensorSpec(
            dtype=entry.dtype,
            shape=list(entry.shape),
            data_ptr=source.ctypes.data + entry.offset,
            data_len=entry.nbytes,
        )
    serialize_file(specs, path)


def _remove_older(directory: Path, run: str, keep: int, just_written: Path) -> None:
    """What goes loses its name first, so that a half-removed checkpoint is never taken for one."""
    own = [path for _, checkpoint, path in _newest_first(directory, lambda _: None) if checkpoint.run == run]
    for path in own[keep:]:
        if path != just_written:
            gone = path.rename(directory / f"{_TEMPORARY}{path.name}")
            shutil.rmtree(gone, ignore_errors=True)


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Lets one process at a time write there. OSError (timed out) if that takes too long."""
    with (directory / ".lock").open("ab") as file:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(0, "another process has been writing there for too long") from error
            time.sleep(0.02)
        yield


# --- reading ------------------------------------------------------------------------------------------


def _newest_first(directory: Path, warn: Callable[[str], None]) -> list[tuple[_Description, Checkpoint, Path]]:
    """All checkpoints whose description is intact. Steps of different runs don't compare, times do."""
    found = []
    try:
        paths = sorted(path for path in directory.iterdir() if path.name.startswith("step-"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ChaosError(f"cannot read {directory}: {error.strerror}; give another with --checkpoint") from error
    for path in paths:
        try:
            found.append((*_read_description(path), path))
        except _BROKEN as error:
            warn(f"skipped checkpoint {path}: {_DESCRIPTION}: {str(error).splitlines()[0]}")
        except ChaosError as error:
            warn(f"skipped checkpoint {path}: {error}")
    wrote_last: dict[str, float] = {}
    for _, checkpoint, _ in found:
        wrote_last[checkpoint.run] = max(checkpoint.created, wrote_last.get(checkpoint.run, 0.0))
    return sorted(found, key=lambda f: (wrote_last[f[1].run], f[1].run, f[1].step, f[1].created), reverse=True)


def _read_description(path: Path) -> tuple[_Description, Checkpoint]:
    description = _descriptions.decode((path / _DESCRIPTION).read_bytes())
    version = description.checkpoint["format_version"]
    if version != FORMAT_VERSION:
        raise ChaosError(f"its format {version} is not {FORMAT_VERSION}, which this version of chaos reads")
    if _seal(description.checkpoint, description.state_bytes, description.state_blake3) != description.blake3:
        raise ChaosError(f"{_DESCRIPTION} is damaged")
    return description, msgspec.convert(_positional(description.checkpoint), Checkpoint)


def _read_header(file: BinaryIO) -> tuple[dict[str, _Placed], int]:
    """The description of the tensors in a safetensors file, and where their bytes start."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ChaosError(f"{file.name} does not begin like a safetensors file: choose another checkpoint")
    content = bytearray(length)
    _fill(file, memoryview(content))
    return _headers.decode(content), 8 + length


def _read_tensor(file: BinaryIO, start: int, placed: _Placed, entry: TensorEntry, memory: memoryview) -> None:
    begin, end = placed.data_offsets
    fits = entry.offset + entry.nbytes <= len(memory) and end - begin == entry.nbytes
    if not fits or placed.shape != entry.shape:
        raise ChaosError(f"{file.name} has '{entry.name}' in another size or shape: choose another checkpoint")
    file.seek(start + begin)
    _fill(file, memory[entry.offset : entry.offset + entry.nbytes])


def _fill(file: BinaryIO, target: memoryview) -> None:
    """OSError if the file ends too early."""
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise OSError("the file ends too early")
        done += count


def _hash(path: Path, read: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Size and BLAKE3 of a file; `read` is told how many bytes have been."""
    hasher, size = blake3(), 0
    piece = memoryview(bytearray(_HASHED_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            hasher.update(piece[:count])
            size += count
            if read is not None:
                read(size)
    return size, hasher.hexdigest()


def _seal(described: dict[str, Any], size: int, digest: str) -> str:
    return blake3(msgspec.json.encode((described, size, digest))).hexdigest()


def _readable(value: Any) -> Any:
    """Records as objects with names, bytes as base64."""
    if isinstance(value, Record):
        return {name: _readable(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [_readable(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _positional(value: Any) -> Any:
    """The way back from `_readable` to what records are encoded as; the names stand in the records' order."""
    if isinstance(value, dict):
        return [_positional(item) for item in value.values()]
    return [_positional(item) for item in value] if isinstance(value, list) else value
