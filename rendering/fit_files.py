"""Write a fit: its file for --fit, its pictures, and what is known of it as json."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from checkpoint_io import checkpoints
from generators.cameras import (
    FAMILIAR,
    Poses,
    angles_to_nearest,
    camera_origins,
    cast_rays,
    familiar_poses,
)
from generators.generators import View
from generators.pictures import surface_depths, surface_normals
from generators.trajectories import Camera, SceneObject
from generators.volumetric_rendering import RenderOptions
from geometry.visibility import seen_points
from image_io import png
from rendering import filming, photos
from rendering.fitting import Fit, Fitter
from system.files import replaced

VIEW_OFFSETS = (-0.5, -0.25, 0.0, 0.25, 0.5)  # radians of yaw around the photo's camera
FEW = 30  # cameras, among which the farthest one is no rare one
SEEN_SIZE = 128  # pixels per side of the depths that tell what a photo's camera sees
SEEN_SLACK = 0.02  # of the ray range: a point that little behind the surface is on it


def save(
    folder: Path,
    fitter: Fitter,
    fit: Fit,
    options: RenderOptions,
    *,
    depth_map: bool = False,
    shows_progress: bool = False,
) -> list[str]:
    """Write fit.pth, fit.png, views.png and what a preparation asks for; return their names.

    options are those of views.png and in_photo.png.
    """
    checkpoints.save_fit(folder / "fit.pth", fit.shots[0], fitter.saved, fit.tuning)
    _save_comparison(folder / "fit.png", fitter, fit)
    with filming.progress(len(VIEW_OFFSETS), options, is_shown=shows_progress) as bar:
        _save_views(folder / "views.png", fitter, fit, options, bar, depth_map=depth_map)
    names = ["fit.pth", "fit.png", "views.png"]
    for index, one in enumerate(fit.opened):
        if one.square is not None:
            names.append("in_photo.png" if index == 0 else f"in_photo_{index + 1}.png")
            _save_in_photo(folder / names[-1], fitter, fit, index, options)
    return names


def record(fit: Fit, poor: Sequence[str]) -> dict[str, Any]:
    """Return what is known of a fit, for json: cameras, places in the photos, and what is poor.

    Angles pitch and yaw are radians, fov degrees, psnr dB. size is that of a prepared photo in
    pixels, width first; square says which part of it was fitted, in these pixels and in degrees.
    """
    found = []
    for one, shot, decibels in zip(fit.opened, fit.shots, fit.psnrs(), strict=True):
        pitch, yaw, fov = shot.camera[:3]
        place = None if one.square is None else asdict(one.square)
        size = None if one.ground is None else one.ground.size
        found.append({"photo": one.name, "size": size, "square": place, "pitch": pitch,
                      "yaw": yaw, "fov": fov, "psnr": decibels})  # fmt: skip
    return {"photos": found, "loss": fit.loss, "poor": list(poor)}


def _save_comparison(path: Path, fitter: Fitter, fit: Fit) -> None:
    """Write a row for each photo: photo, fit, tuned fit if any, difference, another side."""
    known = familiar_poses(fitter.saved.curriculum.poses())
    backs = [shot.seen_from(other_side(shot.camera, known)) for shot in fit.shots]
    sides = filming.views(fitter.saved, backs, fitter.options)
    rows = []
    for photo, untuned, view, side in zip(
        fit.photos, fit.untuned or fit.views, fit.views, sides, strict=True
    ):
        shown = view.images[0]
        fits = [untuned.images[0], shown] if fit.untuned else [shown]
        difference = (shown - photo.image).abs() - 1  # none is black
        rows.append(torch.stack([photo.image, *fits, difference, side.images[0]]))
    png.save_png(path, png.to_uint8(png.grid(torch.cat(rows), len(rows[0]))))


def other_side(camera: Camera, known: Poses) -> Camera:
    """Return the camera turned by half, or the farthest of a few known ones if none is near it."""
    back = camera.turned(0, math.pi)
    if angles_to_nearest(known, back.pose()) <= FAMILIAR:
        return back
    few = Poses(*(angle[:FEW] for angle in known))
    own = camera_origins(camera.pose())[0]
    farthest = int((camera_origins(few) @ own).argmin())
    return camera._replace(pitch=float(few.pitch[farthest]), yaw=float(few.yaw[farthest]))


def _save_views(
    path: Path,
    fitter: Fitter,
    fit: Fit,
    options: RenderOptions,
    bar: "tqdm[int]",
    *,
    depth_map: bool,
) -> None:
    """Write views from both sides of the first photo's camera, with depths on request.

    A bar under each view shows the share of its surface that the photos have seen.
    """
    start = fit.shots[0]
    shots = [start.seen_from(start.camera.turned(0, offset)) for offset in VIEW_OFFSETS]
    small = replace(options, image_size=SEEN_SIZE)
    word = "photo" if len(fit.shots) == 1 else "photos"
    photographed = list(filming.views(fitter.saved, fit.shots, small))
    columns = []
    views = filming.views(fitter.saved, shots, options, bar=bar)
    for shot, view in zip(shots, views, strict=True):
        share = seen_share(shot, view, fit.shots, photographed, options)
        picture = torch.cat(filming.pictures(view, options, depth_map=depth_map), dim=2)
        strip = png.bar(options.image_size, share, f"{share:.0%} seen in the {word}")
        columns.append(torch.cat([picture, strip[None]], dim=2))
    png.save_png(path, png.grid(torch.cat(columns), len(columns)))


def seen_share(
    shot: SceneObject,
    view: View,
    others: Sequence[SceneObject],
    photographed: Sequence[View],
    options: RenderOptions,
) -> float:
    """Return the share of the surface in a view that other cameras see, in [0, 1].

    The points are those of the view's pixels. A view without a surface has share 0.

    view, of options.image_size, is seen by the camera of shot; photographed are views from the
    cameras of others. Each is of one picture.
    """
    pose, fov = shot.camera.pose(), torch.tensor([shot.camera.fov_degrees])
    rays = cast_rays(pose, options.image_size, fov)
    depths = surface_depths(view, options).cpu()
    points = rays.origins + depths.flatten(1)[..., None] * rays.directions
    points = points.unflatten(1, depths.shape[1:])
    normals = surface_normals(points)
    is_seen = torch.zeros(depths.shape, dtype=torch.bool)
    for other, seen in zip(others, photographed, strict=True):
        is_seen |= seen_points(
            points,
            normals,
            other.camera.pose(),
            surface_depths(seen, options)[0].cpu(),
            fov_degrees=other.camera.fov_degrees,
            slack=SEEN_SLACK * (options.far - options.near),
        )
    is_surface = normals.isfinite().all(-1)
    return float((is_seen & is_surface).sum() / is_surface.sum().clamp(min=1))


def _save_in_photo(
    path: Path, fitter: Fitter, fit: Fit, index: int, options: RenderOptions
) -> None:
    """Write a prepared photo with the fit at the place of what it shows."""
    opened = fit.opened[index]
    assert opened.square is not None
    size = max(2, min(options.image_size, math.ceil(opened.square.side)))
    (view,) = filming.views(fitter.saved, fit.shots[index : index + 1],
                            replace(options, image_size=size))  # fmt: skip
    image = photos.put_back(opened, view.images[0], view.opacities[0], fitter.background)
    with replaced(path) as file:
        image.save(file, format="PNG")
