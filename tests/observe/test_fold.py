"""The picture of a run as a fold over trace lines: pure, bounded, and true to what the peers knew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.core import events as ev
from chaos.observe.fold import Fold
from chaos.observe.picture import EVENTS, LINKS, PEERS, POINTS, Picture
from chaos.observe.trace import TraceWriter
from chaos.sim.peer import SimPeer
from chaos.sim.world import World
from tests.core.test_outcomes import advance, start

Line = dict[str, Any]


class Recorder:
    """Has a simulated run's peers write their traces, as agents do."""

    def __init__(self, world: World) -> None:
        self.lines: list[Line] = []
        self._world = world
        self._writers: dict[str, TraceWriter] = {}
        self._note = world.note
        for peer in world.peers.values():  # what they did before
            for _, kind, fields in peer.trace:
                self._write(peer, kind, fields)
        world.note = self.note  # type: ignore[method-assign]

    def note(self, peer: SimPeer, kind: str, fields: dict[str, Any]) -> None:
        self._note(peer, kind, fields)
        self._write(peer, kind, fields)

    def _write(self, peer: SimPeer, kind: str, fields: dict[str, Any]) -> None:
        name = peer.info.name
        if name not in self._writers:
            self._writers[name] = TraceWriter(
                Path(os.devnull), name, clock=lambda: 0.0, wall=lambda: 1000.0 + self._world.now
            )
        if kind == "handled":
            fields = fields | {"computing_ms": 0.1, "acting_ms": 0.1, "waiting_ms": 0.0}
        self.lines.append(self._writers[name].write(kind, fields))


def agrees(picture: Picture, peer: SimPeer) -> None:
    """The picture shows what this peer knows."""
    ctx, steps = peer.node.ctx, peer.node.steps
    assert picture.view == ctx.view.id
    assert picture.lineage == ctx.view.lineage
    assert picture.members == [m.name for m in ctx.view.members]
    assert picture.learners == [p.name for p in ctx.view.learners]
    assert picture.step == steps.finished
    assert picture.stable >= steps.stable
    names = {p.id: p.name for p in picture.peers.values()}
    cut = {" ".join(sorted((names[a], names[b]))) for a, b in ctx.view.cut}
    assert {key for key, link in picture.links.items() if link.state == "cut"} == cut
    for info in ctx.view.members:
        assert picture.peers[info.name].state == "member"
        assert picture.peers[info.name].id == info.id


@pytest.mark.parametrize("seed", range(4))
def test_a_whole_run_is_shown_as_its_peers_knew_it(seed: int) -> None:
    """A join, a cut link, a death, a leave."""
    world = World(seed=seed)
    recorder = Recorder(world)
    peers = [world.found(0)]
    world.run_until(lambda: peers[0].node.steps.finished >= 3)
    for index in (1, 2, 3):
        peers.append(world.join(index, 0))
        world.run_until(lambda: peers[-1] in world.members(), 20)
    advance(world, peers[0], 5)
    agrees(Fold().take_all(recorder.lines), peers[0])
    peers[1].handle(ev.LinkWanted(peers[2].info.id, False))
    advance(world, peers[0], 5)
    agrees(Fold().take_all(recorder.lines), peers[2])
    world.kill(peers[3])
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 3, 10)
    peers[1].handle(ev.LeaveRequested("asked to"))
    world.run_until(lambda: len(peers[0].node.ctx.view.members) == 2, 10)
    advance(world, peers[0], 5)
    picture = Fold().take_all(recorder.lines)
    agrees(picture, peers[0])
    assert picture.peers["p3"].state == "gone"
    assert picture.peers["p1"].state == "left"
    assert picture.most_members == 4
    assert "2 members of 4 that there were" in picture.standing()
    kinds = [event.kind for event in picture.events if event.handling_ms]
    assert kinds == ["admit", "scale-out"] * 3 + ["disconnect-link", "failure", "scale-in"]
    assert {name: join.outcome for name, join in picture.joins.items()} == dict.fromkeys(("p1", "p2", "p3"), "member")
    assert all(join.sources for join in picture.joins.values())
    commits = {line["step"]: line["contributors"] for line in recorder.lines if line["kind"] == "commit"}
    for name in ("p0", "p3"):
        had_a_part = [step for step, ids in commits.items() if picture.peers[name].id in ids]
        assert picture.peers[name].contributed == len(had_a_part) > 5


def test_the_same_lines_make_the_same_picture_however_they_are_cut() -> None:
    world, peers = start(3)
    recorder = Recorder(world)
    world.kill(peers[1])
    advance(world, peers[0], 10)
    whole = Fold().take_all(recorder.lines).as_json()
    for cut in range(0, len(recorder.lines), 7):
        fold = Fold()
        fold.take_all(recorder.lines[:cut])
        assert fold.take_all(recorder.lines[cut:]).as_json() == whole


