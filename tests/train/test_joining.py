"""Workers whose state comes from others: joiners, and members that were cut off."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import chaos
from chaos.core.errors import ChaosError
from chaos.core.worker_messages import (
    Boundary,
    Finished,
    PrepareSnapshot,
    SnapshotDeclined,
    SnapshotMissed,
    SnapshotPrepared,
    SnapshotTaken,
    StateLoaded,
    StateRefused,
    TakeSnapshot,
)
from chaos.train import snapshots
from chaos.train.scalars import unpack
from tests.train.fake_agent import FakeAgent
from tests.train.reference import Points, filled, make_mlp

Make = Callable[..., FakeAgent]
DATA = Points(60)


class Normed(nn.Module):
    """BatchNorm, so that a forward changes more than gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(x))


def make() -> nn.Module:
    return filled(Normed().double())


def training(model: nn.Module) -> tuple[torch.optim.Optimizer, object]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=200)


def loop(agent: FakeAgent, index: int, epochs: int, at_step: Callable[[chaos.Session], None], seed: int = 3) -> tuple:
    """A script's whole life: its model, optimizer, epochs seen, and roles in which it computed."""
    model = filled(Normed().double(), seed)
    optimizer, scheduler = training(model)
    seen: list[int] = []
    roles: list[str] = []
    with agent.worker(index, model, optimizer, scheduler=scheduler) as run:
        for epoch in run.epochs(epochs):
            seen.append(epoch)
            for x, y in run.shard(DATA, 4):
                roles.append(run.role)
                loss = F.mse_loss(model(x), y)
                loss.backward()
                run.step(loss)
                at_step(run)
    return model, optimizer, seen, roles


def test_a_joiner_becomes_equal_and_stays_equal(agents: Make) -> None:
    agent = agents(founders=2, joiners=1)
    start = threading.Event()

    def founder(index: int) -> tuple:
        def at_step(run: chaos.Session) -> None:
            if run.steps >= 5:
                start.set()
                agent.state_given.wait(0.2)

        return loop(agent, index, 6, at_step)

    def joiner(index: int) -> tuple:
        assert start.wait(30)
        return loop(agent, index, 6, lambda _: None, seed=11)

    results = agent.run(founder, founder, joiner)
    model, optimizer, seen, roles = results[2]
    for other, its_optimizer, _, _ in results[:2]:
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        )
        assert optimizer.param_groups[0]["lr"] == its_optimizer.param_groups[0]["lr"]
    digests = {peer.of(Finished)[0].state for peer in agent.peers}
    assert len(digests) == 1 and len(digests.pop()) == 32
    assert roles[0] == "learner" and roles.count("learner") == 1 and "member" in roles
    assert seen == sorted(seen) and seen[-1] == 5
    assert any(len(parts) == 3 for parts in agent.contributions.values())
    first = agent.peers[2].of(Boundary)[0]
    assert first.applied == 0 and first.contribution is None
    joined = agent.peers[2].of(StateLoaded)[0].step
    assert joined >= 5


def test_a_warm_step_uses_no_samples_and_leaves_no_trace(agents: Make) -> None:
    """A learner that isn't promoted yet warms up again; its BatchNorm statistics stay the run's."""
    agent = agents(founders=1, joiners=1)
    agent.promote = False
    start, warmed = threading.Event(), threading.Event()
    batches: list[torch.Tensor] = []

    def founder(index: int) -> tuple:
        def at_step(run: chaos.Session) -> None:
            start.set()
            if run.steps > 8:
                assert warmed.wait(30)
                agent.promote = True

        return loop(agent, index, 3, at_step)

    def joiner(index: int) -> tuple:
        assert start.wait(30)
        model = filled(Normed().double(), 11)
        optimizer, scheduler = training(model)
        with agent.worker(index, model, optimizer, scheduler=scheduler) as run:
            for _ in run.epochs(3):
                for x, y in run.shard(DATA, 4):
                    if run.role == "learner":
                        batches.append(x)
                        updates = sum(not agent.commits[s][0].skip for s in range(1, run.steps + 1))
                        assert model.norm.num_batches_tracked == updates, "warm-ups must not count"
                    F.mse_loss(model(x), y).backward()
                    if len(batches) == 3:
                        warmed.set()
                    run.step()
        return model, optimizer

    one, other = agent.run(founder, joiner)
    assert len(batches) >= 3 and all(torch.equal(b, batches[0]) for b in batches)
    assert all(
        torch.equal(a, b) for a, b in zip(one[0].state_dict().values(), other[0].state_dict().values(), strict=True)
    )
    assert all(b.contribution is None for b in agent.peers[1].of(Boundary)[:3])


