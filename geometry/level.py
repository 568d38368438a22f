"""Choose the iso level that matches the renders.

A density has no surface: rays lose their light gradually. The chosen iso level's surface agrees
best with the renders: rays meet it where half of their light is absorbed, and rays that keep more
miss it. Both are computed on the first pass's lattice, along rays of training cameras.

Legend: G intervals of the lattice along each axis, R rays, S samples per ray, C candidates.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import PoseDistribution, Poses, Rays, cast_rays, sample_poses
from generators.volumetric_rendering import RenderOptions, clamped_density, depth_range

NUM_CAMERAS, IMAGE_SIZE = 16, 32
SAMPLES = 128  # per ray, half as far apart as the points of a lattice with 64 intervals
CANDIDATES = 96
LOWEST = 1e-3  # of the highest candidate
TYPICAL_PEAK = 0.95  # quantile, over opaque rays, of the densest sample: the highest candidate
TOLERANCE = 1.0  # of the cube's side; so large that depths decide only between equal outlines


@dataclass(frozen=True, eq=False)
class Lattice:
    """Raw densities (G + 1, G + 1, G + 1) [ix, iy, iz] at points from first on, spacing apart."""

    values: Tensor
    first: tuple[float, float, float]
    spacing: float

    def sample(self, points: Tensor) -> Tensor:
        """Interpolate raw densities (...) at points (..., 3), trilinear; -inf outside."""
        extent = self.spacing * (len(self.values) - 1)
        place = (points - points.new_tensor(self.first)) * (2 / extent) - 1
        flat = place.reshape(1, 1, 1, -1, 3).flip(-1)  # x runs along the last axis for grid_sample
        found = F.grid_sample(self.values[None, None], flat, align_corners=True)
        is_outside = (place.abs() > 1).any(-1)
        return found.reshape(points.shape[:-1]).masked_fill(is_outside, -math.inf)


def choose_level(lattice: Lattice, poses: PoseDistribution, options: RenderOptions) -> float | None:
    """Return the raw density whose iso-surface matches the renders; None if nothing is opaque.

    The score of a level: of the rays that are at least half opaque or meet the surface, the share
    that does both, each ray weighted less the farther its two depths are apart. lattice is that of
    the first pass; options give the cameras' rays and the activation of raw densities.
    """
    rng = torch.Generator().manual_seed(0)  # the same cameras for every object
    depths, raw = _samples(lattice, sample_poses(poses, NUM_CAMERAS, rng=rng), options)
    density = clamped_density(raw, options)
    half = _half_depths(depths, density)  # (R,)
    is_opaque = half.isfinite()
    if not is_opaque.any():
        return None
    highest = float(density.amax(1)[is_opaque].quantile(TYPICAL_PEAK))
    levels = highest * torch.logspace(math.log10(LOWEST), 0, CANDIDATES)  # (C,)
    if options.density_activation == "softplus":
        levels = levels.expm1().log()  # the inverse of softplus
    meets = _crossing_depths(depths, raw, levels)  # (R, C)
    tolerance = TOLERANCE * lattice.spacing * (len(lattice.values) - 1)
    closeness = (1 - (meets - half[:, None]).abs() / tolerance).clamp(min=0).nan_to_num(0.0)
    is_either = is_opaque[:, None] | meets.isfinite()
    score = closeness.sum(0) / is_either.sum(0)
    return float(levels[score.argmax()])


def _samples(lattice: Lattice, poses: Poses, options: RenderOptions) -> tuple[Tensor, Tensor]:
    """Return depths (R, S) along the cameras' rays and the raw densities (R, S) there."""
    rays = cast_rays(poses, IMAGE_SIZE, options.fov_degrees)
    near, far = depth_range(rays, options)
    steps = (torch.arange(SAMPLES) + 0.5) / SAMPLES
    depths = near[..., None] + (far - near)[..., None] * steps  # (B, R, S)
    rays = Rays(*(ends[..., None, :] for ends in rays))
    raw = lattice.sample(rays.origins + rays.directions * depths[..., None])
    return depths.flatten(0, 1), raw.flatten(0, 1)


def _half_depths(depths: Tensor, density: Tensor) -> Tensor:
    """Return depths (R,) at which half of a ray's light is absorbed; inf if more passes."""
    spacing = (depths[:, 1] - depths[:, 0])[:, None]
    optical_depth = (density * spacing).cumsum(1)
    half = optical_depth.new_full((len(optical_depth), 1), math.log(2))
    index = torch.searchsorted(optical_depth, half)
    found = depths.gather(1, index.clamp(max=SAMPLES - 1))[:, 0]
    return found.masked_fill(index[:, 0] == SAMPLES, math.inf)


def _crossing_depths(depths: Tensor, raw: Tensor, levels: Tensor) -> Tensor:
    """Return depths (R, C) at which rays first reach each level, inf where they never do."""
    highest = raw.cummax(1).values
    index = torch.searchsorted(highest, levels.expand(len(raw), -1).contiguous())  # (R, C)
    found = depths.gather(1, index.clamp(max=SAMPLES - 1))
    return found.masked_fill(index == SAMPLES, math.inf)
