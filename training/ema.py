"""Exponential moving averages of parameters."""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


class ExponentialMovingAverage:
    """Averages of parameters, in the order of parameters().

    The decay of update n (counted from 1) is min(decay, (1 + n) / (10 + n)), so that the average
    follows quickly at first.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.shadow = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter]) -> None:
        """Move the averages towards parameters."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in parameters], 1 - decay)

    @torch.no_grad()
    def averaged(self, module: Network) -> Network:
        """Return a copy of module with the averages, in evaluation mode and without gradients."""
        twin = copy.deepcopy(module).eval().requires_grad_(False)
        for parameter, average in zip(twin.parameters(), self.shadow, strict=True):
            parameter.copy_(average)
        return twin

    def state_dict(self) -> dict[str, Any]:
        """Return decay, update count and averages (not copied)."""
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow": self.shadow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load averages and count, not the decay; ValueError if the shapes differ."""
        loaded: list[Tensor] = state["shadow"]
        if [t.shape for t in loaded] != [t.shape for t in self.shadow]:
            raise ValueError("the averages belong to a different network")
        self.num_updates = state["num_updates"]
        for average, value in zip(self.shadow, loaded, strict=True):
            average.copy_(value)