def test_who_is_silent_is_a_suspect_and_who_is_heard_again_is_none() -> None:
    fold = Fold()
    fold.take_all([view(1, 1, ["a", "b", "c"]), line(2, "a", "suspect", about="b", reason="nobody hears it")])
    peer = fold.picture.peers["b"]
    assert (peer.state, peer.since, peer.why) == ("suspect", 2.0, "nobody hears it")
    fold.take(line(3, "a", "trust", about="b", reason="heard again"))
    assert (peer.state, peer.since) == ("member", 3.0)
    fold.take(line(4, "b", "paused", view=1, reason="no quorum"))
    assert (peer.state, peer.why) == ("paused", "no quorum")
    fold.take(line(5, "b", "unpaused", seconds=1.0))
    assert peer.state == "member"


def line(at: float, peer: str, kind: str, **fields: Any) -> Line:
    own = {"t": at, "wall": at, "stamp": int(at * 1e6), "n": 0, "peer": peer, "in_view": 1, "at_step": 0, "kind": kind}
    return own | fields


def view(at: float, number: int, members: list[str], **fields: Any) -> Line:
    values: dict[str, Any] = {
        "view": number, "lineage": "l", "members": members, "learners": [], "ids": [f"id-{m}" for m in members],
        "parties": ["p"] * len(members), "first_step": 1, "abort": False, "role": "member", "shares": [], "cut": [],
        "reason": f"view {number}",
    }  # fmt: skip
    return line(at, members[0], "view", **values | fields)


def commit(at: float, step: int, contributors: list[str], number: int = 1, **fields: Any) -> Line:
    values: dict[str, Any] = {"loss": 2.0, "weight": 8.0, "skip": "", "late": []}
    ids = [f"id-{name}" for name in contributors]
    return line(at, "a", "commit", step=step, view=number, contributors=ids, **values | fields)


def test_a_change_costs_what_the_steps_around_it_take_beyond_the_usual() -> None:
    fold = Fold()
    fold.take(view(0, 1, ["a", "b"]))
    for step in range(1, 21):
        fold.take(commit(step, step, ["a", "b"]))
    fold.take(view(20.5, 2, ["a"], first_step=21, abort=True, reason="failure: without b"))
    handled = {"causes": [["failure", "b"]], "cause": "failure", "handling_ms": 300.0, "computing_ms": 1.0}
    fold.take(line(20.5, "a", "handled", view=2, acting_ms=0.5, **handled))
    fold.take_all([commit(22.5, 21, ["a"], 2), commit(23.75, 22, ["a"], 2), commit(24.75, 23, ["a"], 2)])
    event = fold.picture.events[-1]
    assert (event.kind, event.causes) == ("failure", [["failure", "b"]])
    assert (event.handling_ms, event.computing_ms) == ({"a": 300.0}, {"a": 1.5})
    assert (event.usual_s, event.extra_s) == (1.0, 1.75), "1.5 s for step 21, 0.25 for 22; with 23 it is over"
    assert fold.picture.usual_s == 1.0
    assert fold.picture.peers["b"].state == "gone"


def test_what_a_member_said_before_the_view_was_heard_of_is_not_lost() -> None:
    fold = Fold()
    fold.take(view(0, 1, ["a", "b"]))
    said = {"causes": [], "cause": "", "handling_ms": 7.0, "computing_ms": 1.0, "acting_ms": 0.0}
    fold.take_all([line(1, "b", "handled", view=2, **said), view(1.1, 2, ["a", "b"])])
    assert fold.picture.events[-1].handling_ms == {"b": 7.0}


def test_a_step_that_was_void_counts_once() -> None:
    fold = Fold()
    fold.take_all([view(0, 1, ["a", "b"]), commit(1, 1, ["a", "b"]), commit(1.1, 1, ["a", "b"])])
    fold.take(commit(2, 1, ["a"], 2, weight=4.0, late=["id-b"]))
    picture = fold.picture
    assert {name: (p.contributed, p.late) for name, p in picture.peers.items()} == {"a": (1, 0), "b": (0, 1)}
    assert (picture.samples, len(picture.steps)) == (4.0, 1)
    assert [peer.name for peer in picture.stragglers] == ["b"]


def sample(at: float, peer: str, **fields: Any) -> Line:
    values: dict[str, Any] = {
        "host": {"cpu": 0.5}, "gpus": [], "worker": {}, "links": {}, "join": None, "spread_bytes": 10
    }  # fmt: skip
    return line(at, peer, "sample", **values | fields)


