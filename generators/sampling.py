"""Random streams and latent codes.

A stream depends on the numbers of its key alone: a resumed run draws what an uninterrupted one
draws, and an image does not depend on the others of its batch.
"""

from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from torch import Tensor

LatentKind = Literal["gaussian", "uniform"]


class Purpose(IntEnum):
    """Use of a stream of training, whose key is seed, rank, step and purpose."""

    SCENES = 0  # latents and camera poses, on the CPU: the same on every device
    SAMPLES = 1  # jitter and noise, on the device
    FLIPS = 2
    PREVIEWS = 3
    AUGMENTATION = 4  # on the device
    CAMERAS = 5  # comparisons of photos with generated images


def stream(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random stream on device, seeded by the numbers of key."""
    words = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0] >> np.uint64(1)))


def sample_latents(count: int, dim: int, *, kind: LatentKind, rng: torch.Generator) -> Tensor:
    """Draw latents (count, dim) on the CPU, standard normal or uniform in [-1, 1]."""
    if kind == "gaussian":
        return torch.randn(count, dim, generator=rng)
    return 2 * torch.rand(count, dim, generator=rng) - 1
