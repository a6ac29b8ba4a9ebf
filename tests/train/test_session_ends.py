"""How a script's life ends, and what of it the agent learns."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chaos
from chaos.core.errors import ChaosError, Refused, RemoteProtocolError
from chaos.core.worker_messages import (
    Boundary,
    BucketReady,
    Declined,
    Failed,
    Finished,
    FromWorker,
    Proceed,
    Register,
)
from chaos.train.agent_link import AgentLink
from chaos.train.errors import AgentLost
from tests.train.fake_agent import FakeAgent
from tests.train.reference import Points, make_mlp

Make = Callable[..., FakeAgent]
DATA = Points(16)


def one_step(model: nn.Module, run: chaos.Session) -> None:
    F.mse_loss(model(DATA.x), DATA.y).backward()
    run.step()


def script(agent: FakeAgent, body: Callable, **options: object) -> Callable[[int], object]:
    def run_it(index: int) -> object:
        model = make_mlp()
        with agent.worker(index, model, torch.optim.SGD(model.parameters(), lr=0.1), **options) as run:
            return body(model, run)

    return run_it


def last_message(agent: FakeAgent) -> FromWorker:
    agent.close()
    return agent.peers[0].log[-1]


def test_a_normal_end_says_finished_with_a_digest(agents: Make) -> None:
    agent = agents()
    agent.run(script(agent, lambda model, run: [one_step(model, run) for _ in range(3)]))
    end = last_message(agent)
    assert isinstance(end, Finished) and end.applied == 3 and len(end.state) == 32


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(), KeyboardInterrupt()])
def test_leaving_by_ones_own_wish_is_finished(agents: Make, error: BaseException) -> None:
    agent = agents()

    def body(model: nn.Module, run: chaos.Session) -> None:
        one_step(model, run)
        raise error

    with pytest.raises(type(error)):
        agent.run(script(agent, body))
    assert any(isinstance(m, Finished) for m in agent.peers[0].log)


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), SystemExit(3)])
def test_an_error_is_told_with_its_traceback(agents: Make, error: BaseException) -> None:
    agent = agents()

    def body(model: nn.Module, run: chaos.Session) -> None:
        one_step(model, run)
        raise error

    with pytest.raises(type(error)):
        agent.run(script(agent, body))
    (failed,) = agent.peers[0].of(Failed)
    assert "in body" in failed.traceback and type(error).__name__ in failed.traceback
    assert not agent.peers[0].of(Finished)


def test_the_model_is_free_of_the_run_afterwards(agents: Make) -> None:
    agent = agents()
    model = make_mlp()

    def run_it(index: int) -> None:
        with agent.worker(index, model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
            one_step(model, run)

    agent.run(run_it)
    assert all(p.grad is None for p in model.parameters())
    F.mse_loss(model(DATA.x), DATA.y).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_step_left_open_by_sync_is_finished(agents: Make) -> None:
    agent = agents()

    def body(model: nn.Module, run: chaos.Session) -> None:
        F.mse_loss(model(DATA.x), DATA.y).backward()
        run.sync()
        assert run.steps == 0

    agent.run(script(agent, body))
    assert agent.peers[0].of(Finished)[0].applied == 1


def test_the_last_outcome_outlasts_steps_of_nobody(agents: Make) -> None:
    """At an epoch's end there are steps without samples; what a script prints then is the last loss."""
    agent = agents()
    agent.lag = 1
    seen: list[float] = []

    def body(model: nn.Module, run: chaos.Session) -> None:
        for _ in run.epochs(1):
            for x, y in run.shard(DATA, 4):
                loss = F.mse_loss(model(x), y)
                loss.backward()
                run.step(loss)
                seen.append(loss.item())
        assert agent.commits[run.steps][0].weight == 0, "an empty step came last"
        assert run.last.loss == pytest.approx(seen[-1]) and run.last.step < run.steps

    agent.run(script(agent, body))
    assert seen


def test_a_step_whose_gradients_are_under_way_is_finished(agents: Make) -> None:
    """The script breaks off between backward and step: the others may have summed what backward sent."""
    agent = agents()

    def body(model: nn.Module, run: chaos.Session) -> None:
        for x, y in run.shard(DATA, 4):
            F.mse_loss(model(x), y).backward()
            if run.steps == 3:
                break
            run.step()

    agent.run(script(agent, body))
    sent = [message.step for message in agent.peers[0].of(BucketReady)]
    last = agent.peers[0].of(Boundary)[-1].contribution
    assert sent[-1] == 4 and last.weight == 4.0 and sum(r.stop - r.start for r in last.ranges) == 4
    assert agent.peers[0].of(Finished)[0].applied == 4


