"""What can't be trained together is refused in one line; what is the same has the same fingerprint and layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

import chaos
from chaos.core.errors import ChaosError
from chaos.train import layout
from chaos.train.buffers import AgreedBuffers
from chaos.train.fingerprint import fingerprint
from chaos.train.layout import is_dense, plan_layout
from chaos.train.options import Options
from chaos.train.parts import Parts
from chaos.train.state import Training
from tests.train.reference import filled, make_mlp


class DTensor(torch.Tensor):
    """Stands for any tensor subclass."""


def mlp_with(parameter: object) -> nn.Module:
    model = make_mlp()
    model._parameters["extra"] = parameter
    return model


def subclassed() -> nn.Module:
    return mlp_with(nn.Parameter(torch.zeros(2).as_subclass(DTensor)))


class FullyShardedDataParallel(nn.Sequential):
    """Stands for torch's, which needs a process group."""


class Stateful(SGD):
    def state_dict(self) -> dict:
        return super().state_dict() | {"rounds": 3}


def sgd(model: nn.Module, **options: object) -> torch.optim.Optimizer:
    return SGD(model.parameters(), lr=0.1, **options)


def session(model: nn.Module, optimizer: object = None, **options: object) -> chaos.Session:
    return chaos.Session(model, sgd(model) if optimizer is None else optimizer, **options)


