"""3D quality of a saved generator: figures over many objects, and their plot.

Object i and its reference camera are those of image i of an evaluation (`metrics.samples`). Its
view from there is compared with its views from cameras turned by each of the yaw offsets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import SavedGenerator
from generators.cameras import Poses
from generators.generators import ImplicitGenerator3d
from geometry.density_grid import Cube
from geometry.mesh_extraction import take_shape
from image_io.plots import plotted
from metrics import consistency, samples
from metrics.consistency import Agreement
from metrics.mesh_sanity import MeshSanity, mesh_sanity
from metrics.samples import SampleOptions
from metrics.surfaces import Surface, surface
from system.errors import UsageError
from system.screen import progress_bar

YAW_OFFSETS = (-0.5, -0.375, -0.25, -0.125, 0.125, 0.25, 0.375, 0.5)  # radians
FINER = 4  # times the samples per ray of training
POSE_IMAGES = 256
SHAPE_RESOLUTION = 96  # voxels along each axis for the meshes that are checked
FIGURES = (*Agreement._fields, "color_change")  # of a pair of views
OF_VIEWS = ("half_transparent", "islands", "normal_angle")  # percent of rays, of views; degrees
PANELS = (  # figure, title, unit: of the plot
    ("psnr_db", "Reprojection: PSNR", "dB, higher is better"),
    ("l1", "Reprojection: L1", "of colors in [0, 1]"),
    ("depth_agreement", "Depths within 1% of the range", "percent of compared pixels"),
    ("color_change", "Color change by viewing direction", "L1 of colors in [0, 1]"),
)


def measure(saved: SavedGenerator, sampling: SampleOptions, num_objects: int) -> dict[str, Any]:
    """Measure all 3D figures as metrics.json holds them, with FINER times the samples per ray.

    With fewer, the distances between samples decide the depths of sharp surfaces.
    """
    render = replace(sampling.render, num_steps=FINER * sampling.render.num_steps)
    fine = replace(sampling, render=render)
    rows, views, shapes = [], [], []  # a row per object and offset
    for index in progress_bar(num_objects, "object", "consistency"):
        found, own = _measure_object(saved.generator, fine, index)
        rows += found
        views += own
        shapes.append(_shape(saved, fine, index))
    return {
        "settings": {
            "num_objects": num_objects,
            "image_size": render.image_size,
            "yaw_offsets": YAW_OFFSETS,
            "points_per_chunk": saved.generator.points_per_chunk,
            "render": asdict(render),
            "tolerance": consistency.TOLERANCE,
            "half_transparent_between": consistency.HALF_TRANSPARENT,
        },
        "mean": {
            **{name: _mean([row[name] for row in rows]) for name in FIGURES},
            **{name: _mean([view[name] for view in views]) for name in OF_VIEWS},
        },
        "by_yaw": [_summary(rows, offset) for offset in YAW_OFFSETS],
        "shape": {
            "resolution": SHAPE_RESOLUTION,
            **{name: _mean([shape[name] for shape in shapes]) for name in shapes[0]},
        },
        "pose": _pose_accuracy(saved, sampling),
    }


def _mean(values: Sequence[float]) -> float | None:
    """Return the mean of the finite values; None without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _summary(rows: Sequence[Mapping[str, float]], offset: float) -> dict[str, Any]:
    """Return mean and quartiles over the objects of all figures at one offset."""
    own = [row for row in rows if row["yaw_offset"] == offset]
    entry: dict[str, Any] = {"yaw_offset": offset}
    for name in FIGURES:
        values = torch.tensor([row[name] for row in own], dtype=torch.float64)
        values = values[values.isfinite()]
        quartiles = values.quantile(values.new_tensor([0.25, 0.75])) if len(values) else None
        entry[name] = _mean(values.tolist())
        entry[f"{name}_quartiles"] = None if quartiles is None else quartiles.tolist()
    return entry


