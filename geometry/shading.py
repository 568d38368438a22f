"""Pictures of a mesh from several sides, with its own colors and as grey clay.

Legend: V vertices, T triangles, H x H pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import Poses, camera_rotations
from geometry.rasterizer import barycentric, project, visible_triangles
from geometry.surface import Mesh

SUPERSAMPLING = 2
CLAY = (0.82, 0.80, 0.77)
AMBIENT, DIFFUSE = 0.25, 0.75
LIGHT = (-0.4, 0.6, 0.7)  # from the camera's left, above and behind: right, up, back


def picture(
    mesh: Mesh, pitch: float, yaw: float, image_size: int, fov_degrees: float
) -> tuple[Tensor, Tensor]:
    """The mesh in its own colors, and as clay: each (3, H, H) in [0, 1], on white."""
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
    """How bright surfaces with normals (P, 3) are in the light of a lamp beside the camera."""
    rotation = camera_rotations(Poses(torch.tensor([pitch]), torch.tensor([yaw])))[0]
    light = rotation @ F.normalize(torch.tensor(LIGHT), dim=0)
    return AMBIENT + DIFFUSE * (normals @ light).clamp(min=0)


def _smooth(colors: Tensor, pixels: Tensor, size: int) -> Tensor:
    """Colors (P, 3) of some pixels on white, averaged to (3, H, H)."""
    canvas = torch.ones(size * size, 3)
    canvas[pixels] = colors.clamp(0, 1)
    return F.avg_pool2d(canvas.T.reshape(1, 3, size, size), SUPERSAMPLING)[0]


def side_views(yaw: float, yaw_spread: float, count: int) -> list[float]:
    """Yaws of pictures that show what the cameras around yaw see, radians."""
    reach = min(2 * yaw_spread, math.pi * (count - 1) / count)  # all around, without a repetition
    return [yaw - reach + 2 * reach * i / (count - 1) for i in range(count)]
