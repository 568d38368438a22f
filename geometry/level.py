"""Which level of the density is the surface that the pictures show.

A density has no surface: rays lose their light somewhere along the way. The level that is taken
here is the one whose surface agrees best with what cameras see: a ray meets it where, and only
where, half of its light is lost. Both are read off the first pass's lattice, along rays of the
cameras that the generator was trained with.

Legend: G intervals of the lattice along each axis, R rays, S samples per ray, C candidates.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import PoseDistribution, Poses, Rays, cast_rays, sample_poses
from generators.volumetric_rendering import RenderOptions, clamped_density, depth_range

NUM_CAMERAS, IMAGE_SIZE = 16, 32
SAMPLES = 128  # per ray, half as far apart as the lattice's points where these are 64
CANDIDATES = 96
LOWEST = 1e-3  # of the highest candidate
TYPICAL_PEAK = 0.95  # quantile of the densest sample of opaque rays: the highest candidate
TOLERANCE = 1.0  # of the cube's side: outlines come first, depths decide between equal ones


@dataclass(frozen=True, eq=False)
class Lattice:
    """Raw densities (G + 1, G + 1, G + 1) [ix, iy, iz] from first, spacing apart."""

    values: Tensor
    first: tuple[float, float, float]
    spacing: float

    def sample(self, points: Tensor) -> Tensor:
        """Trilinear raw densities (...) of points (..., 3); -inf outside of the lattice."""
        extent = self.spacing * (len(self.values) - 1)
        place = (points - points.new_tensor(self.first)) * (2 / extent) - 1
        flat = place.reshape(1, 1, 1, -1, 3).flip(-1)  # x runs along the last axis for grid_sample
        found = F.grid_sample(self.values[None, None], flat, align_corners=True)
        is_outside = (place.abs() > 1).any(-1)
        return found.reshape(points.shape[:-1]).masked_fill(is_outside, -math.inf)


def choose_level(lattice: Lattice, poses: PoseDistribution, options: RenderOptions) -> float | None:
    """The raw density whose surface looks most like the renders; None where nothing is opaque.

    The score of a level is the share of rays that agree: among the rays that are at least half
    opaque or meet the surface, those that do both, each counted less the farther the two depths are
    apart.

    Args:
        lattice: raw densities of the first pass.
        poses: where the cameras stand.
        options: their angle of view and ray range, and what raw densities mean.
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
        levels = levels.expm1().log()  # the raw density that softplus makes it of
    meets = _crossing_depths(depths, raw, levels)  # (R, C)
    tolerance = TOLERANCE * lattice.spacing * (len(lattice.values) - 1)
    closeness = (1 - (meets - half[:, None]).abs() / tolerance).clamp(min=0).nan_to_num(0.0)
    is_either = is_opaque[:, None] | meets.isfinite()
    score = closeness.sum(0) / is_either.sum(0)
    return float(levels[score.argmax()])


def _samples(lattice: Lattice, poses: Poses, options: RenderOptions) -> tuple[Tensor, Tensor]:
    """Depths (R, S) along the cameras' rays, and raw densities (R, S) there."""
    rays = cast_rays(poses, IMAGE_SIZE, options.fov_degrees)
    if options.scene_radius is None:
        near = torch.full_like(rays.origins[..., 0], options.near)
        far = torch.full_like(near, options.far)
    else:
        near, far = depth_range(rays, replace(options, image_size=IMAGE_SIZE))
    steps = (torch.arange(SAMPLES) + 0.5) / SAMPLES
    depths = near[..., None] + (far - near)[..., None] * steps  # (B, R, S)
    rays = Rays(*(ends[..., None, :] for ends in rays))
    raw = lattice.sample(rays.origins + rays.directions * depths[..., None])
    return depths.flatten(0, 1), raw.flatten(0, 1)


def _half_depths(depths: Tensor, density: Tensor) -> Tensor:
    """Depths (R,) at which half of the light of each ray is lost, inf where more comes through."""
    spacing = (depths[:, 1] - depths[:, 0])[:, None]
    lost = (density * spacing).cumsum(1)  # optical depth behind each sample
    half = lost.new_full((len(lost), 1), math.log(2))
    index = torch.searchsorted(lost, half)
    found = depths.gather(1, index.clamp(max=SAMPLES - 1))[:, 0]
    return found.masked_fill(index[:, 0] == SAMPLES, math.inf)


def _crossing_depths(depths: Tensor, raw: Tensor, levels: Tensor) -> Tensor:
    """Depths (R, C) at which rays first meet each level, inf where they never do."""
    highest = raw.cummax(1).values
    index = torch.searchsorted(highest, levels.expand(len(raw), -1).contiguous())  # (R, C)
    found = depths.gather(1, index.clamp(max=SAMPLES - 1))
    return found.masked_fill(index == SAMPLES, math.inf)
