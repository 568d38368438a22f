"""Positions in space of the pixels of rendered views, and their projection to other cameras.

Legend: B views, H = W pixels per side. Depths are distances along unit-length rays, scene units.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import Poses, cast_rays
from generators.generators import View
from generators.pictures import surface_depths
from generators.volumetric_rendering import RenderOptions

EDGE_SHARE = 0.1  # of the depth range: neighbours that differ more belong to two surfaces


class Surface(NamedTuple):
    """Surface that views show.

    colors (B, 3, H, W) in [0, 1]; depths (B, H, W) of the surface; is_clear (B, H, W): whether a
    pixel is within a surface, not at its edge; poses and fov_degrees of the cameras; depth_range
    (far - near, scene units), to which all tolerances are relative.
    """

    colors: Tensor
    depths: Tensor
    is_clear: Tensor
    poses: Poses
    fov_degrees: float
    depth_range: float


def surface(view: View, poses: Poses, options: RenderOptions) -> Surface:
    """Return the surface that views show, rendered from poses with options.

    A pixel is clear if it and its eight neighbours show a surface (`surface_depths`) and their
    depths span at most EDGE_SHARE of the depth range: a pixel at an edge mixes two surfaces, and
    its depth lies between them, on neither.
    """
    depths = surface_depths(view, options)
    is_solid = depths.isfinite()
    depths = torch.where(is_solid, depths, options.far)
    span = options.far - options.near
    highest = F.max_pool2d(depths[:, None], 3, stride=1, padding=1)[:, 0]
    lowest = -F.max_pool2d(-depths[:, None], 3, stride=1, padding=1)[:, 0]
    hollow = F.max_pool2d((~is_solid)[:, None].to(depths), 3, stride=1, padding=1)[:, 0]
    is_clear = (hollow == 0) & (highest - lowest <= EDGE_SHARE * span)
    device = depths.device
    return Surface(
        (view.images + 1) / 2,
        depths,
        is_clear,
        Poses(*(angle.to(device) for angle in poses)),
        options.fov_degrees,
        span,
    )


def surface_points(shown: Surface) -> Tensor:
    """Return the points (B, H, W, 3) in space that the pixels show."""
    size = shown.depths.shape[-1]
    rays = cast_rays(shown.poses, size, shown.fov_degrees)
    points = rays.origins + rays.directions * shown.depths.flatten(1)[..., None]
    return points.unflatten(1, (size, size))


def sampled(planes: Tensor, places: Tensor) -> Tensor:
    """Sample planes (B, C, H, W) at places (B, H, W, 2), bilinear; 0 outside."""
    return F.grid_sample(planes, places, align_corners=True)


def is_inside(shown: Surface, places: Tensor) -> Tensor:
    """Return whether places (B, H, W, 2) lie among four clear pixels of shown, (B, H, W)."""
    return sampled(shown.is_clear[:, None].to(places), places)[:, 0] > 1 - 1e-3
