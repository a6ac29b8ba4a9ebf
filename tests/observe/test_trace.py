"""Traces: nothing written is lost, nothing half-written is read, and no disk stops the agent."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.core.errors import ChaosError
from chaos.core.types import Ballot
from chaos.observe.trace import TraceWriter, merge, read


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def writer(path: Path, wall: Callable[[], float] | None = None, **options: Any) -> TraceWriter:
    return TraceWriter(path, options.pop("peer", "alice"), clock=Clock(1.5), wall=wall or Clock(1000.0), **options)


def events(path: Path) -> list[dict[str, Any]]:
    return [line for line in read(path) if line["kind"] != "trace"]


@contextmanager
def disk_of(nbytes: int) -> Iterator[None]:
    """No file may grow beyond this."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


# --- lines --------------------------------------------------------------------------------------------


def test_a_line_is_json_with_times_writer_and_kind(tmp_path: Path) -> None:
    trace = writer(tmp_path / "deep" / "trace.jsonl")
    trace.write("stable", {"step": 7, "head": b"\x01\xff"})
    lines = [json.loads(line) for line in (tmp_path / "deep" / "trace.jsonl").read_text().splitlines()]
    own = {"t": 1.5, "wall": 1000.0, "peer": "alice", "in_view": 0, "at_step": 0}
    assert lines == [
        {**own, "stamp": 1_000_000_000, "n": 0, "kind": "trace", "version": 2},
        {**own, "stamp": 1_000_000_001, "n": 1, "kind": "stable", "step": 7, "head": "01ff"},
    ]
    assert list(read(trace.path)) == lines
    trace.close()
    trace.close()


def test_the_peer_an_event_is_about_does_not_hide_who_wrote_it(tmp_path: Path) -> None:
    trace = writer(tmp_path / "trace")
    trace.write("suspect", {"peer": "bob", "reason": "silent"})
    assert [(line["peer"], line["about"]) for line in events(trace.path)] == [("alice", "bob")]
    for key in ("t", "wall", "kind", "stamp", "n", "in_view", "at_step"):
        with pytest.raises(ValueError, match=key):
            trace.write("odd", {key: 1})
    trace.close()


def test_whatever_an_event_holds_can_be_written(tmp_path: Path) -> None:
    trace = writer(tmp_path / "trace")
    fields = {
        "deep": {"head": (b"\x0a", [b"\x0b", None])},
        "counts": {3: 4},
        "ballot": Ballot(2, "0" * 16),
        "path": Path("/there"),
        "loss": float("nan"),
        "buffer": memoryview(b"\x0c"),
        "newline": "a\nb",
    }
    trace.write("odd", fields)
    (line,) = events(trace.path)
    assert {key: line[key] for key in fields} == {
        "deep": {"head": ["0a", ["0b", None]]},
        "counts": {"3": 4},
        "ballot": [2, "0" * 16],
        "path": "/there",
        "loss": None,
        "buffer": "0c",
        "newline": "a\nb",
    }
    trace.close()


# --- files --------------------------------------------------------------------------------------------


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    reader, pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            trace = writer(tmp_path / "trace")
            for number in range(10**9):
                trace.write("line", {"number": number})
                os.write(pipe, b".")
        finally:
            os._exit(1)
    os.close(pipe)
    reported = sum(len(os.read(reader, 1)) for _ in range(500))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(reader, 65536):
        reported += len(more)
    os.close(reader)
    numbers = [line["number"] for line in events(tmp_path / "trace")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) - reported in (0, 1)


