"""Depth as geometry, and as colors that mean the same distance in every picture.

Legend: B images, H = W pixels.
"""

import math

import torch
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
