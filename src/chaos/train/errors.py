"""Errors that a training script can meet. Each message is one line and says what to do."""

from __future__ import annotations

from chaos.core.errors import ChaosError, Refused


class NotAdmitted(Refused):
    """The agent says that this peer can't take part. It has printed why, so nobody else has to."""


class AgentLost(ChaosError):
    """The agent process of this peer ended, so nothing more can be sent to or received from the run."""

    exit_code = 3


class Unsupported(ChaosError, ValueError):
    """Model, optimizer, scheduler or dataset are of a kind that can't be trained together (yet)."""


class WeightMismatch(ChaosError, ValueError):
    """A gradient bucket was already sent with another weight than `run.step` was given."""


class LateGradient(ChaosError, RuntimeError):
    """A gradient arrived in a bucket that had already been handed to the agent."""


class StateMismatch(ChaosError):
    """A snapshot does not fit this worker's model, optimizer, scheduler or scaler."""
