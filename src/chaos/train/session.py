"""The public interface of a training script."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from chaos.core.errors import ChaosError, RemoteProtocolError
from chaos.core.worker_messages import Declined, Register, Welcome
from chaos.train.agent_link import AgentLink
from chaos.train.boundary import BoundaryLoop, Means
from chaos.train.buckets import Buckets, ResultRing
from chaos.train.buffers import AgreedBuffers
from chaos.train.data import Collate, Source
from chaos.train.errors import NotAdmitted
from chaos.train.extras import check_extras
from chaos.train.fingerprint import fingerprint
from chaos.train.gradients import Gradients
from chaos.train.launch import agent_address, yield_to_agents
from chaos.train.layout import plan_layout
from chaos.train.options import OnEvent, Options
from chaos.train.outcome import Outcome
from chaos.train.parts import Parts
from chaos.train.peer_run import PeerRun
from chaos.train.run import Run
from chaos.train.snapshots import Snapshots
from chaos.train.solo_run import SoloRun
from chaos.train.state import Training, describe
from chaos.train.supported import check
from chaos.train.update import Update


class Session(AbstractContextManager["Session"]):
    """One peer's part in a run: founds it or joins it, whichever the environment says.

        with chaos.Session(model, optimizer) as run:
            for epoch in run.epochs(3):
                for x, y in run.shard(dataset, batch_size=32):
                    loss = loss_fn(model(x), y)
                    loss.backward()
                    run.step(loss)

    Without an agent (`chaos run` starts one) the same script trains alone, as plain PyTorch.

    What the script does to a gradient is its own affair, as in plain PyTorch: with `accumulate=k` divide the
    loss by k before `backward`. Parameters change in `step` only: a change by hand reaches no other peer.

    Args:
        model: a module on one device; the result of `torch.compile` is fine.
        optimizer: over parameters of the model; its numbers (learning rate ...) follow the run.
        scheduler: stepped once with every update; `ReduceLROnPlateau` gets the mean loss of all peers.
        scaler: a `torch.amp.GradScaler` whose `scale(loss)` the script calls.
        max_grad_norm: clip the reduced gradient to this 2-norm.
        accumulate: micro-batches per step.
        seed: orders the samples, and seeds torch before each step; equal on all peers.
        wire: 'native', or 'bf16' to halve the traffic of float32 gradients.
        overlap: send gradients while backward runs, where that is safe.
        on_nonfinite: 'skip' a step whose gradient is not finite, or 'stop' the run.
        extras: by name, whatever else belongs to the state and has `state_dict` and `load_state_dict`, such as
            averaged weights. A joiner is given them, and refused if it has others.
        after_update: called after every update, also of those that a joiner catches up with. Extras may change
            here only, in the same way on every peer.
        on_event: called in `step` with each event of the run, at whatever peer: a line of the trace as a
            dictionary (docs/trace.md). Alone: with `commit` only. See `chaos.log_to_tensorboard`, `log_to_wandb`.

    Raises:
        ChaosError: in one line, what can't be trained together and what to do instead.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        scheduler: Any = None,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
        accumulate: int = 1,
        seed: int = 0,
        wire: str = "native",
        overlap: bool = True,
        on_nonfinite: str = "skip",
        extras: Mapping[str, Any] | None = None,
        after_update: Callable[[], None] | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._options = Options(
            max_grad_norm=max_grad_norm,
            accumulate=accumulate,
            seed=seed,
            wire=wire,
            overlap=overlap,
            on_nonfinite=on_nonfinite,
        )
        check(model, optimizer, scheduler, scaler)
        self._extras = dict(extras or {})
        check_extras(self._extras)
        self._after_update = after_update
        self._parts = Parts(model)
        self._optimizer, self._scheduler, self._scaler = optimizer, scheduler, scaler
        self._on_event = on_event
        self._run: Run | None = None

    def __enter__(self) -> Session:
        if self._run is not None:
            raise ChaosError("this session was entered already; make a new one")
        buffers = AgreedBuffers(self._parts)
        training = Training(self._parts, buffers, self._optimizer, self._scheduler, self._scaler, self._extras)
        describe(training, 0, self._options.seed)  # refuses now what a joiner could not be given later
        params = list(self._parts.trainable.values())
        update = Update(params, self._optimizer, self._scheduler, self._scaler, self._options.max_grad_norm)
        update.after = self._after_update
        address = agent_address(os.environ)
        if address is None:
            self._run = SoloRun(self._options, update, params, self._on_event)
        else:
            _exit_codes_of_errors()
            self._run = _join(AgentLink.connect(address), training, update, self._options, self._on_event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close(error)

    # --- the loop ----------------------------------------------------------------------------------------

    def epochs(self, count: int) -> Iterator[int]:
        """Epochs from the run's present one up to `count` (exclusive).

        A joiner starts at the run's epoch. A loop body that leaves its iterator early sees the same epoch
        again, with the samples that are left. Without `shard` and `private` the epochs are this peer's own.
        """
        return self._entered.epochs(count)

    def shard(self, dataset: Any, batch_size: int, collate_fn: Collate | None = None) -> Iterator[Any]:
        """Batches of a dataset that all peers have; each sample is used once per epoch by one of them.

        Yields at most `batch_size` samples at a time, collated as a `DataLoader` does. Ends when the epoch
        has ended on every peer; while others still compute, this peer's part is empty.
        """
        return self._entered.shard(Source.make(dataset, batch_size, collate_fn, "run.shard"))

    def private(self, dataset: Any, batch_size: int, collate_fn: Collate | None = None) -> Iterator[Any]:
        """Batches of a dataset that only this peer has, until every peer went through its own once."""
        return self._entered.private(Source.make(dataset, batch_size, collate_fn, "run.private"))

    def step(self, loss: Any = None, weight: float | None = None) -> None:
        """End a micro-batch; with the last of a step, reduce over the peers, update, and zero the gradients.

        Args:
            loss: mean loss of the micro-batch, for `last.loss` and `ReduceLROnPlateau`; float or scalar tensor.
            weight: of this micro-batch in the mean over peers. By default the number of samples the
                iterators handed out for it, or 1 without iterators. 0: this peer contributes nothing.

        Raises:
            ChaosError: the run stopped, or declined this peer.
            AgentLost: the agent of this peer ended.
            ValueError: `weight` differs from the one that already sent buckets carry.
        """
        self._entered.step(loss, weight)

    def no_sync(self) -> AbstractContextManager[None]:
        """In this block `backward` and `step` only add to the gradients."""
        return self._entered.no_sync()

    def sync(self, loss: Any = None, weight: float | None = None) -> None:
        """Reduce now: `p.grad` holds the gradient of all peers, unscaled, or None where nobody has one.

        The script may change it, the same way on every peer; the next `step()` then updates without
        reducing again. Arguments as in `step`. The price: others wait while a joiner is given the state, as
        results alone no longer tell it; and a peer without samples left is given batches that weigh nothing.
        """
        self._entered.sync(loss, weight)

    # --- where the run stands ----------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Applied steps, skipped ones included."""
        return self._entered.steps

    @property
    def members(self) -> int:
        """Number of peers that contribute to the present step."""
        return self._entered.members

    @property
    def peer(self) -> str:
        """This peer's id."""
        return self._entered.peer

    @property
    def name(self) -> str:
        """This peer's name."""
        return self._entered.name

    @property
    def role(self) -> str:
        """'member', 'learner' (still receiving the run's state) or 'solo'."""
        return self._entered.role

    @property
    def leaving(self) -> bool:
        """Whether this peer was asked to leave; iterators have ended or are about to."""
        return self._entered.leaving

    @property
    def last(self) -> Outcome:
        """The last step that had contributors: their mean loss, why it was skipped, seconds of waiting."""
        return self._entered.last

    @property
    def _entered(self) -> Run:
        if self._run is None:
            raise ChaosError("the session has not begun; use it as 'with chaos.Session(...) as run:'")
        return self._run


def _join(link: AgentLink, training: Training, update: Update, options: Options, on_event: OnEvent | None) -> PeerRun:
    """Register with the agent and wait until this worker may compute its first step."""
    plan = plan_layout(training.parts, options.wire == "bf16")
    identity = fingerprint(training, options)
    link.send(Register(os.getpid(), identity, plan.layout, on_event is not None))
    yield_to_agents(os.environ)
    welcome, fds = link.receive()
    if isinstance(welcome, Declined):
        raise NotAdmitted(welcome.reason)
    if not isinstance(welcome, Welcome):
        raise RemoteProtocolError(f"the agent answered a registration with {type(welcome).__name__}")
    buckets = Buckets(fds[0], plan, training.parts)
    ring = ResultRing(fds[1:], welcome.slots, welcome.disk_slots, welcome.slot_stride, plan.layout.nbytes)
    gradients = Gradients(buckets, training.parts.frozen)
    means = Means(buckets, training.buffers, gradients, ring, update, Snapshots(training, link.send))
    seed = (welcome.seed + options.seed) % 2**63
    return PeerRun(options, link, means, BoundaryLoop(link, means, welcome, seed, on_event), welcome.name)


def _exit_codes_of_errors() -> None:
    """A `ChaosError` that nobody catches ends the script with one line and its own exit code."""
    previous = sys.excepthook
    if getattr(previous, "reports_chaos_errors", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, ChaosError):
            previous(kind, error, trace)
            return
        if not isinstance(error, NotAdmitted):
            print(f"chaos: error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)

    hook.reports_chaos_errors = True  # type: ignore[attr-defined]
    sys.excepthook = hook
