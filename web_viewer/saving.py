"""BOUNDARY: the viewer's files, with the functions of the render commands.

Every function takes where generators come from, what is shown, the output folder, and progress,
which takes the share that is done and raises Cancelled where nobody waits any more. Names of files
are made of seeds and of the names of fits, so that nothing from the page is part of a path.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from generators.trajectories import Camera, SceneObject
from geometry import mesh_extraction, mesh_files
from geometry.density_grid import Cube
from geometry.mesh_extraction import Wanted
from image_io import png, video
from rendering import filming
from system.files import output_folder
from web_viewer.checkpoints import Checkpoints
from web_viewer.pictures import finished_picture
from web_viewer.request import Request, render_options

VIDEO_FRAMES, VIDEO_FPS = 72, 24
MESH_RESOLUTION = 256  # extract_shapes.py's own default

Progress = Callable[[float], None]
Saver = Callable[[Checkpoints, Request, Path, Progress, int], Path]


class Cancelled(Exception):
    """Nobody waits for the file any more."""


def save_picture(
    source: Checkpoints, request: Request, folder: Path, progress: Progress, max_points: int
) -> Path:
    """Write NAME.png, or NAME_depth.png and so on; returns its path."""
    progress(0.0)
    pixels = finished_picture(source, request, max_points=max_points)
    kind = "" if request.show == "color" else f"_{request.show}"
    path = output_folder(folder) / f"{request.object_name()}{kind}.png"
    png.save_png(path, pixels)
    return path


def save_video(
    source: Checkpoints, request: Request, folder: Path, progress: Progress, max_points: int
) -> Path:
    """Write NAME.mp4: once around, from where the camera is; the depth beside where it is shown."""
    opened = source.open(request.checkpoint, request.ema)
    film, eye = source.film(opened, request), request.eye
    around = [math.tau * i / VIDEO_FRAMES for i in range(VIDEO_FRAMES)]
    name = request.object_name()
    shots = [
        SceneObject(name, film, Camera(eye.pitch, eye.yaw + turn, eye.fov_degrees))
        for turn in around
    ]
    centered = replace(request, eye=eye._replace(target=(0.0, 0.0, 0.0)))
    options = render_options(opened.saved, centered, request.num_steps)
    views = filming.views(opened.saved, shots, options, batch_size=1, points_per_chunk=max_points)

    def frames() -> Iterator[Tensor]:
        for index, view in enumerate(views):
            progress(index / VIDEO_FRAMES)
            pair = filming.pictures(view, options, depth_map=request.show == "depth")
            yield from torch.cat(pair, dim=3)

    path = output_folder(folder) / f"{name}.mp4"
    video.save_video(path, frames(), kind="mp4", fps=VIDEO_FPS)
    return path


def save_mesh(
    source: Checkpoints, request: Request, folder: Path, progress: Progress, max_points: int
) -> Path:
    """Write NAME.glb, as extract_shapes.py does."""
    opened = source.open(request.checkpoint, request.ema)
    saved, name = opened.saved, request.object_name()
    usual = saved.curriculum.evaluation_render(saved.step)
    locked = usual.lock_view_dependence or request.lock_view_dependence
    options = replace(usual, lock_view_dependence=locked)
    side = options.visible_side
    shape = mesh_extraction.take_shape(
        saved.generator,
        source.film(opened, request),
        Cube(center=(0.0, 0.0, 0.0), side=side, resolution=MESH_RESOLUTION),
        options,
        Wanted(),
        name=name,
        poses=saved.curriculum.poses(),
        points_per_chunk=max_points,
        progress=lambda done, needed: progress(done / max(1, needed)),
    )
    path = output_folder(folder) / f"{name}.glb"
    mesh_files.save_mesh(path, shape.mesh)
    return path


SAVERS: dict[str, Saver] = {"picture": save_picture, "video": save_video, "mesh": save_mesh}
