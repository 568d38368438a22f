"""3D consistency of a generator, measured on its own renders and field, without another network.

Functions compare a view from a reference camera, `here`, with one of the same object from another
camera, `there`. Results are per view, (B,), and NaN where no pixel can be compared.

Legend: B views, H = W pixels per side, R rays.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from generators.cameras import Poses, Rays, camera_origins, cast_rays, project
from generators.fields import Field, chunked
from generators.pictures import psnr, surface_normals
from generators.volumetric_rendering import RenderOptions, render_rays
from metrics.surfaces import Surface, is_inside, sampled, surface_points

TOLERANCE = 0.01  # of the depth range: largest difference of depths that agree
HALF_TRANSPARENT = (0.1, 0.9)  # opacities of half-transparent rays


class Match(NamedTuple):
    """Reprojection of one view's pixels into another.

    places (B, H, W, 2): image positions of their points in the other view. is_common (B, H, W):
    whether the pixel can be compared. error (B, H, W): depth of the other view there minus the
    distance to the point, scene units; negative if something is in front of it.
    """

    places: Tensor
    is_common: Tensor
    error: Tensor


class Agreement(NamedTuple):
    """Figures of B pairs of views, (B,) each; compare explains them."""

    psnr_db: Tensor
    l1: Tensor
    depth_error: Tensor
    depth_agreement: Tensor
    compared: Tensor


def match(here: Surface, there: Surface) -> Match:
    """Reproject every pixel of here into there by its depth, and decide whether to compare it.

    A pixel is compared if it is clear, its point falls among clear pixels of there, and nothing
    hides the point there. Something hides it if there shows a nearer point, by more than TOLERANCE
    of the depth range, that is consistent with here: seen from here, the nearer point lies on or
    behind the surface, or outside of the picture. If here sees through the nearer point, the views
    contradict each other, and the pixel is compared.
    """
    places, distances = project(surface_points(here), there.poses, there.fov_degrees)
    seen = sampled(there.depths[:, None], places)[:, 0]
    error = seen - distances
    tolerance = TOLERANCE * here.depth_range
    in_front = _at_distances(surface_points(here), there.poses, seen)
    back, far = project(in_front, here.poses, here.fov_degrees)
    is_air = is_inside(here, back) & (sampled(here.depths[:, None], back)[:, 0] > far + tolerance)
    is_hidden = (error < -tolerance) & ~is_air
    is_common = here.is_clear & is_inside(there, places) & ~is_hidden
    return Match(places, is_common, error)


def _at_distances(points: Tensor, poses: Poses, distances: Tensor) -> Tensor:
    """Move points (B, H, W, 3) along their rays to distances (B, H, W) from the camera."""
    origins = camera_origins(poses)[:, None, None]
    offsets = points - origins
    return origins + offsets / offsets.norm(dim=-1, keepdim=True) * distances[..., None]


def compare(here: Surface, there: Surface) -> Agreement:
    """Measure reprojection error and depth agreement of two views of each of B objects.

    Reprojection error: the colors of there, sampled at the pixels of here by here's depth, against
    here's own, over the pixels that both see (`match`). PSNR = -10 log10(mean squared error) in dB,
    and L1 = mean absolute error, of colors in [0, 1].

    Depth agreement: over the same pixels, mean |depth of there - distance of here's point from
    there's camera| / distance (depth_error, no unit), and the percentage that differs by at most
    1 percent of the depth range (depth_agreement).

    compared is the percentage of here's clear pixels that could be compared; the rest is hidden or
    outside of the other picture.

    Source: the warping error by rendered depth of multi-view stereo and of later 3D-aware
    generators (Schönberger et al. 2016, geometric consistency; Chan et al. 2022, section 5.2),
    restated for rendered views.
    """
    found = match(here, there)
    common = found.is_common
    difference = sampled(there.colors, found.places) - here.colors
    count = common.sum((1, 2)).double()

    def mean(values: Tensor) -> Tensor:
        return torch.where(common, values.double(), 0.0).sum((1, 2)) / count

    distances = (surface_points(here) - camera_origins(there.poses)[:, None, None]).norm(dim=-1)
    is_same = found.error.abs() <= TOLERANCE * here.depth_range
    return Agreement(
        psnr_db=psnr(mean(difference.square().mean(1))),
        l1=mean(difference.abs().mean(1)),
        depth_error=mean(found.error.abs() / distances),
        depth_agreement=100 * mean(is_same),
        compared=100 * count / here.is_clear.sum((1, 2)),
    )


def color_change(
    field: Field,
    here: Surface,
    offsets: Sequence[float],
    options: RenderOptions,
    points_per_chunk: int | None = None,
) -> Tensor:
    """Return the change of the surface's color with the viewing direction alone, (K,) in [0, 1].

    The rays of one view (here, B = 1, of one object's field) are rendered again, but every sample
    gets the direction from which a camera turned by an offset (K yaws, radians) sees the ray's
    surface point. Per offset: mean over clear pixels and channels of |color with that direction -
    color|. Geometry stays, so that this measures view-dependent color alone, the usual way in which
    such generators imitate parallax. It is 0 where the field gets no direction
    (`lock_view_dependence`) and NaN where no pixel is clear. points_per_chunk: the most in one call
    of the field; None is all.
    """
    if options.lock_view_dependence:
        return torch.zeros(len(offsets), dtype=torch.float64)
    size = here.depths.shape[-1]
    clear = here.is_clear.flatten().nonzero()[:, 0]
    if not len(clear):
        return torch.full((len(offsets),), torch.nan, dtype=torch.float64)
    rays = Rays(*(ends[:, clear] for ends in cast_rays(here.poses, size, here.fov_degrees)))
    points = surface_points(here).flatten(1, 2)[:, clear]
    pitch, yaw = here.poses
    colors = []
    for offset in (0.0, *offsets):
        origin = camera_origins(Poses(pitch, yaw + offset))[:, None]
        directions = torch.nn.functional.normalize(points - origin, dim=-1)
        colors.append(_rendered_with(directions, field, rays, options, points_per_chunk))
    return torch.stack([(other - colors[0]).abs().double().mean() for other in colors[1:]])


def _rendered_with(
    directions: Tensor, field: Field, rays: Rays, options: RenderOptions, chunk: int | None
) -> Tensor:
    """Render colors (1, R, 3) of rays whose samples get directions (1, R, 3) in place of theirs."""
    per_part = max(1, chunk // options.num_steps) if chunk else directions.shape[1]
    parts = []
    for origins, own, others in zip(
        *(x.split(per_part, 1) for x in (*rays, directions)), strict=True
    ):

        def redirected(points: Tensor, _: Tensor, others: Tensor = others) -> Tensor:
            return chunked(field, chunk)(points, others)

        parts.append(render_rays(redirected, Rays(origins, own), options, rng=None).rgb)
    return torch.cat(parts, dim=1)


def half_transparent(opacities: Tensor) -> Tensor:
    """Return the percentage (B,) of half-transparent rays, with 0.1 < opacity < 0.9.

    Opacities (B, H, W) exclude the background's share. A surface has a few such rays at its
    outline, a cloud has many: it can look right from the front and has no shape.
    """
    low, high = HALF_TRANSPARENT
    return 100 * ((opacities > low) & (opacities < high)).double().mean((1, 2))


def has_islands(opacities: Tensor) -> Tensor:
    """Return in which images (B,) of opacities (B, H, W) something opaque is apart from the rest.

    The rest is the largest part of the pixels with an opacity over 1/2 that are connected by sides
    or corners.
    """
    one_object = np.ones((3, 3))
    opaque = (opacities > 0.5).cpu().numpy()
    return torch.tensor([ndimage.label(image, one_object)[1] > 1 for image in opaque])


def normal_angles(here: Surface) -> Tensor:
    """Return the median angle (B,), degrees, between the normals of neighboring clear pixels.

    Waves of a surface make it large. It depends on the size of the pictures, as a round surface
    turns as well from pixel to pixel.
    """
    points = torch.where(here.is_clear[..., None], surface_points(here), torch.nan)
    normals = surface_normals(points)
    cosines = [
        (normals.narrow(dim, 1, size) * normals.narrow(dim, 0, size)).sum(-1).flatten(1)
        for dim, size in ((1, normals.shape[1] - 1), (2, normals.shape[2] - 1))
    ]
    return torch.cat(cosines, dim=1).clamp(-1, 1).arccos().rad2deg().nanquantile(0.5, dim=1)


class PoseErrors(NamedTuple):
    """Absolute errors (B,) of a pose head in degrees, each from 0 to 180."""

    pitch: Tensor
    yaw: Tensor


def pose_errors(predicted: Tensor, poses: Poses) -> PoseErrors:
    """Return the errors of predicted [pitch, yaw] (B, 2), radians, against the known poses.

    Differences are wrapped into [-180, 180) degrees: yaw is an angle on a circle. The head of the
    published encoders (Chan et al. 2021, supplement) learns unwrapped radians, for which yaws on
    either side of +-pi are far apart.
    """

    def error(guess: Tensor, true: Tensor) -> Tensor:
        difference = guess.double() - true.to(guess.device).double()
        return ((difference + math.pi).remainder(2 * math.pi) - math.pi).abs().rad2deg()

    return PoseErrors(error(predicted[:, 0], poses.pitch), error(predicted[:, 1], poses.yaw))