def test_samples_say_what_links_carry_and_how_a_join_goes() -> None:
    fold = Fold()
    fold.take_all([view(0, 1, ["a", "b"]), line(1, "c", "learner", phase="fetch")])

    def links(nbytes: int) -> dict[str, Any]:
        return {"b": {"rtt_s": 0.02, "rate": 5e6, "out": {"gradients": nbytes, "control": 0, "state": 0}}}

    fold.take_all([sample(2, "a", links=links(1000)), sample(4, "a", links=links(9000))])
    way = fold.picture.links["a b"].sends["a"]
    assert (way.use, way.rate, way.bytes["gradients"]) == (4000.0, 5e6, 9000)
    fold.take(sample(5, "c", join={"step": 7, "bytes": 1000, "have": {"a": 100, "b": 300}}))
    join = fold.picture.joins["c"]
    assert (join.fetched, join.seconds_left) == (400, 6.0)
    fold.take(line(9, "c", "stop", code=6, reason="the run ended before it had caught up"))
    assert (join.ended, join.outcome) == (9.0, "the run ended before it had caught up")


def flood(count: int) -> Iterator[Line]:
    """All that can grow: peers, links, views, steps, events, joins, ids, early words on views."""
    for n in range(count // 8):
        at, name, other = float(n + 1), f"peer-{n // 8}", f"peer-{n // 8 + 1}"
        if n % 100 == 0:
            yield view(at, n + 1, [name, other], cut=[[name, other]])
        yield commit(at, n + 1, [name, other], n + 1)
        yield line(at, name, "link_up", about=f"peer-{n}")
        yield line(at, name, "link_down", about=f"peer-{n}", reason=str(n))
        yield line(at, name, "learner", phase="fetch")
        yield line(at, name, "handled", view=2 * n + 10, handling_ms=1.0, computing_ms=1.0, acting_ms=1.0,
                   causes=[], cause="")  # fmt: skip
        yield line(at, name, "suspect", about=other, reason=str(n))
        yield line(at, name, "checkpoint_failed", reason=str(n), step=n)
        yield sample(at, name, links={f"x-{n}": {"rtt_s": 0.1, "rate": 1.0, "out": {"control": n}}},
                     join={"step": 1, "bytes": 5, "have": {f"d-{n}": n}})  # fmt: skip


def weight(fold: Fold) -> int:
    """Bytes of everything that it holds."""
    inner = {key: value for key, value in vars(fold).items() if key != "_by_kind"}
    return len(msgspec.json.encode(msgspec.to_builtins(inner, enc_hook=list, str_keys=True)))


def test_memory_is_bounded(count: int = 150_000) -> None:
    """As it is over a million lines, which take a minute."""
    fold, early = Fold(), 0
    for number, one in enumerate(flood(count)):
        fold.take(one)
        if number == count // 3:
            early = weight(fold)
    picture = fold.picture
    assert PEERS // 2 < len(picture.peers) <= PEERS
    assert LINKS // 2 < len(picture.links) <= LINKS
    assert len(picture.events) == EVENTS
    assert POINTS // 2 <= len(picture.series.points) <= POINTS
    assert picture.series.points[-1][1] > count // 8 - 1000
    assert weight(fold) < 1.2 * early < 3e6


JUNK = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=3) | st.floats()
KINDS = ["view", "handled", "commit", "sample", "link_up", "link_down", "suspect", "trust", "gone", "goodbye", "stop"]


JUNK_KINDS = st.sampled_from([*KINDS, "paused", "learner", "fetched_state", "catch_up"])
FIELDS = ["view", "members", "ids", "about", "step", "contributors", "host", "links", "join", "causes", "cut", "reason"]
JUNK_FIELDS = st.dictionaries(st.sampled_from([*FIELDS, "role", "phase", "shares", "weight", "at_step"]), JUNK)


@settings(deadline=None)
@given(lines=st.lists(st.tuples(JUNK_KINDS, JUNK_FIELDS), max_size=20))
def test_lines_that_somebody_made_up_stop_nothing(lines: list[tuple[str, dict[str, Any]]]) -> None:
    fold = Fold()
    good = [view(0, 1, ["a", "b"]), commit(1, 1, ["a", "b"])]
    fold.take_all(good)
    for kind, fields in lines:
        base = {"view": view(2, 2, ["a"]), "commit": commit(2, 2, ["a"]), "sample": sample(2, "a")}.get(kind)
        fold.take((base or line(2, "mallory", kind)) | {"peer": "mallory"} | fields)
    fold.take_all([view(3, 2**62 + 1, ["a", "b"]), commit(3, 2**62 + 2, ["a", "b"])])
    msgspec.json.encode(fold.picture.as_json())
    assert fold.picture.standing()
