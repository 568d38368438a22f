"""Save what the viewer shows as a picture, video or mesh, with the functions of the commands.

Names of files are made of seeds and of the names of fits, so that nothing from the page is part of
a path. progress raises Cancelled when the visitor has left.
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
from image_io import video
from rendering import filming
from system.files import output_folder
from web_viewer.checkpoints import Checkpoints
from web_viewer.pictures import Progress, save_picture
from web_viewer.request import Request, render_options

VIDEO_FRAMES, VIDEO_FPS = 72, 24
MESH_RESOLUTION = 256  # extract_shapes.py's own default

Saver = Callable[[Checkpoints, Request, Path, Progress, int], Path]


class Cancelled(Exception):
    """The visitor who asked for the file has left."""


def save_video(
    source: Checkpoints, request: Request, folder: Path, progress: Progress, max_points: int
) -> Path:
    """Write NAME.mp4: one turn from the camera's position, with depth beside it if shown."""
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
