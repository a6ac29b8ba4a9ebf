"""A recording holds all it takes to run a node again."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.core import events as ev
from chaos.core.codec import encode_words
from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.liveness import Liveness
from chaos.core.messages import LastWords, Seal, Sealed
from chaos.core.node import Founding
from chaos.core.types import PeerInfo
from chaos.observe.record import Recorder
from chaos.sim.peer import SimPeer
from chaos.sim.replay import replay
from chaos.sim.world import World


def record(peer: SimPeer, path: Path, founding: Founding | None) -> Recorder:
    """Record what this peer's node handles from now on, as the agent's driver does."""
    node, recorder = peer.node, Recorder(path, peer.node.ctx.config, founding)
    handle = node.handle

    def recorded(event: ev.AnyEvent, now: float) -> list[object]:
        try:
            actions = handle(event, now)
        except RemoteProtocolError:
            recorder.write(node.ctx.me, now, event, None)
            raise
        recorder.write(node.ctx.me, now, event, actions)
        return actions

    node.handle = recorded  # type: ignore[method-assign]
    return recorder


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Of a joiner that becomes a member, sees the founder killed and hears words with a wrong signature."""
    world = World(3)
    world.found(0)
    other, joiner = world.join(1, 0), world.join(2, 0)
    recorder = record(joiner, tmp_path / "joiner.rec", None)
    world.run_until(lambda: len(world.members()) == 3, 10)
    world.run(world.now + 1.0)
    seat: PeerInfo = other.info
    body = encode_words(LastWords("run", seat.id, seat.incarnation, joiner.node.ctx.view, None, None))
    with pytest.raises(RemoteProtocolError):
        joiner.node.handle(ev.Received(other.id, Seal(Sealed(body, b"0" * 64))), joiner.now)
    world.kill(world.peers[joiner.node.ctx.view.members[0].id])
    world.run(world.now + 1.0)
    recorder.close()
    return tmp_path / "joiner.rec"


def test_the_same_events_give_the_same_actions(recording: Path) -> None:
    result = replay(recording)
    assert result.differs == ""
    assert result.peer == "p2" and result.events > 200 and result.steps > 10


def test_another_core_is_found_out(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Liveness, "on_probe", lambda *_: None)
    monkeypatch.setattr(Liveness, "_heartbeat", lambda *_: None)
    assert "Tick" in replay(recording).differs


def test_what_is_no_recording_is_refused(tmp_path: Path, recording: Path) -> None:
    text = tmp_path / "trace.jsonl"
    text.write_text('{"kind": "trace"}\n')
    with pytest.raises(ChaosError, match="is no recording"):
        replay(text)
    with pytest.raises(ChaosError, match="cannot read"):
        replay(tmp_path / "nothing")
    whole = recording.read_bytes()
    recording.write_bytes(whole[:-3])
    assert replay(recording).differs == "", "a killed agent's last event may not be whole"


def test_a_killed_agents_last_events_are_there_and_its_successors_are_apart(tmp_path: Path) -> None:
    """Nothing is closed or flushed before the file is read."""
    path, world = tmp_path / "one.rec", World(3)
    founder = world.found(0)
    first = record(founder, path, Founding(run="run", lineage="one"))
    world.run(world.now + 1.0)
    assert replay(path).steps == founder.node.steps.finished > 0
    again = Recorder(path, founder.node.ctx.config, None)
    again.write(founder.info, 1.0, ev.Tick(), [])
    assert replay(path.with_name("one.rec.1")).steps == founder.node.steps.finished
    assert replay(path).events == 1
    first.close()
    again.close()


def test_a_full_disk_ends_the_recording_not_the_agent(capsys: pytest.CaptureFixture[str]) -> None:
    world = World(3)
    recorder = Recorder(Path("/dev/full"), World(1).config(True), None)
    for _ in range(3):
        recorder.write(world.found(0).info, 1.0, ev.Tick(), [])
    assert capsys.readouterr().err.count("the recording /dev/full ends here: No space left") == 1
    recorder.close()