MODEL = make_mlp()
CASES = {
    "no module": (lambda: session(len, sgd(MODEL)), "model must be a torch.nn.Module"),
    "FSDP": (lambda: session(FullyShardedDataParallel(make_mlp())), "bare module"),
    "tensor subclass": (lambda: session(subclassed()), "'extra' is a DTensor"),
    "lazy": (lambda: session(nn.LazyLinear(3), sgd(MODEL)), "lazy module"),
    "complex": (lambda: session(mlp_with(nn.Parameter(torch.zeros(2, dtype=torch.complex64)))), "'extra' is complex64"),
    "devices": (lambda: session(mlp_with(nn.Parameter(torch.zeros(2, device="meta")))), "several devices"),
    "sparse gradients": (lambda: session(nn.Embedding(3, 2, sparse=True)), "sparse=False"),
    "frozen": (lambda: session(make_mlp().requires_grad_(False)), "no parameter of the model requires"),
    "several optimizers": (lambda: session(MODEL, [sgd(MODEL), sgd(MODEL)]), "several optimizers"),
    "no optimizer": (lambda: session(MODEL, "sgd"), "must be a torch.optim.Optimizer, not str"),
    "closure": (lambda: session(MODEL, torch.optim.LBFGS(MODEL.parameters())), "LBFGS needs a closure"),
    "SparseAdam": (lambda: session(MODEL, torch.optim.SparseAdam(list(MODEL.parameters()))), "use Adam"),
    "capturable": (lambda: session(MODEL, Adam(MODEL.parameters(), capturable=True)), "capturable=True"),
    "foreign parameter": (lambda: session(make_mlp(), sgd(MODEL)), r"shape \(8, 4\) that is not in the model"),
    "hidden state": (lambda: session(MODEL, Stateful(MODEL.parameters())), "outside of state and param_groups"),
    "scheduler": (lambda: session(MODEL, scheduler=3), "scheduler must be"),
    "other's scheduler": (
        lambda: session(MODEL, scheduler=torch.optim.lr_scheduler.StepLR(sgd(MODEL), 1)),
        "belongs to another optimizer",
    ),
    "scaler": (lambda: session(MODEL, scaler=2.0), "scaler must be a torch.amp.GradScaler, not float"),
    "accumulate": (lambda: session(MODEL, accumulate=0), "accumulate must be a whole number from 1, not 0"),
    "max_grad_norm": (lambda: session(MODEL, max_grad_norm=-1), "max_grad_norm must be a positive number"),
    "seed": (lambda: session(MODEL, seed=-1), "seed must be"),
    "wire": (lambda: session(MODEL, wire="int8"), "wire must be 'native' or 'bf16', not 'int8'"),
    "on_nonfinite": (lambda: session(MODEL, on_nonfinite="ignore"), "must be 'skip' or 'stop', not 'ignore'"),
    "not entered": (lambda: session(MODEL).steps, "use it as 'with chaos.Session"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_line(name: str) -> None:
    build, message = CASES[name]
    with pytest.raises(ChaosError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_parameter_twice_in_the_optimizer_is_refused() -> None:
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = SGD([MODEL[0].weight, MODEL[0].weight], lr=0.1)
    with pytest.raises(ChaosError, match=r"'0.weight' is in the optimizer twice"):
        session(MODEL, optimizer)


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        chaos.Session(MODEL, sgd(MODEL), None)


def test_a_sparse_gradient_that_appears_later_is_refused(agents: Callable) -> None:
    agent = agents()
    table = nn.Parameter(torch.zeros(3, 2).double())
    model = nn.Module()
    model.table = table

    def script(index: int) -> None:
        with agent.worker(index, model, SGD([table], lr=0.1)) as run:
            table.grad = None
            nn.functional.embedding(torch.tensor([1]), table, sparse=True).sum().backward()
            run.step()

    with pytest.raises(ChaosError, match="'table' got a sparse gradient"):
        agent.run(script)


def test_a_parameter_unfrozen_later_is_refused(agents: Callable) -> None:
    """Its gradient would stay on this peer, and the peers would differ."""
    agent, model = agents(), make_mlp()
    model[0].weight.requires_grad_(False)

    def script(index: int) -> None:
        with agent.worker(index, model, sgd(model)) as run:
            model[0].weight.requires_grad_(True)
            model(torch.ones(2, 4).double()).sum().backward()
            run.step()

    with pytest.raises(ChaosError, match=r"'0.weight' did not require a gradient"):
        agent.run(script)


# --- fingerprint ------------------------------------------------------------------------------------


def print_of(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options: object) -> object:
    parts = Parts(model)
    return fingerprint(Training(parts, AgreedBuffers(parts), optimizer or sgd(model), None, None), Options(**options))


def test_the_same_script_has_the_same_fingerprint() -> None:
    model = make_mlp()
    assert print_of(make_mlp()) == print_of(make_mlp())
    assert print_of(torch.compile(model, backend="eager"), sgd(model)) == print_of(make_mlp())
    assert "+" not in print_of(model).torch
    assert print_of(model, SGD(model.parameters(), lr=0.7, momentum=0.2)) == print_of(make_mlp())


def test_what_makes_results_differ_makes_fingerprints_differ() -> None:
    base = print_of(make_mlp())
    model, strided, tied = make_mlp(), make_mlp(), make_mlp()
    strided[0].weight = nn.Parameter(strided[0].weight.detach().t().contiguous().t())
    tied[2].bias = nn.Parameter(torch.zeros(1).double())
    tied.register_parameter("same", tied[2].bias)
    groups = [{"params": [p]} for p in model.parameters()]
    prints = [
        base,
        print_of(make_mlp(features=5)),
        print_of(make_mlp(dtype=torch.float32)),
        print_of(strided),
        print_of(tied),
        print_of(model, SGD(model.parameters(), foreach=False)),
        print_of(model, AdamW(model.parameters())),
        print_of(model, AdamW(model.parameters(), amsgrad=True)),
        print_of(model, SGD(groups)),
        print_of(model, SGD(groups[::-1])),
        print_of(model, accumulate=2),
        print_of(model, max_grad_norm=1.0),
        print_of(model, seed=1),
        print_of(model, wire="bf16"),
        print_of(model, on_nonfinite="stop"),
    ]
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])
    assert "on_nonfinite=stop" in prints[-1].options
    assert [set(pair) for pair in print_of(tied).tied] == [{"same", "2.bias"}]


# --- layout -----------------------------------------------------------------------------------------


def test_buckets_go_backwards_and_segments_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BUCKET_BYTES", 3000)
    layers = [nn.Linear(10, 20), nn.Linear(20, 3).bfloat16(), nn.Linear(3, 30), nn.BatchNorm1d(30), nn.Linear(30, 7)]
    plan = plan_layout(Parts(filled(nn.Sequential(*layers))), wire_bf16=True)
    segments = plan.layout.segments
    assert [(s.dtype, s.op) for s in segments] == [
        ("float32", "mean"),
        ("bfloat16", "mean"),
        ("float32", "mean"),
        ("int64", "max"),
    ]
    assert all(s.offset % 64 == 0 for s in segments)
    ends = [s.offset + s.nbytes for s in segments]
    assert all(end <= s.offset for end, s in zip(ends, segments[1:], strict=False)) and ends[-1] <= plan.layout.nbytes
    names = [place.name for place in plan.gradients if place.segment != 1]
    assert names[0] == "4.bias" and names[-1] == "0.weight"
    assert [p.name for p in plan.buffers] == ["3.running_mean", "3.running_var", "3.num_batches_tracked"]
    assert plan.layout.wire_bf16


def test_a_parameter_larger_than_a_bucket_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BUCKET_BYTES", 64)
    plan = plan_layout(Parts(make_mlp()), wire_bf16=False)
    assert [s.nbytes for s in plan.layout.segments] == [8, 64, 64, 256]


def test_buffers_outside_of_the_state_dict_and_constants_without_end_stay_out() -> None:
    model = make_mlp()
    model.register_buffer("cache", torch.ones(3), persistent=False)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model.register_buffer("mean", torch.ones(3))
    assert [place.name for place in plan_layout(Parts(model), False).buffers] == ["mean"]
    assert [place.name for place in Parts(model).buffers] == ["mask", "mean"]


def test_empty_parameters_and_buffers_take_no_place() -> None:
    model = mlp_with(nn.Parameter(torch.zeros(0)))
    model.register_buffer("none", torch.zeros(0))
    assert plan_layout(Parts(model), False).layout == plan_layout(Parts(make_mlp()), False).layout


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.zeros(3, 4), True),
        (torch.zeros(3, 4).t(), True),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), True),
        (torch.zeros(3, 1, 4)[:, ::2], True),
        (torch.zeros(()), True),
        (torch.zeros(3, 4)[:, :2], False),
        (torch.zeros(3, 1).expand(3, 4), False),
        (torch.zeros(8)[::2], False),
    ],
)
def test_dense_means_without_holes_and_overlap(tensor: torch.Tensor, dense: bool) -> None:
    assert is_dense(tensor) is dense
