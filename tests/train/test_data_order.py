"""Epochs, leases and idle steps, as a script sees them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chaos.core.errors import ChaosError
from chaos.core.types import SampleRange
from chaos.core.worker_messages import Boundary, DeclareData
from chaos.train.data import PrivatePasses, Source, merged, permutation, step_seed
from tests.train.fake_agent import FakeAgent
from tests.train.reference import Points, filled, make_mlp, used_indices

Make = Callable[..., FakeAgent]


class Numbers(torch.utils.data.Dataset):
    """Sample i is the number i."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def tiny() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(1, 1).double()
    return model, torch.optim.SGD(model.parameters(), lr=1e-4)


def loss_of(model: nn.Module, numbers: torch.Tensor) -> torch.Tensor:
    return model(numbers.double().unsqueeze(1)).mean()


def test_permutations_are_frozen() -> None:
    """Peers with other versions of numpy must get the same order."""
    assert permutation(8, seed=1, epoch=2).tolist() == [0, 2, 6, 5, 7, 3, 4, 1]
    assert sorted(permutation(100, 0, 0)) == list(range(100))
    assert permutation(100, 0, 0).tolist() != permutation(100, 0, 1).tolist()
    assert permutation(100, 0, 0).tolist() != permutation(100, 1, 0).tolist()
    assert 0 <= step_seed(1, "a" * 16, 5) < 2**63 and step_seed(1, "a", 5) != step_seed(1, "b", 5)


def test_every_sample_is_seen_once_per_epoch_by_somebody(agents: Make) -> None:
    agent = agents(founders=3)

    def script(index: int) -> dict[int, list[int]]:
        model, optimizer = tiny()
        seen: dict[int, list[int]] = {}
        with agent.worker(index, model, optimizer) as run:
            for epoch in run.epochs(3):
                for batch in run.shard(Numbers(50), 4):
                    assert len(batch) <= 4
                    seen.setdefault(epoch, []).extend(batch.tolist())
                    loss_of(model, batch).backward()
                    run.step()
        return seen

    parts = agent.run(*[script] * 3)
    for epoch in range(3):
        assert Counter(i for part in parts for i in part.get(epoch, [])) == Counter(range(50))
    assert all(len(part) == 3 for part in parts)


def test_what_was_handed_out_is_what_the_contribution_says(agents: Make) -> None:
    agent = agents(founders=2)
    batches: list[list[list[int]]] = [[], []]

    def script(index: int) -> None:
        model, optimizer = tiny()
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(2):
                for batch in run.shard(Numbers(30), 4):
                    batches[index].append(batch.tolist())
                    loss_of(model, batch).backward()
                    run.step()

    agent.run(script, script)
    said: list[list[list[int]]] = [[], []]
    for step, parts in sorted(agent.contributions.items()):
        used = iter(used_indices(agent, step, 30))
        for peer, c in parts.items():
            if c.ranges:
                said[int(peer, 16) - 1].append(next(used))
                assert c.weight == len(said[int(peer, 16) - 1][-1])
    assert [[sorted(b) for b in part] for part in said] == [[sorted(b) for b in part] for part in batches]


def test_an_epoch_ends_only_when_its_last_step_is_stable(agents: Make) -> None:
    """With acknowledgements three steps late, the iterator contributes nothing until they are there."""
    agent = agents(founders=2, lag=3)
    ends: list[list[tuple[int, int]]] = [[], []]

    def script(index: int) -> None:
        model, optimizer = tiny()
        with agent.worker(index, model, optimizer) as run:
            for epoch in run.epochs(2):
                for batch in run.shard(Numbers(20), 4):
                    loss_of(model, batch).backward()
                    run.step()
                ends[index].append((epoch, run.steps))

    agent.run(script, script)
    assert ends[0] == ends[1]
    for epoch, end in ends[0]:
        last = max(
            s for s, parts in agent.contributions.items() for c in parts.values() for r in c.ranges if r.epoch == epoch
        )
        assert end >= last + 3
        assert all(agent.commits[s][0].skip for s in range(last + 1, end + 1))


def test_a_peer_without_samples_contributes_nothing_and_stays_equal(agents: Make) -> None:
    agent = agents(founders=3)

    def script(index: int) -> tuple[int, nn.Module]:
        model, optimizer = tiny()
        with torch.no_grad():
            model.weight.fill_(1.0), model.bias.fill_(0.0)
        count = 0
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(1):
                for batch in run.shard(Numbers(4), 4):
                    count += len(batch)
                    loss_of(model, batch).backward()
                    run.step()
        return count, model

    results = agent.run(*[script] * 3)
    assert sorted(count for count, _ in results) == [0, 0, 4]
    assert len({model.weight.item() for _, model in results}) == 1


