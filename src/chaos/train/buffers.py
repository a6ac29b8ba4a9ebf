"""The model's buffers (BatchNorm statistics, counters) as the run agreed on them."""

from __future__ import annotations

import torch
from torch import Tensor

from chaos.train.errors import Unsupported
from chaos.train.parts import Parts


class AgreedBuffers:
    """Copies of the persistent buffers as of the last applied step.

    A forward writes the live buffers before its step is final. Snapshots hold the agreed ones, and where
    no commit brings a new value (a skipped step, a warm-up) the live ones go back to them.
    """

    def __init__(self, parts: Parts) -> None:
        self._places = {place.name: place for place in parts.buffers}
        self._agreed = {name: place.tensor().detach().clone() for name, place in self._places.items()}

    def live(self, name: str) -> Tensor:
        """The buffer in the model. Raises `Unsupported` if the model gave it another shape."""
        tensor = self._places[name].tensor().detach()
        if tensor.shape != self._agreed[name].shape:
            raise Unsupported(
                f"buffer '{name}' changed its shape from {list(self._agreed[name].shape)} to {list(tensor.shape)}; "
                "register it with persistent=False to keep it out of the run"
            )
        return tensor

    def agreed(self, name: str) -> Tensor:
        """The buffer as of the last applied step; changes only by `set` and `adopt`."""
        return self._agreed[name]

    def differs(self, name: str) -> bool:
        """Whether forward wrote the buffer since the last step."""
        return not torch.equal(self.live(name), self._agreed[name])

    def set(self, name: str, value: Tensor) -> None:
        """The run agreed on a new value, flat and in any dtype that holds it."""
        self._agreed[name].copy_(value.view(self._agreed[name].shape))
        self.live(name).copy_(self._agreed[name])

    def revert(self) -> None:
        """Undo what forward wrote."""
        for name, agreed in self._agreed.items():
            self.live(name).copy_(agreed)

    def adopt(self) -> None:
        """The model was given a new state: its buffers are the agreed ones."""
        for name, agreed in self._agreed.items():
            agreed.copy_(self.live(name))
