"""3D consistency of a generator, from its own renders and its field, without a foreign network.

All compare a view from a reference camera, `here`, with one of the same object from elsewhere,
`there`. Results are per view, (B,); NaN where no pixel can be compared.

Legend: B views, H = W pixels per side, R rays.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import Poses, Rays, camera_origins, cast_rays
from generators.fields import Field, chunked
from generators.volumetric_rendering import RenderOptions, render_rays
from metrics.surfaces import Surface, is_inside, project, sampled, surface_points

TOLERANCE = 0.01  # of the depth range: within it two depths are the same surface
MIN_SQUARE = 1e-10  # of a color error; bounds the PSNR at 100 dB
HALF_TRANSPARENT = (0.1, 0.9)  # opacities between which a ray ends neither in nothing nor in a body


class Match(NamedTuple):
    """Pixels of one view, found in another.

    places (B, H, W, 2): where the other camera sees their points. is_common (B, H, W): pixels that
    both views can be asked about. error (B, H, W): what the other view's depth there has too
    little (< 0, something is in front) or too much, scene units.
    """

    places: Tensor
    is_common: Tensor
    error: Tensor


class Agreement(NamedTuple):
    """Figures of B pairs of views, (B,) each; see compare."""

    psnr_db: Tensor
    l1: Tensor
    depth_error: Tensor
    depth_agreement: Tensor
    compared: Tensor


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratios, dB, of mean squared errors of colors in [0, 1]; at most 100."""
    return -10 * squared_error.clamp(min=MIN_SQUARE).log10()


def match(here: Surface, there: Surface) -> Match:
    """Every pixel of here, found in there by its depth, and whether it should be seen there.

    A pixel is common if it is clear, its point falls among clear pixels of there, and nothing
    hides it there. What there shows in front of the point, by more than TOLERANCE of the depth
    range, may hide it only if here does not look through it: that nearer point, seen from here,
    must lie on or behind what here shows (or outside of it). Otherwise the two views contradict
    each other, and the pixel counts.
    """
    places, distances = project(surface_points(here), there.poses, there.fov_degrees)
    seen = sampled(there.depths[:, None], places)[:, 0]
    error = seen - distances
    tolerance = TOLERANCE * here.depth_range
    in_front = _lengthened(surface_points(here), there.poses, seen)
    back, far = project(in_front, here.poses, here.fov_degrees)
    is_air = is_inside(here, back) & (sampled(here.depths[:, None], back)[:, 0] > far + tolerance)
    is_hidden = (error < -tolerance) & ~is_air
    is_common = here.is_clear & is_inside(there, places) & ~is_hidden
    return Match(places, is_common, error)


def _lengthened(points: Tensor, poses: Poses, distances: Tensor) -> Tensor:
    """Points (B, H, W, 3) moved along their line to the camera, to distances (B, H, W) from it."""
    origins = camera_origins(poses)[:, None, None]
    offsets = points - origins
    return origins + offsets / offsets.norm(dim=-1, keepdim=True) * distances[..., None]


def compare(here: Surface, there: Surface) -> Agreement:
    """Reprojection error and depth agreement of two views of each of B objects.

    Reprojection error: the colors of there, fetched to here by here's depth, against here's own,
    over the pixels that both see (`match`). PSNR = -10 log10(mean squared error) in dB, and
    L1 = mean absolute error, of colors in [0, 1].

    Depth agreement: over the same pixels, mean |depth of there - distance of here's point from
    there's camera| / distance (depth_error, no unit), and the percentage that differs by at most
    1 percent of the depth range (depth_agreement).

    compared is the percentage of here's clear pixels that could be compared; the rest is hidden or
    out of the picture.

    Source: the warping error by rendered depth of multi-view stereo and of later 3D-aware
    generators (Schönberger et al. 2016, geometric consistency; Chan et al. 2022, section 5.2),
    restated for rendered views.
    """
    found = match(here, there)
    common = found.is_common
    fetched = sampled(there.colors, found.places)
    difference = fetched - here.colors
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
    *,
    points_per_chunk: int,
) -> Tensor:
    """How much the surface's color changes when only the viewing direction does, (K,) in [0, 1].

    The rays of one view are rendered again while the field is told, for every sample of a ray, the
    direction from which a camera turned by an offset sees the ray's surface point. Per offset:
    mean over clear pixels and channels of |color told - color|. Geometry stays, so that this
    measures view-dependent color alone, the usual way in which such generators imitate parallax.
    0 where the field sees no direction (`lock_view_dependence`). NaN where no pixel is clear.

    Args:
        field: of one object.
        here: one view of it (B = 1), the reference.
        offsets: K turns of the camera's yaw, radians.
        options: how here was rendered.
        points_per_chunk: the most points in one call of the field.
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
    shown = []
    for offset in (0.0, *offsets):
        origin = camera_origins(Poses(pitch, yaw + offset))[:, None]
        told = torch.nn.functional.normalize(points - origin, dim=-1)
        shown.append(_rendered_as_from(field, rays, told, options, points_per_chunk))
    return torch.stack([(other - shown[0]).abs().double().mean() for other in shown[1:]])


def _rendered_as_from(
    field: Field, rays: Rays, told: Tensor, options: RenderOptions, points_per_chunk: int
) -> Tensor:
    """Colors (1, R, 3) of rays whose samples are told directions (1, R, 3) instead of their own."""
    per_part = max(1, points_per_chunk // options.num_steps)
    parts = []
    for origins, own, others in zip(*(x.split(per_part, 1) for x in (*rays, told)), strict=True):

        def redirected(points: Tensor, _: Tensor, others: Tensor = others) -> Tensor:
            return chunked(field, points_per_chunk)(points, others)

        parts.append(render_rays(redirected, Rays(origins, own), options, rng=None).rgb)
    return torch.cat(parts, dim=1)


def half_transparent(opacities: Tensor) -> Tensor:
    """Percentage (B,) of rays that end neither in nothing nor in a body: 0.1 < opacity < 0.9.

    Opacities (B, H, W) without the background's share. A surface gives a few at its outline,
    a cloud gives many: it can look right from the front and has no shape.
    """
    low, high = HALF_TRANSPARENT
    return 100 * ((opacities > low) & (opacities < high)).double().mean((1, 2))


class PoseErrors(NamedTuple):
    """Absolute errors (B,) in degrees, each in [0, 180]."""

    pitch: Tensor
    yaw: Tensor


def pose_errors(predicted: Tensor, poses: Poses) -> PoseErrors:
    """Errors of predicted [pitch, yaw] (B, 2), radians, against the known poses.

    |wrapped difference| * 180 / pi, wrapped into [-180, 180): yaw is an angle around a circle.
    The head of the published encoders (Chan et al. 2021, supplement) learns raw radians, so that
    half a turn to either side of +-pi is far away for it and not for us.
    """

    def error(guess: Tensor, true: Tensor) -> Tensor:
        difference = guess.double() - true.to(guess.device).double()
        return ((difference + math.pi).remainder(2 * math.pi) - math.pi).abs().rad2deg()

    return PoseErrors(error(predicted[:, 0], poses.pitch), error(predicted[:, 1], poses.yaw))