@torch.no_grad()
def _measure_object(
    generator: ImplicitGenerator3d, sampling: SampleOptions, index: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return a row of figures per offset, and one of OF_VIEWS for each view."""
    render, points = sampling.render, generator.points_per_chunk
    z, poses = samples.sample_scene(index, generator.z_dim, sampling)
    film = samples.sample_film(generator, z, sampling)

    views = []

    def seen(offset: float) -> Surface:
        turned = Poses(poses.pitch, poses.yaw + offset)
        view = generator.render(film, turned, render)
        half = float(consistency.half_transparent(view.opacities))
        has_islands = bool(consistency.has_islands(view.opacities))
        shown = surface(view, turned, render)
        angle = float(consistency.normal_angles(shown))
        views.append(
            {"half_transparent": half, "islands": 100.0 * has_islands, "normal_angle": angle}
        )
        return shown

    here = seen(0.0)
    change = consistency.color_change(generator.field(film), here, YAW_OFFSETS, render, points)
    rows = []
    for offset, color_change in zip(YAW_OFFSETS, change, strict=True):
        figures = consistency.compare(here, seen(offset))._asdict()
        row = {name: float(value) for name, value in figures.items()}
        rows.append({"yaw_offset": offset, **row, "color_change": float(color_change)})
    return rows, views


@torch.no_grad()
def _shape(saved: SavedGenerator, sampling: SampleOptions, index: int) -> dict[str, float]:
    """Check the mesh of an object at the iso level that matches its renders."""
    z, _ = samples.sample_scene(index, saved.generator.z_dim, sampling)
    film = samples.sample_film(saved.generator, z, sampling)
    poses, render = saved.curriculum.poses(), sampling.render
    cube = Cube(side=render.visible_side, resolution=SHAPE_RESOLUTION)
    try:
        shape = take_shape(saved.generator, film, cube, render, poses, keeps_all=True)
    except UsageError:  # nothing is opaque
        return dict.fromkeys(MeshSanity._fields, 0.0)
    found = mesh_sanity(shape.mesh, poses, render, spacing=cube.spacing)
    return {name: float(value) for name, value in found._asdict().items()}


@torch.no_grad()
def _pose_accuracy(saved: SavedGenerator, sampling: SampleOptions) -> dict[str, Any] | None:
    """Measure errors of the pose head beside the generator on its own images; None without one."""
    critic = checkpoints.pose_critic(saved)
    if critic is None:
        return None
    size = saved.curriculum.stage_settings(saved.last_step).img_size
    own = replace(sampling, render=replace(sampling.render, image_size=size), supersampling=1)
    pitch_errors, yaw_errors = [], []
    for index in progress_bar(POSE_IMAGES, "image", "poses"):
        image = samples.sample_image(saved.generator, index, own)
        guess = critic(image[None], alpha=1.0).pose
        if guess is None:
            return None
        _, poses = samples.sample_scene(index, saved.generator.z_dim, own)
        errors = consistency.pose_errors(guess, poses)
        pitch_errors.append(float(errors.pitch))
        yaw_errors.append(float(errors.yaw))
    return {
        "images": POSE_IMAGES,
        "pitch_error_degrees": _mean(pitch_errors),
        "yaw_error_degrees": _mean(yaw_errors),
        "pitch_error_median_degrees": float(torch.tensor(pitch_errors).median()),
        "yaw_error_median_degrees": float(torch.tensor(yaw_errors).median()),
    }


def save_plot(path: Path, by_yaw: Sequence[Mapping[str, Any]], title: str) -> None:
    """Write a PNG that plots the figures against the turn of the camera: mean and quartiles."""
    degrees = [math.degrees(entry["yaw_offset"]) for entry in by_yaw]
    with plotted(path, 2, 2, figsize=(9, 6.5), layout="constrained", dpi=110) as (figure, axes):
        for axis, (name, heading, unit) in zip(axes.flat, PANELS, strict=True):
            known = [i for i, entry in enumerate(by_yaw) if entry[name] is not None]
            x = [degrees[i] for i in known]
            bands = [by_yaw[i][f"{name}_quartiles"] for i in known]
            low, high = ([band[end] for band in bands] for end in (0, 1))
            axis.fill_between(x, low, high, alpha=0.25, linewidth=0)
            axis.plot(x, [by_yaw[i][name] for i in known], marker="o", markersize=4)
            axis.set_title(heading, fontsize=11)
            axis.set_ylabel(unit, fontsize=9)
            axis.grid(alpha=0.3)
        axes[0, 1].set_ylim(bottom=0)
        axes[1, 0].set_ylim(0, 102)
        axes[1, 1].set_ylim(0, max(0.01, axes[1, 1].get_ylim()[1]))
        for axis in axes[1]:
            axis.set_xlabel("turn of the camera, degrees of yaw", fontsize=9)
        figure.suptitle(f"{title}: mean and quartiles over the objects", fontsize=12)
