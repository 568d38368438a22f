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

from generators.trajectories import SceneObject
from geometry import mesh_extraction, mesh_files
from geometry.density_grid import Cube
from image_io import video
from rendering import filming
from system.files import output_folder
from web_viewer.checkpoints import Checkpoints
from web_viewer.pictures import Progress, save_picture
from web_viewer.request import Request, render_options

VIDEO_FRAMES, VIDEO_FPS = 72, 24
MESH_RESOLUTION = 256  # extract_shapes.py's own default

Saver = Callable[[Checkpoints, Request, Path, Progress], Path]


class Cancelled(Exception):
    """The visitor who asked for the file has left."""


def save_video(source: Checkpoints, request: Request, folder: Path, progress: Progress) -> Path:
    """Write NAME.mp4: one turn from the camera's position, with depth beside it if shown."""
    opened = source.open(request.checkpoint, request.ema)
    camera = request.camera._replace(target=(0.0, 0.0, 0.0))
    name = request.object_name()
    start = SceneObject(name, source.film(opened, request), camera)
    turns = (math.tau * i / VIDEO_FRAMES for i in range(VIDEO_FRAMES))
    shots = [start.seen_from(camera._replace(yaw=camera.yaw + turn)) for turn in turns]
    options = render_options(opened.saved, replace(request, camera=camera), request.num_steps)
    views = filming.views(opened.saved, shots, options)

    def frames() -> Iterator[Tensor]:
        for index, view in enumerate(views):
            progress(index / VIDEO_FRAMES)
            pair = filming.pictures(view, options, depth_map=request.show == "depth")
            yield from torch.cat(pair, dim=3)

    path = output_folder(folder) / f"{name}.mp4"
    video.save_video(path, frames(), kind="mp4", fps=VIDEO_FPS)
    return path


def save_mesh(source: Checkpoints, request: Request, folder: Path, progress: Progress) -> Path:
    """Write NAME.glb, as extract_shapes.py does."""
    opened = source.open(request.checkpoint, request.ema)
    saved, name = opened.saved, request.object_name()
    is_locked = request.lock_view_dependence
    options = saved.curriculum.evaluation_render(saved.last_step, is_locked=is_locked)
    shape = mesh_extraction.take_shape(
        saved.generator,
        source.film(opened, request),
        Cube(side=options.visible_side, resolution=MESH_RESOLUTION),
        options,
        saved.curriculum.poses(),
        name=name,
        progress=lambda done, needed: progress(done / max(1, needed)),
    )
    path = output_folder(folder) / f"{name}.glb"
    mesh_files.save_mesh(path, shape.mesh)
    return path


SAVERS: dict[str, Saver] = {"picture": save_picture, "video": save_video, "mesh": save_mesh}
