"""BOUNDARY: pictures of what a visitor asks for, coarse ones first, a few pixels at a time."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import Rays
from generators.generators import View, as_view, join
from generators.pictures import depth_pictures, normal_pictures, surface_depths, surface_normals
from generators.volumetric_rendering import Rendering, RenderOptions
from image_io import png
from siren.film import Film
from system.errors import UsageError
from web_viewer.checkpoints import Checkpoints, Opened, Stamp
from web_viewer.request import MAX_SIZE, Request, quick_steps, render_options

SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # pixels of coarse pictures' side
FIRST_SIZE = 64  # of the first coarse picture, before anybody knows how fast the machine is
QUICK_SECONDS = 0.1  # that a picture may take while the camera moves
CPU_PART, CUDA_PART = 2**14, 2**19  # samples in a part, some 50 ms: a move cancels what follows


class Picture(NamedTuple):
    """Pixels (3, H, W), uint8, what they show, and how they came about."""

    pixels: Tensor
    request: Request
    opened: Opened
    seconds: float
    is_finished: bool


def coarse_size(size: int, seconds: float, full: int) -> int:
    """Pixels of the shorter side of the next quick picture, when one of size took seconds.

    The largest of SIZES that will take QUICK_SECONDS at most, if work goes with the area; never
    more than the finished picture has.
    """
    affordable = size * (QUICK_SECONDS / max(seconds, 1e-6)) ** 0.5
    return min(full, max((s for s in SIZES if s <= affordable), default=SIZES[0]))


def levels(coarse: int, request: Request, quick_steps: int) -> list[tuple[int, int]]:
    """(size, samples per ray) of the pictures from the quick one to the finished one.

    Each has twice the size of the last; only the finished one has all the samples asked for.
    """
    full, quick = request.image_size, min(quick_steps, request.num_steps)
    sizes = [min(coarse, full)]
    while 2 * sizes[-1] < full:
        sizes.append(2 * sizes[-1])
    finished = (full, request.num_steps)
    return [*(level for size in sizes if (level := (size, quick)) != finished), finished]


def pixels_of(view: View, rays: Rays, request: Request, options: RenderOptions) -> Tensor:
    """The uint8 pixels (3, H, W) of what the request wants shown of a view."""
    if request.show == "opacity":
        image = (view.opacities * 2 - 1)[:, None].expand(-1, 3, -1, -1)
    elif request.show == "depth":
        image = depth_pictures(surface_depths(view, options), options)
    elif request.show == "normals":
        depths = surface_depths(view, options)
        places = rays.origins + depths.flatten(1)[..., None] * rays.directions
        normals = surface_normals(places.unflatten(1, depths.shape[1:]))
        image = normal_pictures(normals, request.eye.placed()[1].to(normals))
    else:
        image = view.images
    return png.to_uint8(image[0])


@torch.no_grad()
def picture_parts(
    opened: Opened, film: Film, request: Request, *, size: int, num_steps: int, max_points: int
) -> Iterator[Tensor | None]:
    """None after each part of the picture, and its pixels (3, H, W) at the end."""
    options = render_options(opened.saved, request, num_steps)
    frequencies, shape = film.frequencies, request.shape(size)
    rays = Rays(*(ends.to(frequencies) for ends in request.eye.rays(shape)))
    largest = CUDA_PART if frequencies.is_cuda else CPU_PART
    parts: list[Rendering] = []
    for part in opened.saved.generator.render_parts(
        film, rays, options, points_per_chunk=min(largest, max_points)
    ):
        parts.append(part)
        yield None
    yield pixels_of(as_view(join(parts), shape), rays, request, options)


def finished_picture(source: Checkpoints, request: Request, *, max_points: int) -> Tensor:
    """The pixels (3, H, W) of the request, as the page shows it in the end."""
    opened = source.open(request.checkpoint, request.ema)
    *_, pixels = picture_parts(
        opened,
        source.film(opened, request),
        request,
        size=request.image_size,
        num_steps=request.num_steps,
        max_points=max_points,
    )
    assert pixels is not None  # the last thing that picture_parts gives
    return pixels


class Progressive:
    """The pictures of one visitor: quick ones while the camera moves, then ever finer ones.

    Args:
        source: of generators.
        request: tells what is wanted now.
        is_stale: tells whether something else is wanted by now.
        show: takes each picture.
        complain: takes what is wrong with the request, one line.
        max_points: in one call of the field, at most.
    """

    def __init__(
        self,
        source: Checkpoints,
        request: Callable[[], Request],
        is_stale: Callable[[], bool],
        *,
        show: Callable[[Picture], None],
        complain: Callable[[str], None],
        max_points: int,
    ) -> None:
        self._source, self._request, self._max_points = source, request, max_points
        self._is_stale, self._show, self._complain = is_stale, show, complain
        self._coarse = FIRST_SIZE
        self._shown: tuple[Request, Stamp] | None = None

    def is_outdated(self) -> bool:
        """Whether the files of what was shown last have changed since."""
        if self._shown is None:
            return False
        request, stamp = self._shown
        return self._source.stamp(request.checkpoint, request.ema) != stamp

    def work(self) -> Iterator[None]:
        """Render what is wanted now; a step is a part of a picture.

        The first picture is always finished, so that one who drags without a pause sees pictures;
        those that refine it are given up as soon as they are stale.
        """
        request = self._request()
        try:
            opened = self._source.open(request.checkpoint, request.ema)
            self._shown = request, opened.stamp
            film = self._source.film(opened, request)
        except UsageError as error:
            self._complain(str(error))
            return
        steps = levels(self._coarse, request, quick_steps(opened.saved))
        for index, (size, num_steps) in enumerate(steps):
            parts = picture_parts(
                opened, film, request, size=size, num_steps=num_steps, max_points=self._max_points
            )
            seconds = 0.0
            pixels: Tensor | None = None
            while pixels is None:
                began = time.perf_counter()
                pixels = next(parts)
                seconds += time.perf_counter() - began
                yield
                if index > 0 and self._is_stale():
                    return
            if index == 0:
                self._coarse = coarse_size(size, seconds, MAX_SIZE)
            self._show(Picture(pixels, request, opened, seconds, index == len(steps) - 1))
