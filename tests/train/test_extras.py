"""What a script keeps beside its model: part of the state, of the fingerprint, and of every update."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import chaos
from chaos.core.admission import difference
from chaos.core.worker_messages import Finished, StateLoaded
from chaos.train.buffers import AgreedBuffers
from chaos.train.errors import StateMismatch, Unsupported
from chaos.train.fingerprint import fingerprint
from chaos.train.options import Options
from chaos.train.parts import Parts
from chaos.train.state import Training, copy_out, describe, digest, restore
from tests.train.reference import filled, make_mlp
from tests.train.test_joining import DATA, Make, Normed, training


class Tally:
    """An extra with tensors in lists and dicts, and plain values beside them."""

    def __init__(self, start: float = 0.0) -> None:
        self.best, self.count = start, 0
        self.recent = [torch.full((3,), start), {"last": torch.tensor(start), 7: (1, "x")}]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "count": self.count, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.count, self.recent = state["best"], state["count"], state["recent"]


def averaged(model: torch.nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def state_with(extras: dict[str, Any], seed: int = 3) -> Training:
    model = filled(make_mlp(), seed)
    parts = Parts(model)
    return Training(parts, AgreedBuffers(parts), torch.optim.SGD(model.parameters(), lr=0.1), None, None, extras)


def test_extras_travel_with_the_snapshot_bit_for_bit() -> None:
    one, other = Tally(1.5), Tally(2.5)
    source, target = state_with({"tally": one}), state_with({"tally": other}, seed=4)
    one.count, one.recent[0][1] = 9, 0.1
    manifest, tensors = describe(source, 7, 5)
    memory = bytearray(manifest.nbytes)
    copy_out(tensors, manifest, memory)
    assert digest(source, 7, 5) != digest(target, 7, 5)
    restore(target, manifest, memory)
    assert digest(source, 7, 5) == digest(target, 7, 5)
    assert (other.best, other.count, other.recent[1][7]) == (1.5, 9, (1, "x"))
    assert torch.equal(other.recent[0], one.recent[0]) and other.recent[0] is not one.recent[0]


def test_a_snapshot_with_other_extras_is_refused_before_anything_changes() -> None:
    source, target = state_with({"tally": Tally()}), state_with({}, seed=4)
    manifest, tensors = describe(source, 7, 5)
    memory = bytearray(manifest.nbytes)
    copy_out(tensors, manifest, memory)
    before = digest(target, 7, 5)
    with pytest.raises(StateMismatch, match="'tally' is on one side only"):
        restore(target, manifest, memory)
    assert digest(target, 7, 5) == before
    without, tensors = describe(state_with({}), 7, 5)
    with pytest.raises(StateMismatch, match="'tally'"):
        restore(source, without, bytearray(without.nbytes))


def test_a_joiner_with_other_extras_is_refused_by_name_and_shape() -> None:
    model = make_mlp()

    def of(extras: dict[str, Any]) -> Any:
        return fingerprint(state_with(extras), Options())

    run = of({"ema": averaged(model)})
    assert difference(run, of({"ema": averaged(make_mlp())})) == ""
    assert difference(run, of({})) == "the session lacks the extra 'ema', which the run's has (extras={...})"
    assert "an extra 'tally'" in difference(of({}), of({"tally": Tally()}))
    wider = averaged(torch.nn.Linear(3, 5))
    assert "extra 'ema/" in difference(run, of({"ema": wider}))


@pytest.mark.parametrize(
    ("extras", "words"),
    [({"a/b": Tally()}, "without '/'"), ({"x": object()}, "no state_dict"), ({"x": torch.zeros(2)}, "no state_dict")],
)
def test_what_can_be_no_extra_is_refused(extras: dict[str, Any], words: str) -> None:
    model = make_mlp()
    with pytest.raises(Unsupported, match=words):
        chaos.Session(model, torch.optim.SGD(model.parameters(), lr=0.1), extras=extras)


def test_a_joiner_gets_the_average_and_keeps_it_equal_through_replayed_updates(agents: Make) -> None:
    agent = agents(founders=2, joiners=1)
    start = threading.Event()

    def script(index: int, wait: bool, seed: int) -> tuple[torch.nn.Module, AveragedModel]:
        if wait:
            assert start.wait(30)
        model = filled(Normed().double(), seed)
        optimizer, scheduler = training(model)
        ema = averaged(model)
        extra = {"extras": {"ema": ema}, "after_update": lambda: ema.update_parameters(model)}
        with agent.worker(index, model, optimizer, scheduler=scheduler, **extra) as run:
            for _ in run.epochs(6):
                for x, y in run.shard(DATA, 4):
                    loss = F.mse_loss(model(x), y)
                    loss.backward()
                    run.step(loss)
                    if not wait and run.steps >= 5:
                        start.set()
                        agent.state_given.wait(0.2)
        return model, ema

    def founder(index: int) -> tuple[torch.nn.Module, AveragedModel]:
        return script(index, False, 3)

    results = agent.run(founder, founder, lambda index: script(index, True, 9))
    first = results[0][1].state_dict()
    for _, ema in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), first.values(), strict=True))
    assert len({peer.of(Finished)[0].state for peer in agent.peers}) == 1
    assert agent.peers[2].of(StateLoaded)[0].step >= 5
    assert int(first["n_averaged"]) > 10
    assert not torch.equal(results[0][0].state_dict()["out.weight"], first["module.out.weight"]), "it is an average"


def test_alone_the_session_makes_the_same_updates() -> None:
    model = make_mlp()
    ema, calls = averaged(model), []
    session = chaos.Session(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        extras={"ema": ema},
        after_update=lambda: calls.append(ema.update_parameters(model)),
    )
    with session as run:
        for _ in range(3):
            model(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
            run.step()
    assert len(calls) == 3 and int(ema.n_averaged) == 3
