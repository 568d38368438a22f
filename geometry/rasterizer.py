"""Render pictures of a mesh with a depth buffer, in its own colors and as grey clay.

Legend: V vertices, T triangles, P pixels that show the mesh, H x H pixels in all.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from generators import cameras
from generators.cameras import Poses, camera_rotations
from geometry.surface import Mesh

CANDIDATES = 2**21  # pairs of triangle and pixel tested together; bounds the memory
DEPTH_BITS = 32  # of a sort key; the triangle's index follows below them
SUPERSAMPLING = 2
CLAY = (0.82, 0.80, 0.77)
AMBIENT, DIFFUSE = 0.25, 0.75
LIGHT = (-0.4, 0.6, 0.7)  # from the camera's left, above and behind: right, up, back
EDGE = 1e-6  # of a triangle's area: tolerance of the test whether it covers a pixel


class Projection(NamedTuple):
    """Projected vertices: columns and rows (V,) in pixels, and depths (V,).

    The centers of the outermost pixels lie on the edges of the angle of view, as in cast_rays.
    Depths are distances from the camera along the ray, scene units.
    """

    columns: Tensor
    rows: Tensor
    depths: Tensor


def project(
    vertices: Tensor, pitch: float, yaw: float, image_size: int, fov_degrees: float
) -> Projection:
    """Project vertices (V, 3) to a camera at pitch and yaw, radians; depth inf if behind it."""
    poses = Poses(torch.tensor([pitch]).double(), torch.tensor([yaw]).double())
    places, depths = cameras.project(vertices.double()[None], poses, fov_degrees)
    columns, rows = ((image_size - 1) / 2 * (1 + places[0])).unbind(-1)
    return Projection(columns, rows, depths[0])


def visible_triangles(projection: Projection, triangles: Tensor, image_size: int) -> Tensor:
    """Return the index (H, H) of the nearest triangle at each pixel's center, -1 without one."""
    corners = torch.stack(projection, dim=1)[triangles]  # (T, 3 corners, 3)
    low = corners[..., :2].amin(1).ceil().clamp(min=0)
    high = corners[..., :2].amax(1).floor().clamp(max=image_size - 1)
    extent = (high - low + 1).amax(1)  # wider side of each triangle's bounding box, pixels
    # Skip triangles whose box holds no pixel's center and those partly behind the camera.
    extent[((high - low) < 0).any(1) | corners[..., 2].isinf().any(1)] = 0
    keys = torch.full((image_size * image_size,), torch.iinfo(torch.int64).max)
    size = 1
    while bool((extent >= size).any()):  # triangles of similar size together
        widest = size + size // 4
        group = ((extent >= size) & (extent <= widest)).nonzero()[:, 0]
        for part in group.split(max(1, CANDIDATES // widest**2)):
            _fill(keys, corners[part], low[part].long(), part, widest, image_size)
        size = widest + 1
    found = keys & (2**DEPTH_BITS - 1)
    return found.masked_fill(keys == torch.iinfo(torch.int64).max, -1).view(image_size, image_size)


def _fill(
    keys: Tensor, corners: Tensor, low: Tensor, index: Tensor, widest: int, image_size: int
) -> None:
    """Write triangles (K,) into the depth buffer keys (H * H,), sorted by depth, then index."""
    offsets = torch.cartesian_prod(torch.arange(widest), torch.arange(widest))
    pixels = low[:, None] + offsets.view(-1, 2)  # (K, widest^2, 2)
    shares = barycentric(corners[:, None, :, :2], pixels.double())  # (K, widest^2, 3)
    is_hit = (shares >= -EDGE).all(-1) & (pixels < image_size).all(-1)
    depths = (shares * corners[:, None, :, 2]).sum(-1)
    # Positive floats sort like their bits.
    bits = depths.float().clamp(min=0).view(torch.int32).long()
    entries = (bits << DEPTH_BITS) | index[:, None]
    places = pixels[..., 1] * image_size + pixels[..., 0]
    keys.scatter_reduce_(0, places[is_hit], entries[is_hit], "amin")


def barycentric(corners: Tensor, points: Tensor) -> Tensor:
    """Return barycentric coordinates (..., 3) of points (..., 2) in triangles (..., 3, 2).

    All are negative where a triangle has no area.
    """
    a, b, c = corners.unbind(-2)

    def doubled_area(u: Tensor, v: Tensor) -> Tensor:
        return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]

    whole = doubled_area(b - a, c - a)
    parts = [doubled_area(u - points, v - points) for u, v in ((b, c), (c, a), (a, b))]
    shares = torch.stack(parts, dim=-1) / whole[..., None]
    return shares.nan_to_num(-1.0, posinf=-1.0, neginf=-1.0)


def picture(
    mesh: Mesh, pitch: float, yaw: float, image_size: int, fov_degrees: float
) -> tuple[Tensor, Tensor]:
    """Render the mesh in its own colors and as clay: each (3, H, H) in [0, 1], on white."""
    size = SUPERSAMPLING * image_size
    triangles = torch.from_numpy(mesh.triangles).long()
    projection = project(torch.from_numpy(mesh.vertices), pitch, yaw, size, fov_degrees)
    seen = visible_triangles(projection, triangles, size).flatten()
    pixels = (seen >= 0).nonzero()[:, 0]
    corners = triangles[seen[pixels]]  # (P, 3)
    places = torch.stack([pixels % size, pixels // size], dim=1).double()
    outlines = torch.stack([projection.columns, projection.rows], dim=1)[corners]
    shares = barycentric(outlines, places)[..., None].float()  # (P, 3, 1)
    colors = (torch.from_numpy(mesh.colors)[corners] * shares).sum(1)
    normals = F.normalize((torch.from_numpy(mesh.normals)[corners] * shares).sum(1), dim=1)
    clay = torch.tensor(CLAY) * _brightness(normals, pitch, yaw)[:, None]
    return _smooth(colors, pixels, size), _smooth(clay, pixels, size)


def _brightness(normals: Tensor, pitch: float, yaw: float) -> Tensor:
    """Return the brightness (P,) of surfaces with normals (P, 3), lit from beside the camera."""
    rotation = camera_rotations(Poses(torch.tensor([pitch]), torch.tensor([yaw])))[0]
    light = rotation @ F.normalize(torch.tensor(LIGHT), dim=0)
    return AMBIENT + DIFFUSE * (normals @ light).clamp(min=0)


def _smooth(colors: Tensor, pixels: Tensor, size: int) -> Tensor:
    """Put colors (P, 3) of some pixels on white and average them to (3, H, H)."""
    canvas = torch.ones(size * size, 3)
    canvas[pixels] = colors.clamp(0, 1)
    return F.avg_pool2d(canvas.T.reshape(1, 3, size, size), SUPERSAMPLING)[0]


def side_views(yaw: float, yaw_spread: float, count: int) -> list[float]:
    """Return count yaws, radians, spread over the range of the training cameras around yaw."""
    reach = min(2 * yaw_spread, math.pi * (count - 1) / count)  # a turn ends before the first
    return [yaw - reach + 2 * reach * i / (count - 1) for i in range(count)]
