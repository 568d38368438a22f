"""Depths and normals of surfaces, and pictures of them.

Legend: B images, H x W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.generators import View
from generators.volumetric_rendering import RenderOptions

MIN_OPACITY = 0.5  # a pixel that lets more than half of the light pass shows no surface
NEAR_LIGHTNESS, FAR_LIGHTNESS = 0.93, 0.38  # Oklab, from 0 to 1
NEAR_HUE, FAR_HUE = math.radians(100), math.radians(310)  # yellow, over green and blue, to purple
CHROMA = 0.085  # small enough for every color on the way to exist in sRGB


def surface_depths(view: View, options: RenderOptions) -> Tensor:
    """Mean depths (B, H, W) of what stopped the light, scene units; NaN where there is no surface.

    That is where most of the light passed, and, in an unbounded scene, where it went on to the last
    sample: that one stands for everything behind far, and any density at all stops the rest there.

    View.depths are sums over the light that was stopped, so they shrink with a pixel's opacity;
    under the background "last_sample" they count the rest of the light at far. Both is undone.
    """
    depths, is_surface = view.depths, view.opacities >= MIN_OPACITY
    if options.background == "last_sample":
        depths = depths - (1 - view.opacities) * options.far
    depths = depths / view.opacities.clamp(min=MIN_OPACITY)
    if options.scene_radius is None:
        spacing = (options.far - options.near) / (options.num_steps - 1)
        is_surface = is_surface & (depths < options.far - spacing / 2)
    return torch.where(is_surface, depths, torch.nan)


def depth_pictures(depths: Tensor, options: RenderOptions) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of depths (B, H, W).

    Near is light yellow, far is dark purple, and lightness falls evenly in between; pixels without
    a surface (NaN) are black. The scale is the options' near to far, never that of the picture.
    """
    share = ((depths - options.near) / (options.far - options.near)).clamp(0, 1)
    rgb = _color_scale(share.nan_to_num())
    return torch.where(depths.isnan()[:, None], -1.0, rgb * 2 - 1)


def _color_scale(share: Tensor) -> Tensor:
    """SRGB in [0, 1], (B, 3, H, W), of shares (B, H, W) of the way from near to far.

    Source: the Oklab color space (Ottosson 2020) and the sRGB transfer curve.
    """
    lightness = NEAR_LIGHTNESS + (FAR_LIGHTNESS - NEAR_LIGHTNESS) * share
    hue = NEAR_HUE + (FAR_HUE - NEAR_HUE) * share
    a, b = CHROMA * hue.cos(), CHROMA * hue.sin()
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = torch.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        dim=1,
    ).clamp(0, 1)
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curved)


def surface_normals(points: Tensor) -> Tensor:
    """Unit normals (B, H, W, 3) of the surface that points (B, H, W, 3) lie on.

    They are cross products of the differences between neighbours, across and down the picture, and
    look to the camera where pixels run from the top left. Where two neighbours lie on one side the
    nearer pair counts, so that the rim of an object keeps its normal. A point that is NaN shows no
    surface; its normal, and that of a point without a neighbour, is NaN.
    """
    across = _nearer_difference(points, dim=2)
    down = _nearer_difference(points, dim=1)
    return F.normalize(torch.linalg.cross(down, across), dim=-1)


def _nearer_difference(points: Tensor, *, dim: int) -> Tensor:
    """The shorter of the steps from and to each point along dim; NaN where there is neither."""
    steps = points.diff(dim=dim)
    gap = torch.full_like(points.narrow(dim, 0, 1), torch.nan)
    onward, behind = torch.cat([steps, gap], dim=dim), torch.cat([gap, steps], dim=dim)
    lengths = [step.norm(dim=-1, keepdim=True).nan_to_num(torch.inf) for step in (onward, behind)]
    return torch.where(lengths[0] <= lengths[1], onward, behind)


def normal_pictures(normals: Tensor, rotations: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of normals (B, H, W, 3), as the camera sees them.

    Red is to the right, green up, blue towards the camera; rotations (B, 3, 3) are the cameras'.
    Pixels without a surface (NaN) are black.
    """
    seen = (normals[..., None, :] * rotations.transpose(1, 2)[:, None, None]).sum(-1)
    return seen.nan_to_num(-1.0).permute(0, 3, 1, 2)