def test_the_agents_end_is_an_error_with_exit_code_3(agents: Make) -> None:
    agent = agents()
    agent.at[3] = lambda a: a._gone(a.peers[0])

    def body(model: nn.Module, run: chaos.Session) -> None:
        for _ in range(5):
            one_step(model, run)

    with pytest.raises(AgentLost, match="the agent of this peer ended; see its log") as caught:
        agent.run(script(agent, body))
    assert caught.value.exit_code == 3


def test_declined_at_registration(agents: Make) -> None:
    agent = agents()
    agent.decline[0] = "another model"
    with pytest.raises(Refused, match="another model") as caught:
        agent.run(script(agent, one_step))
    assert caught.value.exit_code == 4


def test_declined_later_even_if_the_agent_is_gone_by_then(agents: Make) -> None:
    """The worker computes while its agent says why and ends; the reason is not lost."""
    agent = agents()
    told = threading.Event()

    def decline(a: FakeAgent) -> None:
        a._commit(2, a._members())
        a._replay(a.peers[0])
        a._proceed(a.peers[0])
        a.tell(a.peers[0], Declined("party evicted"))
        a._gone(a.peers[0])
        told.set()

    agent.at[2] = decline

    def body(model: nn.Module, run: chaos.Session) -> None:
        one_step(model, run)
        one_step(model, run)
        assert told.wait(30)
        one_step(model, run)

    with pytest.raises(Refused, match="party evicted"):
        agent.run(script(agent, body))


def test_a_stop_names_the_culprit(agents: Make) -> None:
    agent = agents()
    agent.stop_at.add(2)

    def body(model: nn.Module, run: chaos.Session) -> None:
        one_step(model, run)
        model[0].weight.grad.fill_(float("nan"))
        run.step()

    with pytest.raises(ChaosError, match=r"stops at step 2: non-finite gradient from peer-0"):
        agent.run(script(agent, body, on_nonfinite="stop"))


def test_a_non_finite_step_is_skipped_and_says_so(agents: Make) -> None:
    agent = agents()

    def body(model: nn.Module, run: chaos.Session) -> None:
        one_step(model, run)
        before = model[0].weight.clone()
        model[0].weight.grad.fill_(float("nan"))
        run.step(1.5)
        assert run.steps == 2 and "peer-0" in run.last.skipped
        assert torch.equal(model[0].weight, before)
        assert not model[0].weight.grad.any()
        one_step(model, run)
        assert run.last.skipped == "" and run.last.step == 3 and run.last.wait_s > 0
        assert not torch.equal(model[0].weight, before)

    agent.run(script(agent, body))


def test_an_uncaught_error_ends_the_process_with_its_exit_code(agents: Make, tmp_path: Path) -> None:
    agent = agents()
    agent.at[3] = lambda a: a._gone(a.peers[0])
    file = tmp_path / "script.py"
    file.write_text(
        "import torch, chaos\n"
        "model = torch.nn.Linear(2, 1)\n"
        "with chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:\n"
        "    for _ in range(9):\n"
        "        model(torch.ones(3, 2)).mean().backward()\n"
        "        run.step()\n"
    )
    done = subprocess.run(
        [sys.executable, str(file)],
        env=os.environ | {"CHAOS_AGENT": agent.peers[0].path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.strip().startswith("chaos: error: the agent of this peer ended"), done.stderr


# --- the socket -------------------------------------------------------------------------------------


def pair() -> tuple[AgentLink, socket.socket]:
    worker, agent = socket.socketpair()
    return AgentLink(worker), agent


def frame(message: object) -> bytes:
    body = msgspec.msgpack.encode(message)
    return struct.pack("<I", len(body)) + body


def test_messages_arrive_in_pieces_and_together() -> None:
    link, agent = pair()
    declined = frame(Declined("a")) + frame(Declined("b"))
    sender = threading.Thread(target=lambda: [agent.send(declined[i : i + 1]) for i in range(len(declined))])
    sender.start()
    assert [link.receive()[0] for _ in range(2)] == [Declined("a"), Declined("b")]
    sender.join()
    link.close()
    agent.close()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"\xff\xff\xff\xff", RemoteProtocolError, "announced a message of 4294967295 bytes"),
        (b"\x01\0\0\0\xc1", RemoteProtocolError, "no message"),
        (frame(Finished(1)), RemoteProtocolError, "no message"),
        (frame(Proceed(1, "member", 1, chaos.core.types.DataState(), 0, False))[:-1], AgentLost, "ended"),
        (b"", AgentLost, "ended"),
    ],
)
def test_what_is_no_message_is_an_error(data: bytes, error: type[Exception], message: str) -> None:
    link, agent = pair()
    agent.send(data)
    agent.close()
    with pytest.raises(error, match=message):
        link.receive()
    link.close()


