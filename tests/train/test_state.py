"""A snapshot makes another model the same, bit for bit, and keeps it the same from then on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from chaos.core.types import StateManifest
from chaos.train.buffers import AgreedBuffers
from chaos.train.errors import StateMismatch, Unsupported
from chaos.train.parts import Parts
from chaos.train.state import Training, copy_out, describe, digest, restore
from tests.train.reference import filled

Schedule = Callable[[torch.optim.Optimizer], object]


class Net(nn.Module):
    """A bit of everything: channels_last weights, BatchNorm, a frozen, a tied and an empty parameter, a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4)
        self.out, self.twin = nn.Linear(4, 4), nn.Linear(4, 4)
        self.twin.weight = self.out.weight
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.low = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.conv(x)).mean((2, 3))
        return self.twin(torch.tanh(self.out(hidden))).sum(1) + self.low.sum()


OPTIMIZERS: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam with a tensor for lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "adamw amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "groups": lambda p: torch.optim.RMSprop([{"params": p[:2], "lr": 0.1}, {"params": p[2:]}], centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
SCHEDULES: dict[str, Schedule | None] = {
    "none": None,
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=50),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4, 6]),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, threshold=0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.CosineAnnealingLR(o, 20)], [3]
    ),
}


def build(optimizer: str, schedule: str = "none", scaler: bool = False, seed: int = 3) -> Training:
    model = filled(Net(), seed)
    made = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    make_scheduler = SCHEDULES[schedule]
    scheduler = make_scheduler(made) if make_scheduler is not None else None
    grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2) if scaler else None
    parts = Parts(model)
    return Training(parts, AgreedBuffers(parts), made, scheduler, grad_scaler)


def train(training: Training, steps: int, seed: int) -> None:
    """Some updates on made-up data."""
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        loss = training.parts.model(torch.randn(6, 1, 4, 4, generator=source)).square().mean()
        training.optimizer.zero_grad()
        if training.scaler is None:
            loss.backward()
            training.optimizer.step()
        else:
            training.scaler.scale(loss).backward()
            training.scaler.step(training.optimizer)
            training.scaler.update()
        if isinstance(training.scheduler, lr_scheduler.ReduceLROnPlateau):
            training.scheduler.step(loss.item())
        elif training.scheduler is not None:
            training.scheduler.step()
    training.buffers.adopt()
    training.agree_on_groups()


def snapshot(training: Training, before: bytes = b"\xaa") -> tuple[StateManifest, bytearray]:
    """Of step 7 and seed 5, in memory that was filled with `before`."""
    manifest, tensors = describe(training, 7, 5)
    memory = bytearray(before * manifest.nbytes)
    copy_out(tensors, manifest, memory)
    return manifest, memory


def full_state(training: Training) -> dict:
    return {
        "model": training.parts.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scheduler": training.scheduler and training.scheduler.state_dict(),
        "scaler": training.scaler and training.scaler.state_dict(),
    }


