"""What reads bytes that others wrote, each as a function of these bytes: it raises nothing but what it says it does.

A target gives back what it made of its input, or None where the input was refused as it should be.
"""

from __future__ import annotations

import copy
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from chaos.agent import checkpoint
from chaos.agent.identity import read_root
from chaos.agent.requests import decode_request
from chaos.agent.transport.frames import BULK_HEADER_SIZE, ControlReader, decode_bulk, encode_bulk, encode_control
from chaos.agent.transport.hello import (
    MAX_GREETING,
    PREAMBLE_SIZE,
    Hello,
    decode_greeting,
    encode_greeting,
    greeting_length,
    objection,
)
from chaos.core import events as ev
from chaos.core.codec import decode, encode
from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.node import Node
from chaos.observe import trace
from chaos.observe.fold import Fold
from chaos.observe.record import Recording
from chaos.observe.sentences import sentence
from chaos.sim.symbols import info, peer_id

Target = Callable[[bytes], Any]


def codec(data: bytes) -> Any:
    """What decodes is encoded to something that decodes to the same, and is not larger than what came."""
    try:
        message = decode(data)
    except RemoteProtocolError:
        return None
    assert repr(decode(encode(message))) == repr(message)  # two NaN are not equal
    return message


def control(data: bytes) -> Any:
    """However the stream is cut, the same frames come out; what is held back is one frame."""
    whole, cut = ControlReader(), ControlReader()
    try:
        frames = whole.feed(data)
    except RemoteProtocolError:
        frames = None
    found: list[Any] | None = []
    for at in range(0, len(data), 7):
        try:
            assert found is not None
            found += cut.feed(data[at : at + 7])
        except RemoteProtocolError:
            found = None
            break
    assert found == frames
    for frame in frames or ():
        assert encode_control(frame) in data
    return frames


def bulk(data: bytes) -> Any:
    """A header that is accepted is the one that its sender wrote."""
    data = data[:BULK_HEADER_SIZE].ljust(BULK_HEADER_SIZE, b"\0")
    try:
        header = decode_bulk(data)
    except RemoteProtocolError:
        return None
    assert encode_bulk(header)[:48] + encode_bulk(header)[56:] == data[:48] + data[56:]  # a NaN may change its bits
    return header


def greeting(data: bytes) -> Any:
    """The first words of somebody who has not proven anything yet."""
    try:
        length = greeting_length(data[:PREAMBLE_SIZE].ljust(PREAMBLE_SIZE, b"\0"), MAX_GREETING)
        message = decode_greeting(data[PREAMBLE_SIZE : PREAMBLE_SIZE + length])
    except RemoteProtocolError:
        return None
    if isinstance(message, Hello):
        assert isinstance(objection(message, info(0), "run", None, 1), str)
    assert decode_greeting(encode_greeting(message)[PREAMBLE_SIZE:]) == message
    return message


def request(data: bytes) -> Any:
    try:
        return decode_request(data)
    except RemoteProtocolError:
        return None


def root(data: bytes) -> Any:
    """A party's certificate that somebody was sent."""
    try:
        return read_root(data, "the file")
    except ChaosError as error:
        assert "\n" not in str(error)
        return None


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    """A file in memory."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def recording(data: bytes) -> Any:
    try:
        with _file(data) as path, Recording(path) as found:
            return [entry.decode() for entry in found.entries()]
    except ChaosError:
        return None


def trace_file(data: bytes) -> Any:
    """A peer's lines, and the picture and the words that are made of them."""
    try:
        with _file(data) as path:
            lines = list(trace.read(path))
    except ChaosError:
        return None
    picture = Fold().take_all(lines)  # agents fold the lines that other peers tell them
    picture.as_json()
    return [sentence(line) for line in lines], picture.standing()


@cache
def _directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="chaos-fuzz-", dir="/dev/shm"))
    (path / "step-1").mkdir()
    return path


def checkpoints(data: bytes) -> Any:
    """Description and tensors of a checkpoint, with a length in front of the first."""
    size = struct.unpack("<I", data[:4].ljust(4, b"\0"))[0] % 65536
    description, state = data[4 : 4 + size], data[4 + size :]
    place = _directory() / "step-1"
    (place / "manifest.json").write_bytes(description)
    (place / "state.safetensors").write_bytes(state)
    warnings: list[str] = []
    found = checkpoint.latest(_directory(), warnings.append)
    if found is None:
        assert len(warnings) == 1 and "\n" not in warnings[0]
        return None
    try:
        checkpoint.load(found[1], found[0].manifest).close()
    except ChaosError:
        return None
    return found


@cache
def _nodes() -> dict[str, Node]:
    from tests.core.test_access import nodes

    return nodes()


def node(data: bytes) -> Any:
    """Messages of one sender to one node: a byte for both, then each with its length in front."""
    if len(data) < 3:
        return None
    role, src = ("member", "learner", "joiner", "leaver")[data[0] % 4], data[0] // 4 % 6
    victim, at, now = copy.deepcopy(_nodes()[role]), 1, _nodes()[role].ctx.now
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        body, at, now = data[at + 2 : at + 2 + size], at + 2 + size, now + 0.05
        try:
            victim.handle(ev.Received(peer_id(src), decode(body)), now)
        except RemoteProtocolError:
            continue
        victim.handle(ev.Tick(), now)
    return victim.ctx.role


TARGETS: dict[str, Target] = {
    "codec": codec,
    "control": control,
    "bulk": bulk,
    "greeting": greeting,
    "request": request,
    "root": root,
    "recording": recording,
    "trace": trace_file,
    "checkpoint": checkpoints,
    "node": node,
}


def seeds(name: str) -> list[bytes]:
    """Inputs from which a fuzzer may start: what honest peers write."""
    from tests.fuzz.corpus import CORPUS

    return CORPUS[name](Random(name))
