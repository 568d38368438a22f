"""Preview pictures of a run; the latents are the same every time, to compare steps.

Legend: N previews, F FiLM features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from generators.cameras import PoseDistribution, Poses, sample_poses
from generators.generators import ImplicitGenerator3d
from generators.sampling import LatentKind, sample_latents
from generators.volumetric_rendering import RenderOptions
from siren.film import Film

COLUMNS = 5  # a grid of 5 x 5, as published
COUNT = COLUMNS**2
TILT = 0.5  # radians of yaw
RANDOM_PSI = 0.7
AVERAGE_COUNT = 2000  # latents whose mean is the center of the truncated previews
POINTS_PER_CHUNK = 2**18  # bounds the memory; the picture does not depend on it


@dataclass(frozen=True, eq=False)
class PreviewScenes:
    """Latents (N, L), the latents of their truncation, and random poses; the seed gives all."""

    latents: Tensor
    average_latents: Tensor
    random_poses: Poses
    center: tuple[float, float]  # pitch, yaw


def preview_scenes(
    distribution: PoseDistribution, z_dim: int, kind: LatentKind, *, rng: torch.Generator
) -> PreviewScenes:
    """Draw the latents and poses of a run's previews."""
    return PreviewScenes(
        latents=sample_latents(COUNT, z_dim, kind=kind, rng=rng),
        average_latents=sample_latents(AVERAGE_COUNT, z_dim, kind=kind, rng=rng),
        random_poses=sample_poses(distribution, COUNT, rng=rng),
        center=distribution.center(),
    )


@torch.no_grad()
def previews(
    generator: ImplicitGenerator3d,
    averaged: ImplicitGenerator3d,
    scenes: PreviewScenes,
    options: RenderOptions,
) -> Iterator[tuple[str, Tensor]]:
    """Yield published names and images (N, 3, H, W) in [-1, 1], rendered without randomness."""
    pitch, yaw = scenes.center
    for suffix, network in (("", generator), ("_ema", averaged)):
        film = network.mapping(scenes.latents)
        for name, turn in (("fixed", 0.0), ("tilted", TILT)):
            poses = Poses(torch.full((COUNT,), pitch), torch.full((COUNT,), yaw + turn))
            yield name + suffix, _render(network, film, poses, options)
    # The loop's last network and conditioning are the averaged ones.
    truncated = averaged.average_film(scenes.average_latents).lerp(film, RANDOM_PSI)
    yield "random", _render(averaged, truncated, scenes.random_poses, options)


def _render(
    network: ImplicitGenerator3d, film: Film, poses: Poses, options: RenderOptions
) -> Tensor:
    """Render one image after the other, so that memory does not grow with their number."""
    return torch.cat(
        [
            network.render(
                film[i : i + 1],
                Poses(poses.pitch[i : i + 1], poses.yaw[i : i + 1]),
                options,
                points_per_chunk=POINTS_PER_CHUNK,
            ).images
            for i in range(len(film))
        ]
    )