def test_data_is_declared_once_before_the_first_boundary(agents: Make) -> None:
    agent = agents()

    def script(index: int) -> None:
        model, optimizer = tiny()
        with agent.worker(index, model, optimizer, accumulate=3) as run:
            for _ in run.epochs(2):
                for batch in run.shard(Numbers(20), 2):
                    loss_of(model, batch).backward()
                    run.step()

    agent.run(script)
    log = agent.peers[0].log
    assert agent.peers[0].of(DeclareData) == [DeclareData("shard", 20, 12)]
    assert log.index(DeclareData("shard", 20, 12)) < log.index(agent.peers[0].of(Boundary)[0])
    assert {b.contribution.want for b in agent.peers[0].of(Boundary)} == {12}


def test_private_data_is_reshuffled_until_everybody_went_through_once(agents: Make) -> None:
    agent = agents(founders=2)

    def script(index: int) -> list[list[int]]:
        model, optimizer = tiny()
        size, seen = (6, 16)[index], []
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(2):
                seen.append([])
                for batch in run.private(Numbers(size), 4):
                    seen[-1] += batch.tolist()
                    loss_of(model, batch).backward()
                    run.step()
        return seen

    short, long = agent.run(script, script)
    assert [sorted(epoch) for epoch in long] == [list(range(16))] * 2
    for epoch in short:
        assert sorted(epoch[:6]) == list(range(6)) and sorted(epoch[6:12]) == list(range(6))
        assert epoch[:6] != epoch[6:12]
    done = [
        c.pass_done
        for step in sorted(agent.contributions)
        for p, c in agent.contributions[step].items()
        if p.endswith("1")
    ]
    assert done[:5] == [False, True, True, True, False]


def test_private_passes_count_with_their_last_batch() -> None:
    passes = PrivatePasses(Source.make(Numbers(5), 2, None, "x"), 0, 0, "p")
    batches = iter(passes)
    assert [(len(next(batches)), passes.passes) for _ in range(4)] == [(2, 0), (2, 0), (1, 1), (2, 1)]


def test_leaving_the_iterator_early_continues_the_same_epoch(agents: Make) -> None:
    agent = agents()

    def script(index: int) -> list[tuple[int, list[int]]]:
        model, optimizer = tiny()
        passes = []
        with agent.worker(index, model, optimizer) as run:
            for epoch in run.epochs(1):
                passes.append((epoch, []))
                for batch in run.shard(Numbers(16), 4):
                    passes[-1][1].extend(batch.tolist())
                    loss_of(model, batch).backward()
                    run.step()
                    if len(passes) == 1 and len(passes[0][1]) == 8:
                        break
        return passes

    (passes,) = agent.run(script)
    assert [epoch for epoch, _ in passes] == [0, 0]
    assert sorted(passes[0][1] + passes[1][1]) == list(range(16))


def test_an_epoch_without_a_step_is_an_error_rather_than_an_endless_loop(agents: Make) -> None:
    agent = agents()

    def script(index: int) -> None:
        with agent.worker(index, *tiny()) as run:
            for _ in run.epochs(1):
                run.shard(Numbers(16), 4)

    with pytest.raises(ChaosError, match="no step was taken in epoch 0"):
        agent.run(script)