@settings(deadline=None)
@given(cut=st.integers(0, 700))
def test_a_cut_file_reads_up_to_its_last_whole_line_and_goes_on_there(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "trace"
    first = writer(path)
    for number in range(4):
        first.write("line", {"number": number})
    first.close()
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = data.count(b"\n")
    assert [line.get("number") for line in read(path)] == [None, 0, 1, 2, 3][:whole]
    second = writer(path)
    second.write("line", {"number": 9})
    second.close()
    assert [line.get("number") for line in read(path)] == [*[None, 0, 1, 2, 3][:whole], None, 9]


def test_a_long_partial_line_is_cut_off_too(tmp_path: Path) -> None:
    trace = writer(tmp_path / "trace")
    trace.close()
    with trace.path.open("ab") as file:
        file.write(b"{" + b"x" * 200_000)
    writer(tmp_path / "trace").close()
    assert len(list(read(tmp_path / "trace"))) == 2


def test_a_full_file_becomes_the_older_one_and_one_older_one_is_kept(tmp_path: Path) -> None:
    trace = writer(tmp_path / "trace", limit_bytes=2000)
    for number in range(100):
        trace.write("line", {"number": number})
        assert trace.path.stat().st_size <= 2000
    trace.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace", "trace.1"]
    kept = [line["number"] for part in ("trace.1", "trace") for line in events(tmp_path / part)]
    assert kept == list(range(kept[0], 100))
    assert len(kept) > 10
    assert trace.failed == ""


def test_a_device_is_only_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError(f"a device is not to be renamed or cut: {arguments}")

    monkeypatch.setattr(Path, "replace", never)
    monkeypatch.setattr(os, "ftruncate", never)
    trace = writer(Path(os.devnull), limit_bytes=10)
    for _ in range(10):
        trace.write("line", {})
    trace.close()
    assert trace.failed == ""


# --- full disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", range(400, 700, 11))
def test_a_full_disk_ends_the_trace_at_a_whole_line_and_is_said_once(tmp_path: Path, room: int) -> None:
    said: list[str] = []
    trace = writer(tmp_path / "trace", on_failure=said.append)
    with disk_of(room):
        for number in range(20):
            trace.write("line", {"number": number})
    trace.write("line", {"number": 99})
    assert said == [trace.failed]
    assert trace.failed.startswith(f"the trace {tmp_path / 'trace'} ends here: ")
    assert trace.path.read_bytes().endswith(b"}\n")
    numbers = [line["number"] for line in events(trace.path)]
    assert numbers == list(range(len(numbers)))
    assert numbers


def test_a_disk_that_is_full_from_the_start_does_not_stop_the_agent(tmp_path: Path) -> None:
    with disk_of(10):
        trace = writer(tmp_path / "trace")
    trace.write("line", {})
    assert "ends here" in trace.failed


def test_a_directory_that_vanishes_ends_the_trace_at_its_rotation(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    trace = writer(tmp_path / "sub" / "trace", limit_bytes=500)
    trace.path.unlink()
    (tmp_path / "sub").rmdir()
    for _ in range(20):
        trace.write("line", {})
    assert "No such file" in trace.failed


def test_a_path_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "trace"):
        with pytest.raises(ChaosError, match=r"cannot write the trace .* --trace"):
            writer(path)


FIRST = b'{"kind":"trace","wall":1.0,"stamp":1,"peer":"a","version":2}\n'

# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello\n", "line 1 of .* is damaged"),
        (b"\xff\n", "line 1 of .* is damaged"),
        (b"[1]\n", "is no trace"),
        (b'{"kind":"step"}\n', "does not begin with a version"),
        (b'{"kind":"step","wall":1.0}\n', "does not begin with a version"),
        (b'{"kind":"trace","version":2}\n', "its line 1 lacks time"),
        (b'{"kind":"trace","wall":1.0,"version":3}\n', "of version 3; this chaos reads 2"),
        (FIRST + b'{"ki\n{}\n', "line 2 of .* is damaged"),
        (FIRST + b'{"kind":"step","wall":1.0,"peer":"a"}\n', "its line 2 lacks time, stamp"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "trace").write_bytes(content)
    with pytest.raises(ChaosError, match=reason):
        list(read(tmp_path / "trace"))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChaosError, match=r"cannot read .*absent: No such file"):
        list(read(tmp_path / "absent"))
    assert merge([]) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=40))
def test_merged_lines_are_in_order_of_time_and_each_peers_in_its_own(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[bool, int]]
) -> None:
    directory = tmp_path_factory.mktemp("merge")
    walls = {"alice": Clock(), "bob": Clock()}
    traces = {name: writer(directory / name, walls[name], peer=name) for name in walls}
    for number, (first, now) in enumerate(script):
        name = "alice" if first else "bob"
        walls[name].now = float(now)
        traces[name].write("line", {"number": number})
    for trace in traces.values():
        trace.close()
    lines = [line for line in merge([directory / "alice", directory / "bob"]) if line["kind"] == "line"]
    for name in walls:
        own = [number for number, (first, _) in enumerate(script) if ("alice" if first else "bob") == name]
        assert [line["number"] for line in lines if line["peer"] == name] == own
    if all(a[1] <= b[1] for a, b in pairwise(script)):
        assert [line["wall"] for line in lines] == sorted(line["wall"] for line in lines)


def test_merging_takes_the_older_part_along_once(tmp_path: Path) -> None:
    trace = writer(tmp_path / "trace", limit_bytes=500)
    for number in range(6):
        trace.write("line", {"number": number})
    trace.close()
    assert (tmp_path / "trace.1").exists()
    for paths in (["trace"], ["trace", "trace.1"], ["trace.1", "trace", "trace"]):
        lines = merge(tmp_path / name for name in paths)
        assert [line["number"] for line in lines if line["kind"] == "line"] == list(range(6))