def test_a_joiner_after_the_last_epoch_leaves_with_the_runs_state(agents: Make) -> None:
    agent = agents(founders=1, joiners=1)
    start, joined = threading.Event(), threading.Event()

    def founder(index: int) -> nn.Module:
        model = make()
        optimizer, scheduler = training(model)
        with agent.worker(index, model, optimizer, scheduler=scheduler) as run:
            for _ in run.epochs(1):
                for x, y in run.shard(DATA, 4):
                    F.mse_loss(model(x), y).backward()
                    run.step()
            start.set()
            while not joined.is_set():
                run.step(weight=0)
        return model

    def joiner(index: int) -> nn.Module:
        assert start.wait(30)
        model = filled(Normed().double(), 11)
        optimizer, scheduler = training(model)
        with agent.worker(index, model, optimizer, scheduler=scheduler) as run:
            assert list(run.epochs(1)) == []
            joined.set()
        return model

    one, other = agent.run(founder, joiner)
    assert torch.equal(one.out.weight, other.out.weight)


def test_a_learner_that_calls_sync_gets_through(agents: Make) -> None:
    agent = agents(founders=1, joiners=1)
    start = threading.Event()

    def script(index: int) -> nn.Module:
        if index:
            assert start.wait(30)
        model = filled(Normed().double(), 3 + index)
        with agent.worker(index, model, torch.optim.Adam(model.parameters(), lr=0.01)) as run:
            for _ in run.epochs(2):
                for x, y in run.shard(DATA, 4):
                    F.mse_loss(model(x), y).backward()
                    run.sync()
                    steps = run.steps
                    run.step()
                    assert run.steps - steps in (0, 1)
                    start.set()
                    agent.state_given.wait(0.2)
        return model

    one, other = agent.run(script, script)
    assert torch.equal(one.out.weight, other.out.weight)


def test_a_member_whose_state_went_wrong_is_overwritten_and_brought_up_to_date(agents: Make) -> None:
    agent = agents()
    agent.at[4] = order(3)

    def script(index: int) -> None:
        model = make()
        optimizer, scheduler = training(model)
        with agent.worker(index, model, optimizer, scheduler=scheduler) as run:
            for i, (x, y) in enumerate(run.shard(DATA, 4)):
                F.mse_loss(model(x), y).backward()
                if i == 8:
                    before = [tensor.clone() for tensor in run._run._means.snapshots._training.parts.params.values()]
                    with torch.no_grad():
                        model.out.weight.fill_(77.0)
                    manifest = agent.peers[0].of(SnapshotTaken)[0].manifest
                    agent.load_for[0] = (manifest, agent.peers[0].snapshot[: manifest.nbytes])
                run.step()
                if i == 8:
                    break
            assert agent.peers[0].of(StateLoaded) == [StateLoaded(3)]
            assert run.steps == agent.finished > 8
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    agent.run(script)


def test_a_peer_that_was_cut_off_finds_its_place_in_the_runs_epoch(agents: Make) -> None:
    """It waits in the middle of epoch 0 while the others go on to epoch 2; then it gets their state."""
    agent = agents(founders=2)

    def heal_in_epoch_2(agent: FakeAgent) -> None:
        if agent.data.epoch < 2:
            agent.at[agent.finished + 2] = heal_in_epoch_2
        else:
            agent.heal(1)

    def cut(agent: FakeAgent) -> None:
        agent.cut_off(1)
        agent.at[agent.finished + 2] = heal_in_epoch_2

    agent.at[5] = cut

    def at_step(_: chaos.Session) -> None:
        if agent.data.epoch >= 2:
            agent.state_given.wait(0.2)

    results = agent.run(*[lambda index: loop(agent, index, 5, at_step)] * 2)
    assert results[0][2] == [0, 1, 2, 3, 4]
    assert results[1][2] in ([0, 2, 3, 4], [0, 3, 4])
    assert agent.peers[1].of(StateLoaded)
    assert len({peer.of(Finished)[0].state for peer in agent.peers}) == 1


