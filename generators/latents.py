"""Latent codes."""

from typing import Literal

import torch
from torch import Tensor

LatentKind = Literal["gaussian", "uniform"]


def sample_latents(count: int, dim: int, *, kind: LatentKind, rng: torch.Generator) -> Tensor:
    """Random latents (count, dim), standard normal or uniform in [-1, 1].

    rng is a CPU stream, so that a seed is the same object on every device; so is the result.
    """
    if kind == "gaussian":
        return torch.randn(count, dim, generator=rng)
    return 2 * torch.rand(count, dim, generator=rng) - 1