def test_descriptors_must_be_as_many_as_the_message_says() -> None:
    link, agent = pair()
    reader, writer = os.pipe()
    socket.send_fds(agent, [frame(Declined("x"))], [writer])
    os.close(writer)
    with pytest.raises(RemoteProtocolError, match="Declined came with 1 file descriptors instead of 0"):
        link.receive()
    link.close()
    assert os.read(reader, 1) == b"", "nobody holds the descriptor any more"
    os.close(reader)
    agent.close()


def test_no_agent_there() -> None:
    with pytest.raises(AgentLost, match=r"no agent answers at @nobody .*chaos run"):
        AgentLink.connect("@nobody")


def test_an_abstract_address() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0chaos-test-{os.getpid()}")
    listener.listen()
    link = AgentLink.connect(f"@chaos-test-{os.getpid()}")
    link.send(Finished(4))
    server, _ = listener.accept()
    assert server.recv(1000) == frame(Finished(4))
    for end in (server, listener):
        end.close()
    link.close()


def test_a_forked_data_loader_does_not_hold_the_socket_open() -> None:
    """Else the agent would not notice this worker's death."""
    link, agent = pair()
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    link.close()
    agent.settimeout(10)
    try:
        assert agent.recv(1) == b""
    finally:
        os.close(go)
        os.waitpid(child, 0)
        agent.close()


def test_threads_do_not_tear_each_others_messages() -> None:
    link, agent = pair()
    message = Failed("x" * 1_000_000)
    threads = [threading.Thread(target=lambda: [link.send(message) for _ in range(5)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    expected, received = frame(message), bytearray()
    while len(received) < 20 * len(expected):
        received += agent.recv(1 << 20)
    assert received == expected * 20
    for thread in threads:
        thread.join()
    link.close()
    agent.close()


# --- starting ---------------------------------------------------------------------------------------


def test_importing_chaos_does_not_import_torch() -> None:
    code = "import sys, chaos; assert 'torch' not in sys.modules; chaos.Session; assert 'torch' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_script_outside_of_chaos_run_starts_its_own_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    from chaos.train.launch import agent_address

    launcher = ModuleType("chaos.agent.launcher")
    launcher.start_agent = lambda env: "@" + env["CHAOS_JOIN"]
    monkeypatch.setitem(sys.modules, "chaos.agent.launcher", launcher)
    assert agent_address({"CHAOS_JOIN": "host:1"}) == "@host:1"
    assert agent_address({"CHAOS_JOIN": "host:1", "CHAOS_AGENT": "/a"}) == "/a"
    assert agent_address({}) is None


def test_the_first_message_says_what_this_worker_trains(agents: Make) -> None:
    agent = agents()
    agent.run(script(agent, one_step, wire="bf16"))
    first = agent.peers[0].log[0]
    assert isinstance(first, Register) and first.pid == os.getpid()
    assert first.layout.wire_bf16 and first.fingerprint.tensors[0].name == "0.weight"
    assert [b.applied for b in agent.peers[0].of(Boundary)] == [0]
    assert agent.peers[0].of(Boundary)[0].compute_s > 0


def test_where_the_run_stands(agents: Make) -> None:
    agent = agents(founders=2)

    def body(model: nn.Module, run: chaos.Session) -> None:
        assert (run.steps, run.members, run.role, run.leaving) == (0, 2, "member", False)
        one_step(model, run)
        assert run.steps == 1 and run.last.weight == 2.0
        assert run.name.startswith("peer-") and run.peer == f"{int(run.name[-1]) + 1:016x}"

    agent.run(*[script(agent, body)] * 2)