def test_a_state_that_does_not_fit_is_refused_with_the_reason(agents: Make) -> None:
    agent = agents(founders=1, joiners=1)
    start = threading.Event()

    def founder(index: int) -> None:
        def at_step(_: chaos.Session) -> None:
            start.set()
            agent.state_given.wait(0.2)

        loop(agent, index, 4, at_step)

    def joiner(index: int) -> None:
        assert start.wait(30)
        model = make_mlp()
        with agent.worker(index, model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
            for x, y in run.shard(DATA, 4):
                F.mse_loss(model(x), y).backward()
                run.step()

    with pytest.raises(
        chaos.Refused, match=r"is only in one of the snapshot and this worker's model|on one side only|scheduler"
    ):
        agent.run(founder, joiner)
    assert agent.peers[1].of(StateRefused)


# --- snapshots --------------------------------------------------------------------------------------


def steps(agent: FakeAgent, count: int, body: Callable[[chaos.Session], None] = lambda _: None) -> nn.Module:
    def script(index: int) -> nn.Module:
        model = make()
        optimizer, scheduler = training(model)
        with agent.worker(index, model, optimizer, scheduler=scheduler) as run:
            for _ in range(count):
                F.mse_loss(model(DATA.x[:8]), DATA.y[:8]).backward()
                body(run)
                run.step()
        return model

    return agent.run(script)[0]


def order(step: int, prepare: bool = True) -> Callable[[FakeAgent], None]:
    def tell(agent: FakeAgent) -> None:
        if prepare:
            agent.tell(agent.peers[0], PrepareSnapshot())
        agent.tell(agent.peers[0], TakeSnapshot(step))

    return tell


@pytest.mark.parametrize("when", [2, 3, 4])
def test_a_snapshot_is_of_the_step_that_was_asked_for(agents: Make, when: int) -> None:
    """Asked for at the boundary of step 3: the present state, or one that is yet to come, or one that is past."""
    agent = agents()
    agent.at[3 + 1] = order(when)

    def tamper(run: chaos.Session) -> None:
        """The script sets a rate by hand; it is agreed on only with the next commit."""
        if run.steps == 3 == when:
            run._run._means.snapshots._training.optimizer.param_groups[0]["lr"] = 5.0

    model = steps(agent, 8, tamper)
    peer = agent.peers[0]
    if when == 2:
        assert peer.of(SnapshotMissed) == [SnapshotMissed(2, 3)] and not peer.of(SnapshotTaken)
        return
    (taken,) = peer.of(SnapshotTaken)
    assert taken.manifest.step == when and taken.stall_s >= 0
    expected = steps(agents(), when)
    entry = next(e for e in taken.manifest.tensors if e.name == "parameters/out.weight")
    weight = torch.frombuffer(bytearray(peer.snapshot[entry.offset : entry.offset + entry.nbytes]), dtype=torch.float64)
    assert torch.equal(weight, expected.out.weight.flatten()) and not torch.equal(weight, model.out.weight.flatten())
    (group,) = unpack(taken.manifest.scalars)["groups"]
    schedule = training(make())[1]
    for _ in range(when):
        schedule.optimizer.step()
        schedule.step()
    assert group["lr"] == schedule.get_last_lr()[0], "not what the script made of it since"
    entry = next(e for e in taken.manifest.tensors if e.name == "buffers/norm.running_mean")
    mean = torch.frombuffer(bytearray(peer.snapshot[entry.offset : entry.offset + entry.nbytes]), dtype=torch.float64)
    assert torch.equal(mean, expected.norm.running_mean), "not what the forward of the next step made of it"


def test_snapshot_memory_is_prepared_once_and_grows_when_needed(agents: Make) -> None:
    """Prepared before the first update, there is no optimizer state to make room for."""
    agent = agents()
    agent.at[1] = lambda a: a.tell(a.peers[0], PrepareSnapshot())
    agent.at[3] = order(2, prepare=False)
    agent.at[5] = order(4)

    def script(index: int) -> None:
        model = filled(nn.Sequential(nn.Linear(4, 2000), nn.Linear(2000, 1)).double())
        with agent.worker(index, model, torch.optim.Adam(model.parameters())) as run:
            for _ in range(6):
                F.mse_loss(model(DATA.x), DATA.y).backward()
                run.step()

    agent.run(script)
    sizes = [m.nbytes for m in agent.peers[0].of(SnapshotPrepared)]
    taken = [m.manifest.nbytes for m in agent.peers[0].of(SnapshotTaken)]
    assert sizes[0] < taken[0] <= sizes[1] == sizes[2] and len(sizes) == 3


def test_an_update_waits_for_the_copy_and_reports_the_stall(agents: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy is held until the worker has begun to wait for it: the update may not overtake it."""
    agent, real_copy, copier = agents(), snapshots.copy_out, {}

    def late_copy(*args: object) -> None:
        while copier["snapshots"]._waiting_since is None:
            assert copier["patience"].wait(0.001) is False and time.monotonic() < copier["deadline"]
        real_copy(*args)

    def watch(run: chaos.Session) -> None:
        copier.update(snapshots=run._run._means.snapshots)

    copier.update(patience=threading.Event(), deadline=time.monotonic() + 30)
    monkeypatch.setattr(snapshots, "copy_out", late_copy)
    agent.at[4] = order(3)
    steps(agent, 6, watch)
    (taken,) = agent.peers[0].of(SnapshotTaken)
    assert taken.stall_s > 0
    monkeypatch.undo()
    expected = steps(agents(), 3)
    entry = next(e for e in taken.manifest.tensors if e.name == "parameters/out.weight")
    memory = agent.peers[0].snapshot
    weight = torch.frombuffer(bytearray(memory[entry.offset : entry.offset + entry.nbytes]), dtype=torch.float64)
    assert torch.equal(weight, expected.out.weight.flatten())


def test_a_failed_copy_reaches_the_script(agents: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise ChaosError("the device is lost")

    monkeypatch.setattr(snapshots, "copy_out", fail)
    agent = agents()
    agent.at[2] = order(1)
    with pytest.raises(ChaosError, match="the device is lost"):
        steps(agent, 4)


@pytest.mark.parametrize("prepare", [True, False])
def test_without_memory_for_a_snapshot_the_training_goes_on(
    agents: Make, monkeypatch: pytest.MonkeyPatch, prepare: bool
) -> None:
    monkeypatch.setattr(snapshots, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=100)))
    agent = agents()
    agent.at[2] = order(2, prepare)
    steps(agent, 4)
    declined = agent.peers[0].of(SnapshotDeclined)
    assert declined and "no memory for a snapshot" in declined[0].reason and "free some" in declined[0].reason
    assert not agent.peers[0].of(SnapshotTaken)
