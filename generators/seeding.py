"""Random streams as functions of where training is, so that resuming draws what it would have."""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a stream is for; streams of different purposes are independent."""

    SCENES = 0  # latents and camera poses, on the CPU: the same on every device
    SAMPLES = 1  # jitter and noise, on the device
    FLIPS = 2
    PREVIEWS = 3


def step_rng(
    seed: int, rank: int, step: int, purpose: Purpose, device: torch.device
) -> torch.Generator:
    """The random stream of one step; a resumed run draws what the first would have."""
    words = np.random.SeedSequence([seed, rank, step, purpose]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(words[0] >> np.uint64(1)))