def assert_equal(one: object, other: object, path: str = "state") -> None:
    """Equal values of equal types; tensors bit for bit."""
    assert type(one) is type(other), path
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape and one.device == other.device, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert set(one) == set(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{path}[{i}]")
    else:
        assert one == other, path


CASES = [(name, "none", False) for name in OPTIMIZERS] + [
    (name, schedule, schedule == "MultiStepLR")
    for name in ("sgd momentum", "adam", "adamw amsgrad")
    for schedule in SCHEDULES
    if schedule != "none"
]


@pytest.mark.parametrize(("optimizer", "schedule", "scaler"), CASES)
@pytest.mark.parametrize("trained", [0, 4], ids=["fresh", "trained"])
def test_round_trip_is_exact_and_training_goes_on_alike(
    optimizer: str, schedule: str, scaler: bool, trained: int
) -> None:
    """Into a model that is elsewhere: it may have more, less or other optimizer state."""
    donor, joiner = build(optimizer, schedule, scaler), build(optimizer, schedule, scaler, seed=4)
    train(donor, 5, seed=1)
    train(joiner, trained, seed=2)
    storage = {name: p.data_ptr() for name, p in joiner.parts.params.items()}
    manifest, memory = snapshot(donor)
    assert restore(joiner, manifest, memory) == 5
    assert_equal(full_state(joiner), full_state(donor))
    assert {name: p.data_ptr() for name, p in joiner.parts.params.items()} == storage
    assert joiner.parts.model.conv.weight.stride() == donor.parts.model.conv.weight.stride()
    assert snapshot(joiner, b"\x55") == (manifest, memory), "equal states make equal snapshots, to the last byte"
    train(donor, 3, seed=9)
    train(joiner, 3, seed=9)
    assert_equal(full_state(joiner), full_state(donor))
    assert digest(joiner, 8, 5) == digest(donor, 8, 5)


def test_a_snapshot_of_an_untrained_optimizer_clears_what_was_there() -> None:
    donor, joiner = build("adam"), build("adam")
    train(joiner, 2, seed=1)
    restore(joiner, *snapshot(donor))
    assert not any(joiner.optimizer.state.values())
    assert_equal(full_state(joiner), full_state(donor))


def test_what_the_snapshot_lacks_is_removed() -> None:
    donor, joiner = build("adam"), build("adam")
    train(donor, 2, seed=1)
    train(joiner, 2, seed=2)
    joiner.optimizer.state[joiner.parts.params["low"]]["trust"] = torch.ones(3)
    restore(joiner, *snapshot(donor))
    assert_equal(full_state(joiner), full_state(donor))


def test_state_that_fits_keeps_its_storage() -> None:
    donor, joiner = build("adam"), build("adam")
    train(donor, 2, seed=1)
    train(joiner, 2, seed=2)
    parameter = joiner.parts.params["out.weight"]
    before = joiner.optimizer.state[parameter]["exp_avg"].data_ptr()
    restore(joiner, *snapshot(donor))
    assert joiner.optimizer.state[parameter]["exp_avg"].data_ptr() == before


def test_optimizer_state_is_laid_out_like_its_parameter() -> None:
    donor, joiner = build("adam"), build("adam")
    train(donor, 1, seed=1)
    restore(joiner, *snapshot(donor))
    weight = joiner.parts.params["conv.weight"]
    assert joiner.optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert not joiner.optimizer.state[weight]["exp_avg"].requires_grad


def test_buffers_and_numbers_are_those_agreed_on_not_those_in_flux() -> None:
    donor, joiner = build("sgd momentum"), build("sgd momentum")
    train(donor, 2, seed=1)
    agreed = copy.deepcopy(full_state(donor))
    donor.parts.model(torch.randn(6, 1, 4, 4))
    donor.optimizer.param_groups[0]["lr"] = 99.0
    assert not torch.equal(donor.parts.model.norm.running_mean, agreed["model"]["norm.running_mean"])
    restore(joiner, *snapshot(donor))
    assert_equal(full_state(joiner), agreed)


def test_digests_see_every_byte() -> None:
    one, other = build("adam"), build("adam")
    train(one, 2, seed=1)
    train(other, 2, seed=1)
    assert digest(one, 2, 0) == digest(other, 2, 0)
    assert digest(one, 3, 0) != digest(one, 2, 0) and digest(one, 2, 1) != digest(one, 2, 0)
    other.optimizer.state[other.parts.params["low"]]["exp_avg_sq"][2] += 1e-3
    assert digest(one, 2, 0) != digest(other, 2, 0)


def changed(manifest: StateManifest, index: int, **values: object) -> StateManifest:
    entries = list(manifest.tensors)
    entries[index] = msgspec.structs.replace(entries[index], **values)
    return msgspec.structs.replace(manifest, tensors=tuple(entries))


MISFITS: dict[str, tuple[Callable[[StateManifest], StateManifest], str]] = {
    "shape": (lambda m: changed(m, 0, shape=(1, 3)), "'parameters/frozen' is float32 .* in the snapshot and"),
    "dtype": (lambda m: changed(m, 0, dtype="int32"), "'parameters/frozen' is int32"),
    "unknown dtype": (lambda m: changed(m, 0, dtype="complex64"), "dtype or size in the snapshot that can't be"),
    "size": (lambda m: changed(m, 0, nbytes=8), "dtype or size"),
    "offset": (lambda m: changed(m, 0, offset=2**40), "lies outside"),
    "odd offset": (lambda m: changed(m, 0, offset=3), "lies outside"),
    "missing": (lambda m: msgspec.structs.replace(m, tensors=m.tensors[1:]), "'parameters/frozen' is only in one"),
    "extra": (lambda m: changed(m, 0, name="parameters/other"), "is only in one"),
    "twice": (lambda m: changed(m, 1, name="parameters/frozen"), "twice"),
    "foreign optimizer state": (
        lambda m: changed(m, len(m.tensors) - 1, name="optimizer/frozen/step"),
        "optimizer state of 'frozen'",
    ),
    "scalars": (lambda m: msgspec.structs.replace(m, scalars=b"\xc1"), "scalars can't be read"),
    "other scalars": (lambda m: msgspec.structs.replace(m, scalars=b"\x01"), "is not a dict"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_snapshot_that_does_not_fit_is_refused_and_changes_nothing(name: str) -> None:
    donor, joiner = build("adam"), build("adam", seed=4)
    train(donor, 2, seed=1)
    train(joiner, 1, seed=2)
    before = copy.deepcopy(full_state(joiner))
    manifest, memory = snapshot(donor)
    change, message = MISFITS[name]
    with pytest.raises(StateMismatch, match=message):
        restore(joiner, change(manifest), memory)
    assert_equal(full_state(joiner), before)


@pytest.mark.parametrize(
    ("donor", "joiner", "message"),
    [
        (("adam", "OneCycleLR"), ("adam", "none"), "has a scheduler, the other has none"),
        (("adam", "OneCycleLR"), ("adam", "MultiStepLR"), "the scheduler has"),
        (("adam", "none", True), ("adam", "none"), "scaler, the other has none"),
        (("groups",), ("sgd",), "param groups"),
        (("sgd",), ("adam",), "param group 0 has"),
    ],
)
def test_other_optimizers_and_schedulers_are_refused(donor: tuple, joiner: tuple, message: str) -> None:
    with pytest.raises(StateMismatch, match=message):
        restore(build(*joiner), *snapshot(build(*donor)))


class Holder:
    def __init__(self) -> None:
        self.inner = object()

    def __call__(self, _: int) -> float:
        return 0.5


def test_state_that_is_no_plain_value_is_refused_by_name() -> None:
    training = build("sgd")
    training.scheduler = lr_scheduler.LambdaLR(training.optimizer, Holder())
    with pytest.raises(Unsupported, match=r"state\['scheduler'\]\['lr_lambdas'\]\[0\]\['inner'\] is a object"):
        describe(training, 0, 0)


def test_optimizer_state_outside_of_parameters_is_refused() -> None:
    training = build("sgd")
    training.optimizer.state["global"]["count"] = 1
    with pytest.raises(Unsupported, match="no parameter"):
        describe(training, 0, 0)
