"""Settings of one training step, and the schedules that depend on the step alone."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from generators.cameras import PoseDistribution
from generators.generators import ImplicitGenerator3d
from generators.sampling import LatentKind
from generators.volumetric_rendering import RenderOptions

GanLoss = Literal["logistic", "relativistic"]
MAPPING_RATE = 0.05  # share of the generator's rate for its mapping network under unique_lr
EMA_DECAYS = (0.999, 0.9999)
TOPK_DECAY = 0.99  # per topk_interval steps (Sinha et al. 2020)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Everything of a curriculum at one step.

    batch_size is per process; the generator accumulates gradients over batch_split parts. alpha is
    the fade-in of the newest discriminator level, topk_share the share of fakes that train the
    generator. r1_interval: steps between the penalties R1 and R2, each that much stronger.
    opacity_lambda, eikonal_lambda, smoothness_lambda, island_lambda: weights of the generator's
    penalties on half-transparent rays, on slopes of the signed distance other than 1, on normals
    that differ between near points, and on islands.
    shares_fakes: both updates use the same generated images.
    """

    step: int
    batch_size: int
    batch_split: int
    generator_lr: float
    discriminator_lr: float
    alpha: float
    topk_share: float
    render: RenderOptions
    poses: PoseDistribution
    latent_kind: LatentKind
    gan_loss: GanLoss
    r1_lambda: float
    r2_lambda: float
    r1_interval: int
    opacity_lambda: float
    eikonal_lambda: float
    smoothness_lambda: float
    island_lambda: float
    shares_fakes: bool
    z_lambda: float
    pos_lambda: float
    grad_clip: float


def fade_in(step: int, faded_from: int, fade_steps: int) -> float:
    """Return the share of the newest level: 0 at its first step, 1 after fade_steps."""
    return 1.0 if fade_steps <= 0 else min(1.0, (step - faded_from) / fade_steps)


def density_noise(step: int, noise_steps: int) -> float:
    """Return the deviation of the noise on raw densities, falling linearly from 1 to 0."""
    return 0.0 if noise_steps <= 0 else max(0.0, 1 - step / noise_steps)


def topk_share(step: int, interval: float | None, floor: float) -> float:
    """Return the share of a batch's fakes, the best ones, that the generator learns from.

    Without an interval all of them, as published.
    """
    return 1.0 if interval is None else max(TOPK_DECAY ** (step / round(interval)), floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOptions:
    """Adam's settings; has_slow_mapping gives the mapping network MAPPING_RATE of the rate."""

    betas: tuple[float, float] = (0.0, 0.9)
    weight_decay: float = 0.0
    has_slow_mapping: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """autocast_dtype: what the networks compute in, None is float32; is_scaled: loss scaling."""

    autocast_dtype: torch.dtype | None = None
    is_scaled: bool = False


def generator_groups(
    generator: ImplicitGenerator3d, *, has_slow_mapping: bool
) -> list[tuple[list[nn.Parameter], float]]:
    """Return groups of parameters with their share of the learning rate."""
    if not has_slow_mapping:
        return [(list(generator.parameters()), 1.0)]
    mapping = list(generator.siren.mapping_network.parameters())
    slow = {id(parameter) for parameter in mapping}
    rest = [p for p in generator.parameters() if id(p) not in slow]
    return [(rest, 1.0), (mapping, MAPPING_RATE)]
