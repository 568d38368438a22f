"""Render pictures and depths of toy cars on a white ground.

All operations on rays are elementwise, so that a picture is the same, bit for bit, whichever others
are rendered with it.

Legend: B images of one car each, R = H * W rays of each, N rays of any of them, G geometry numbers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from generators.cameras import Poses, Rays, camera_origins, camera_rotations
from scenes.colors import brightness, car_albedo
from scenes.sphere_tracing import LANES, Distance, trace
from scenes.toy_cars import WHEEL_OVERHANG, Geometry, ToyCars, car_distance, car_normals

EDGE_CONTRAST = 0.1  # pixels that differ more from a neighbour are supersampled


class CarViews(NamedTuple):
    """Images (B, 3, H, W) in [0, 1], and depths (B, H, W) of pixel centers, inf on the ground."""

    images: Tensor
    depths: Tensor


def render_cars(
    cars: ToyCars, poses: Poses, image_size: int, fov_degrees: float, *, supersampling: int = 3
) -> CarViews:
    """Render antialiased pictures and depths of B cars from poses, (B,) each.

    Pictures have image_size pixels per side, fov_degrees across as in cast_rays, and supersampling
    rays per side of the pixels at edges; 1 gives jagged edges.
    """
    cameras = _Cameras(poses, image_size, fov_degrees)
    shape = (len(cars), image_size, image_size)
    axes = (torch.arange(count, device=cars.paint.device) for count in shape)
    pixels = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # (3, B * R)
    image, row, column = pixels
    colors, depths = _trace_colors(cars, image, cameras.rays(image, row, column))
    if supersampling > 1:
        planes = torch.cat([colors, depths.isinf()[None]]).reshape(4, *shape)
        edge = _edges(planes).flatten().nonzero()[:, 0]
        colors[:, edge] = _mean_colors(cars, cameras, pixels[:, edge], supersampling)
    images = colors.reshape(3, *shape).transpose(0, 1).contiguous()
    return CarViews(images, depths.reshape(shape))


class _Cameras:
    """Cameras of B images, with rays through any position in a picture."""

    def __init__(self, poses: Poses, image_size: int, fov_degrees: float) -> None:
        # In float64 and then rounded, the result does not depend on how many poses there are.
        precise = Poses(*(angles.double() for angles in poses))
        self.origins = camera_origins(precise).T.float().contiguous()  # (3, B)
        self.axes = camera_rotations(precise).permute(2, 1, 0).float().contiguous()  # (3, 3, B)
        self.pitch_of_pixels = 2 / (image_size - 1)
        self.focal = 1 / math.tan(math.radians(fov_degrees) / 2)

    def rays(self, image: Tensor, row: Tensor, column: Tensor) -> Rays:
        """Return rays (N, 3) of images (N,) through row and column, (N,) each, pixels."""
        right, up, back = (axis.index_select(1, image) for axis in self.axes)  # (3, N) each
        x, y = self.pitch_of_pixels * column - 1, 1 - self.pitch_of_pixels * row
        directions = x * right + y * up - self.focal * back
        length = (x * x + y * y + self.focal * self.focal).sqrt()
        return Rays(self.origins.index_select(1, image).T, (directions / length).T)


def _edges(planes: Tensor) -> Tensor:
    """Mark pixels (B, H, W) that differ from a neighbour in any of the planes (C, B, H, W)."""
    is_edge = torch.zeros_like(planes[0], dtype=torch.bool)
    down = ((planes[:, :, 1:] - planes[:, :, :-1]).abs() > EDGE_CONTRAST).any(0)
    right = ((planes[..., 1:] - planes[..., :-1]).abs() > EDGE_CONTRAST).any(0)
    is_edge[:, 1:] |= down
    is_edge[:, :-1] |= down
    is_edge[..., 1:] |= right
    is_edge[..., :-1] |= right
    return is_edge


def _mean_colors(cars: ToyCars, cameras: _Cameras, pixels: Tensor, supersampling: int) -> Tensor:
    """Average colors (3, N) over a square grid in pixels (3, N): image, row and column."""
    num_parts = supersampling**2
    across = (torch.arange(supersampling, device=pixels.device) + 0.5) / supersampling - 0.5
    down, right = torch.cartesian_prod(across, across).T[..., None]  # (parts, 1) each
    image, row, column = pixels
    image = image.repeat(num_parts)
    rays = cameras.rays(image, (row + down).flatten(), (column + right).flatten())
    parts = _trace_colors(cars, image, rays)[0].reshape(3, num_parts, -1).unbind(1)
    return sum(parts[1:], parts[0]) / num_parts


def _trace_colors(cars: ToyCars, image: Tensor, rays: Rays) -> tuple[Tensor, Tensor]:
    """Return colors (3, N) and depths (N,) of rays (N, 3) of images (N,)."""
    depths = _depths(cars, image, rays)
    numbers = torch.stack([*cars.geometry, *cars.paint.T])  # (G + 3, B), gathered together
    all_hits = depths.isfinite().nonzero()[:, 0]
    parts = []
    for hit in all_hits.split(LANES // 3):  # x, y and z together make LANES
        origins, directions = (x.T.index_select(1, hit) for x in rays)
        points = (origins + depths.index_select(0, hit) * directions).T
        *geometry, red, green, blue = numbers.index_select(1, image.index_select(0, hit))
        car, paint = Geometry(*geometry), torch.stack([red, green, blue])
        parts.append(car_albedo(car, paint, points) * brightness(car_normals(car, points)))
    colors = torch.ones_like(rays.origins.T)
    colors[:, all_hits] = torch.cat(parts, dim=1)
    return colors, depths


def _depths(cars: ToyCars, image: Tensor, rays: Rays) -> Tensor:
    """Return depths (N,) at which rays (N, 3) of images (N,) hit their cars."""

    def scene(index: Tensor) -> Distance:
        owner = image.index_select(0, index)
        car = Geometry(*(numbers.index_select(0, owner) for numbers in cars.geometry))
        return lambda points: car_distance(car, points)

    return trace(scene, rays, *_box_interval(cars.geometry, image, rays))


def _box_interval(cars: Geometry, image: Tensor, rays: Rays) -> tuple[Tensor, Tensor]:
    """Return depths (N,) at which rays enter and leave their car's box; near > far is a miss."""
    near = torch.zeros_like(rays.origins[:, 0])
    far = torch.full_like(near, torch.inf)
    halves = (cars.half_length, cars.half_height, cars.half_width + WHEEL_OVERHANG)
    for half, origin, direction in zip(halves, rays.origins.T, rays.directions.T, strict=True):
        inverse = 1 / direction
        middle = -origin * inverse
        reach = half.index_select(0, image) * inverse.abs()
        near, far = torch.maximum(near, middle - reach), torch.minimum(far, middle + reach)
    return near, far