def test_without_iterators_epochs_and_weights_are_the_scripts_own(agents: Make) -> None:
    agent, dataset = agents(founders=2), Points(24)

    def script(index: int) -> list[int]:
        model = make_mlp()
        loader = torch.utils.data.DataLoader(dataset, batch_size=4)
        epochs = []
        with agent.worker(index, model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
            for epoch in run.epochs(2):
                epochs.append(epoch)
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    run.step(weight=3 if index else None)
        return epochs

    assert agent.run(script, script) == [[0, 1], [0, 1]]
    assert [c.weight for c in agent.contributions[3].values()] == [1.0, 3.0]
    assert agent.commits[3][0].weight == 4.0


def test_weight_zero_is_an_empty_contribution(agents: Make) -> None:
    agent, dataset = agents(founders=2), Points(8)

    def script(index: int) -> nn.Module:
        model = make_mlp()
        with agent.worker(index, model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
            for i in range(2):
                loss = F.mse_loss(model(dataset.x), dataset.y) * (1 + 100 * index)
                loss.backward()
                run.step(loss, weight=0 if index else 8)
                assert run.last.loss == pytest.approx(agent.commits[i + 1][0].loss)
        return model

    one, other = agent.run(script, script)
    assert [c.empty for c in agent.contributions[1].values()] == [False, True]
    assert torch.equal(one[0].weight, other[0].weight)
    reference = make_mlp()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(reference(dataset.x), dataset.y).backward()
        optimizer.step()
    torch.testing.assert_close(one[0].weight, reference[0].weight, atol=1e-12, rtol=1e-12)


def test_buffers_of_a_peer_that_contributes_nothing_follow_the_others(agents: Make) -> None:
    """Its forward wrote statistics that nobody gets to see; so it must not keep them either."""
    agent, dataset = agents(founders=2), Points(8)

    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.private, self.out = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def script(index: int) -> nn.Module:
        model = filled(Norms().double())
        with agent.worker(index, model, torch.optim.SGD(model.parameters(), lr=0.1)) as run:
            for _ in range(3):
                x = model.private(dataset.x) if index else dataset.x
                F.mse_loss(model.out(model.used(x)), dataset.y).backward()
                run.step(weight=0 if index else 8)
        return model

    one, other = agent.run(script, script)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert one.used.num_batches_tracked == 3 and other.private.num_batches_tracked == 0


def test_being_asked_to_leave_ends_iterators_and_epochs(agents: Make) -> None:
    agent = agents(founders=2)
    agent.leave_at[1] = 4
    seen: list[list[int]] = [[], []]

    def script(index: int) -> tuple[int, bool]:
        model, optimizer = tiny()
        with agent.worker(index, model, optimizer) as run:
            for _ in run.epochs(2):
                for batch in run.shard(Numbers(40), 4):
                    seen[index] += batch.tolist()
                    loss_of(model, batch).backward()
                    run.step()
            return run.steps, run.leaving

    stayed, left = agent.run(script, script)
    assert left == (3, True) and stayed[1] is False
    assert Counter(seen[0] + seen[1]) == Counter(list(range(40)) * 2), "the leaver's leases went to the other"


def test_a_dataset_smaller_than_the_membership_is_refused(agents: Make) -> None:
    agent = agents(founders=3)

    def script(index: int) -> None:
        with agent.worker(index, *tiny()) as run:
            next(iter(run.shard(Numbers(2), 1)))

    with pytest.raises(ChaosError, match=r"dataset of 2 samples .* over 3 members"):
        agent.run(*[script] * 3)


def test_one_run_has_one_dataset(agents: Make) -> None:
    agent = agents()

    def script(index: int) -> None:
        with agent.worker(index, *tiny()) as run:
            run.shard(Numbers(20), 2)
            run.private(Numbers(21), 2)

    with pytest.raises(ChaosError, match=r"run.shard was called with 20 samples, and now run.private with 21"):
        agent.run(script)


@pytest.mark.parametrize(
    ("dataset", "batch_size", "message"),
    [
        (Numbers(0), 1, "empty dataset"),
        (Numbers(3), 0, "batch_size from 1, not 0"),
        (iter([1]), 1, "is a stream"),
    ],
)
def test_unusable_data_is_refused(dataset: object, batch_size: int, message: str) -> None:
    with pytest.raises(ChaosError, match=message):
        Source.make(dataset, batch_size, None, "run.shard")


def test_collate_and_bulk_access_are_the_datasets_own() -> None:
    class Bulk(Numbers):
        def __getitems__(self, indices: list[int]) -> list[int]:
            return [10 * i for i in indices]

    assert Source.make(Numbers(9), 2, lambda items: items, "x").batch([3, 4]) == [3, 4]
    assert Source.make(Bulk(9), 2, None, "x").batch([3, 4]).tolist() == [30, 40]


def test_ranges_are_merged_within_an_epoch() -> None:
    ranges = [SampleRange(0, 4, 6), SampleRange(0, 0, 4), SampleRange(1, 6, 8), SampleRange(0, 9, 10)]
    assert merged(ranges) == (SampleRange(0, 0, 6), SampleRange(0, 9, 10), SampleRange(1, 6, 8))


def test_torch_is_seeded_per_peer_and_step(agents: Make) -> None:
    """The same step of the same peer draws the same numbers, whatever was drawn before."""
    drawn: list[list[float]] = []
    for noise in range(2):
        agent = agents()

        def script(index: int, noise: int = noise, agent: FakeAgent = agent) -> list[float]:
            numbers = []
            model, optimizer = tiny()
            with agent.worker(index, model, optimizer) as run:
                for _ in range(3):
                    numbers.append(torch.rand(()).item())
                    torch.rand(noise)
                    loss_of(model, torch.ones(2)).backward()
                    run.step()
            return numbers

        drawn += agent.run(script)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3
