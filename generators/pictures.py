"""Depths and normals of surfaces, and pictures of them.

Legend: B images, H x W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.generators import View
from generators.volumetric_rendering import RenderOptions

MIN_SQUARE = 1e-10  # of a color error; bounds the PSNR at 100 dB
MIN_OPACITY = 0.5  # a pixel shows a surface if at least half of its light is absorbed
NEAR_LIGHTNESS, FAR_LIGHTNESS = 0.93, 0.38  # Oklab, from 0 to 1
NEAR_HUE, FAR_HUE = math.radians(100), math.radians(310)  # yellow, over green and blue, to purple
CHROMA = 0.085  # small enough for every color of the scale to exist in sRGB


def psnr(squared_error: Tensor) -> Tensor:
    """Return PSNRs, dB, of mean squared errors of colors in [0, 1]; at most 100."""
    return -10 * squared_error.clamp(min=MIN_SQUARE).log10()


def surface_depths(view: View, options: RenderOptions) -> Tensor:
    """Return the mean depths (B, H, W) at which light is absorbed; NaN where there is no surface.

    There is none where most of the light passes, nor, in an unbounded scene, where most of it
    reaches the last sample: that sample stands for all space behind far and absorbs the rest at
    the faintest density.

    View.depths are sums of depths weighted by absorbed light. So they are divided by the opacity,
    after the background's share, which "last_sample" counts at far, is subtracted. Scene units.
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
    """Color depths (B, H, W) as images (B, 3, H, W) in [-1, 1].

    Near is light yellow, far is dark purple, and lightness falls evenly in between; pixels without
    a surface (NaN) are black. The scale always runs from near to far of options, so that a color
    means the same depth in every picture.
    """
    share = ((depths - options.near) / (options.far - options.near)).clamp(0, 1)
    rgb = _color_scale(share.nan_to_num())
    return torch.where(depths.isnan()[:, None], -1.0, rgb * 2 - 1)


def _color_scale(share: Tensor) -> Tensor:
    """Map shares (B, H, W) of the way from near to far to sRGB colors (B, 3, H, W) in [0, 1].

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
    """Return unit normals (B, H, W, 3) of the surface that points (B, H, W, 3) lie on.

    They are cross products of differences between neighbours, across and down the picture, and
    point towards the camera where pixels run from the top left. Of the two neighbours along an axis
    the nearer one counts, so that the rim of an object keeps its normal. A point that is NaN shows
    no surface; its normal, and that of a point without a neighbour, is NaN.
    """
    across = _nearer_difference(points, dim=2)
    down = _nearer_difference(points, dim=1)
    return F.normalize(torch.linalg.cross(down, across), dim=-1)


def _nearer_difference(points: Tensor, *, dim: int) -> Tensor:
    """Return the shorter of the two steps from each point along dim; NaN if there is none."""
    steps = points.diff(dim=dim)
    gap = torch.full_like(points.narrow(dim, 0, 1), torch.nan)
    onward, behind = torch.cat([steps, gap], dim=dim), torch.cat([gap, steps], dim=dim)
    lengths = [step.norm(dim=-1, keepdim=True).nan_to_num(torch.inf) for step in (onward, behind)]
    return torch.where(lengths[0] <= lengths[1], onward, behind)


def normal_pictures(normals: Tensor, rotations: Tensor) -> Tensor:
    """Color normals (B, H, W, 3), in camera space, as images (B, 3, H, W) in [-1, 1].

    Red is to the right, green up, blue towards the camera; rotations (B, 3, 3) are the cameras'.
    Pixels without a surface (NaN) are black.
    """
    seen = (normals[..., None, :] * rotations.transpose(1, 2)[:, None, None]).sum(-1)
    return seen.nan_to_num(-1.0).permute(0, 3, 1, 2)
