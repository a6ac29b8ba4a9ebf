"""What this peer measures of itself, for people: its host, its worker, its links, and the state that it fetches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chaos.agent.shards import SHARD
from chaos.agent.transport.link import LinkInfo

SAMPLE_S = 2.0
"""Between two samples."""
SPARE_S = 10.0
"""The same where telling others has taken more than `SHARE` of what this peer sent."""
SHARE = 0.01


@dataclass
class Times:
    """Sums over the steps since the last sample, in seconds."""

    steps: int = 0
    compute: float = 0.0
    """The user's code."""
    waiting: float = 0.0
    """From its own part to the last one of the others."""
    sync: float = 0.0
    """From there, to the last byte of the result."""
    update: float = 0.0
    """Reading the result, clipping, the optimizer."""
    samples: float = 0.0


class Monitor:
    """The driver says what happens; `sample` makes of it the fields of a trace line."""

    def __init__(self) -> None:
        self._times = Times()
        self._loss: float | None = None
        self._since: float | None = None
        self._stands: tuple[int, float] | None = None
        """The step that the worker has computed, and when it was done."""
        self._known: tuple[int, float] | None = None
        """The last step of which a contribution came, and when the last one did."""

    def boundary(self, applied: int, compute_s: float, update_s: float, samples: float, now: float) -> None:
        """The worker has computed step `applied + 1`."""
        self._times.compute += compute_s
        self._times.update += update_s
        self._times.samples += samples
        self._stands = applied + 1, now

    def contribution(self, step: int, now: float) -> None:
        """A peer's part in this step is announced."""
        self._known = step, now

    def finished(self, step: int, now: float) -> None:
        """All bytes of the step's result are here."""
        if self._stands is None or self._stands[0] != step:
            return
        stood = self._stands[1]
        complete = max(stood, self._known[1]) if self._known is not None and self._known[0] == step else stood
        self._times.steps += 1
        self._times.waiting += complete - stood
        self._times.sync += max(now - complete, 0.0)

    def committed(self, loss: float | None) -> None:
        self._loss = loss if loss is not None else self._loss

    def sample(
        self, host: Mapping[str, Any], cards: list[dict[str, Any]], links: Mapping[str, LinkInfo],
        join: Mapping[str, Any] | None, spread_bytes: int, now: float,
    ) -> dict[str, Any]:  # fmt: skip
        """A line of kind `sample`; see docs/trace.md. `links`: by the name of the other end."""
        seconds = now - self._since if self._since is not None else 0.0
        times, self._times, self._since = self._times, Times(), now
        return {
            "host": dict(host),
            "gpus": cards,
            "worker": _worker(times, seconds, self._loss),
            "links": {name: _link(info) for name, info in links.items()},
            "join": dict(join) if join is not None else None,
            "spread_bytes": spread_bytes,
        }


def _worker(times: Times, seconds: float, loss: float | None) -> dict[str, Any]:
    """Per step, and per second."""
    each = {
        f"{name}_s": round(getattr(times, name) / times.steps, 6) if times.steps else None
        for name in ("compute", "waiting", "sync", "update")
    }
    rate = round(times.samples / seconds, 3) if seconds > 0 else None
    return {"steps": times.steps, "samples_per_s": rate, "loss": loss, **each}


def _link(info: LinkInfo) -> dict[str, Any]:
    state = min(info.kinds_out.get(SHARD, 0), info.bulk_out)
    return {
        "rtt_s": round(info.rtt_s, 6),
        "rate": int(info.rate_bps),
        "out": {"control": info.control_out, "gradients": info.bulk_out - state, "state": state},
    }
