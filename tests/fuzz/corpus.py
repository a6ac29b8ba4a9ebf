"""What honest peers write, small, as a fuzzer's first inputs."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

from chaos.agent import checkpoint, party
from chaos.agent import requests as req
from chaos.agent.transport import hello
from chaos.agent.transport.frames import HOP, BulkHeader, ControlFrame, encode_bulk, encode_control
from chaos.core import events as ev
from chaos.core.codec import encode
from chaos.core.context import NodeConfig
from chaos.core.messages import Ack, Heartbeat, Sealed
from chaos.core.types import DataState, StateManifest, TensorEntry
from chaos.observe.record import Recorder
from chaos.observe.trace import TRACE_VERSION
from chaos.sim.symbols import info, peer_id, sign, verify
from tests.core.random_messages import MESSAGES, message

ID = peer_id(1)


def _messages(random: Random) -> list[bytes]:
    return [encode(message(tp, random)) for tp in MESSAGES for _ in range(3)]


def _control(random: Random) -> list[bytes]:
    frames = [encode_control(ControlFrame(3, ID, HOP, body)) for body in _messages(random)[:8]]
    return [*frames, b"".join(frames)]


def _bulk(_: Random) -> list[bytes]:
    return [encode_bulk(BulkHeader(kind, 3, 7, 1, 2, 1.5, 9, 0, 4096, ID, HOP, 8)) for kind in (1, 2, 3, 16)]


def _greetings(_: Random) -> list[bytes]:
    said = [
        hello.Hello("run", "control", 1, 0, 0, 0, info(1), ID),
        hello.Hello("", "client", 0, 0, 0, 0, None, ""),
        hello.Goodbye("no", True, ID),
        hello.Request(b"body"),
        hello.Answer(b"{}"),
    ]
    return [hello.encode_greeting(one) for one in said]


def _requests(_: Random) -> list[bytes]:
    asked = [
        req.StatusRequest(),
        req.LeaveRequest("tired"),
        req.ForceViewRequest(3),
        req.LinkRequest("b", False),
        req.SealRequest(Sealed(b"words", sign(b"words"))),
    ]
    return [req.encode_request(one) for one in asked]


def _roots(_: Random) -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        return [party.Party.init(Path(place) / "p", "somebody").root_file.read_bytes()]


def _recordings(random: Random) -> list[bytes]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "one.rec"
        recorder = Recorder(path, NodeConfig(verify=verify), None)
        for event in (ev.Tick(), ev.LinkUp(info(2), "run"), ev.Received(ID, Ack(3, b"h")), ev.LeaveRequested("so")):
            recorder.write(info(1), 1.0, event, [])
        recorder.write(info(1), 2.0, ev.Received(ID, message(Heartbeat, random)), None)
        recorder.close()
        return [path.read_bytes()]


def _traces(_: Random) -> list[bytes]:
    every = {"t": 1.0, "wall": 2.0, "stamp": 3, "n": 0, "peer": "a", "in_view": 1, "at_step": 0}
    seats = {"members": ["a"], "learners": ["b"], "ids": ["1" * 16, "2" * 16], "parties": ["p", "q"]}
    view = {"view": 1, "lineage": "l", "first_step": 1, "abort": False, "role": "member", "cut": [], "shares": []}
    commit = {"step": 3, "view": 1, "loss": 1.0, "weight": 8.0, "contributors": ["1" * 16], "late": [], "skip": ""}
    way = {"rtt_s": 0.01, "rate": 1000, "out": {"control": 1, "gradients": 2, "state": 3}}
    sample = {"host": {"cpu": 0.5, "memory": 1}, "worker": {"steps": 1}, "links": {"b": way}, "spread_bytes": 9}
    lines = [
        every | {"kind": "trace", "version": TRACE_VERSION},
        every | {"kind": "view", "reason": "so"} | view | seats,
        every | {"kind": "commit"} | commit,
        every | {"kind": "suspect", "about": "b", "reason": "silent"},
        every | {"kind": "sample", "join": None, "gpus": [{"name": "x", "use": 0.5}]} | sample,
    ]
    return [b"\n".join(json.dumps(line).encode() for line in lines) + b"\n"]


def _checkpoints(_: Random) -> list[bytes]:
    manifest = StateManifest(7, 64, (TensorEntry("w", "float32", (4,), 0, 16),), b"scalars")
    content = checkpoint.Checkpoint(
        run="run", lineage="one", view_id=1, step=7, head=b"h" * 16, data=DataState(), manifest=manifest,
        created=1.0, members=("a",),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        made = checkpoint.write(Path(place), content, memoryview(bytearray(64)))
        description = (made / "manifest.json").read_bytes()
        return [struct.pack("<I", len(description)) + description + (made / "state.safetensors").read_bytes()]


def _conversations(random: Random) -> list[bytes]:
    found = []
    for first in range(24):
        bodies = [encode(message(tp, random)) for tp in random.sample(MESSAGES, 6)]
        found.append(bytes([first]) + b"".join(struct.pack("<H", len(b)) + b for b in bodies if len(b) < 65536))
    return found


CORPUS: dict[str, Callable[[Random], list[bytes]]] = {
    "codec": _messages,
    "control": _control,
    "bulk": _bulk,
    "greeting": _greetings,
    "request": _requests,
    "root": _roots,
    "recording": _recordings,
    "trace": _traces,
    "checkpoint": _checkpoints,
    "node": _conversations,
}
