"""Render the pictures that a visitor requests, a few pixels at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import Rays
from generators.generators import View, as_view, join
from generators.pictures import depth_pictures, normal_pictures, surface_depths, surface_normals
from generators.volumetric_rendering import Rendering, RenderOptions
from image_io import png
from siren.film import Film
from system.files import output_folder
from web_viewer.checkpoints import Checkpoints, Opened
from web_viewer.request import Request, render_options

SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # pixels of coarse pictures' side
FIRST_SIZE = 64  # of the first coarse picture, before the machine's speed is known
QUICK_SECONDS = 0.1  # that a picture may take while the camera moves
NORMALS_FINER = 2  # times the samples for normals: small errors of depth are steps in them
CPU_PART, CUDA_PART = 2**14, 2**19  # samples in a part, some 50 ms: a move cancels the next ones

Progress = Callable[[float], None]  # takes the share that is done


class Picture(NamedTuple):
    """Pixels (3, H, W), uint8, with the request and the generator that they show."""

    pixels: Tensor
    request: Request
    opened: Opened
    seconds: float
    is_finished: bool


def coarse_size(size: int, seconds: float, full: int) -> int:
    """Choose the shorter side of the next quick picture from the seconds that one of size took.

    The largest of SIZES that will take QUICK_SECONDS at most, if work goes with the area; never
    more than the finished picture has.
    """
    affordable = size * (QUICK_SECONDS / max(seconds, 1e-6)) ** 0.5
    return min(full, max((s for s in SIZES if s <= affordable), default=SIZES[0]))


def levels(coarse: int, request: Request, quick_steps: int) -> list[tuple[int, int]]:
    """Return (size, samples per ray) of the pictures; each is twice as large as the last."""
    full, quick = request.image_size, min(quick_steps, request.num_steps)
    sizes = [min(coarse, full)]
    while 2 * sizes[-1] < full:
        sizes.append(2 * sizes[-1])
    finished = (full, request.num_steps)
    return [*(level for size in sizes if (level := (size, quick)) != finished), finished]


def pixels_of(view: View, rays: Rays, request: Request, options: RenderOptions) -> Tensor:
    """Return uint8 pixels (3, H, W) of a view: colors, depths, normals or opacity."""
    if request.show == "opacity":
        image = (view.opacities * 2 - 1)[:, None].expand(-1, 3, -1, -1)
    elif request.show == "depth":
        image = depth_pictures(surface_depths(view, options), options)
    elif request.show == "normals":
        depths = surface_depths(view, options)
        places = rays.origins + depths.flatten(1)[..., None] * rays.directions
        normals = surface_normals(places.unflatten(1, depths.shape[1:]))
        image = normal_pictures(normals, request.camera.placed()[1].to(normals))
    else:
        image = view.images
    return png.to_uint8(image[0])


@torch.no_grad()
def picture_parts(
    opened: Opened, film: Film, request: Request, size: int, num_steps: int
) -> Iterator[Tensor | None]:
    """Render a picture: yield None after each part, and its pixels (3, H, W) at the end."""
    num_steps *= NORMALS_FINER if request.show == "normals" else 1
    options = render_options(opened.saved, request, num_steps)
    frequencies, shape = film.frequencies, request.shape(size)
    rays = Rays(*(ends.to(frequencies) for ends in request.camera.rays(shape)))
    generator, parts = opened.saved.generator, list[Rendering]()
    largest = CUDA_PART if frequencies.is_cuda else CPU_PART
    points = min(largest, generator.points_per_chunk or largest)
    for part in generator.render_parts(film, rays, options, points_per_chunk=points):
        parts.append(part)
        yield None
    yield pixels_of(as_view(join(parts), shape), rays, request, options)


def finished_picture(source: Checkpoints, request: Request) -> Tensor:
    """Render the pixels (3, H, W) of the request, as the page finally shows them."""
    opened = source.open(request.checkpoint, request.ema)
    film = source.film(opened, request)
    *_, pixels = picture_parts(opened, film, request, request.image_size, request.num_steps)
    assert pixels is not None  # the last that picture_parts yields
    return pixels


def save_picture(source: Checkpoints, request: Request, folder: Path, progress: Progress) -> Path:
    """Write NAME.png, or NAME_depth.png and so on; return its path."""
    progress(0.0)
    pixels = finished_picture(source, request)
    kind = "" if request.show == "color" else f"_{request.show}"
    path = output_folder(folder) / f"{request.object_name()}{kind}.png"
    png.save_png(path, pixels)
    return path
