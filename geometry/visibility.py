"""Find the part of a surface that cameras can see: those of a pose distribution, or of a photo.

Each camera of a distribution has a depth buffer of vertices. A vertex is seen if it faces the
camera, lies in its picture and ray range, and is at most TOLERANCE behind the nearest vertex of its
pixel. Pixels are wider than the distance between vertices, so that the buffer has no gaps.

Legend: V vertices, T triangles.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from scipy.sparse import coo_matrix
from torch import Tensor

from generators.cameras import PoseDistribution, Poses, camera_origins, project, sample_poses
from generators.volumetric_rendering import RenderOptions
from geometry import rasterizer
from geometry.surface import Array, Mesh, areas

NUM_CAMERAS = 128
PIXEL = 2.0  # voxels: width of a pixel
TOLERANCE = 4.0  # voxels; an oblique surface spans some within a pixel
SMOOTHING = 64  # rounds of averaging over neighbours, which smooths the outline of the cut
PINHOLE = 8.0  # voxels; smaller unseen spots (this squared) amid seen surface are kept


def visible_part(
    mesh: Mesh, poses: PoseDistribution, options: RenderOptions, *, spacing: float
) -> Mesh:
    """Cut away the triangles of a closed mesh that no training camera can see.

    NUM_CAMERAS are drawn, always the same ones, with the angle of view and ray range of options.
    The mesh's vertices are about spacing apart, the grid's, scene units.
    """
    if not len(mesh.triangles):
        return mesh
    is_seen = _smoothed(mesh, _seen_vertices(mesh, poses, options, spacing))
    ends = trimesh.geometry.faces_to_edges(mesh.triangles)
    hidden = ends[~is_seen[ends].any(1)]
    labels = trimesh.graph.connected_component_labels(hidden, node_count=len(is_seen))
    third = np.repeat(areas(mesh) / 3, 3)
    size = np.bincount(labels[mesh.triangles.ravel()], third, minlength=len(is_seen))
    is_bordering = np.zeros(len(is_seen), dtype=bool)
    is_bordering[labels[ends[is_seen[ends[:, 0]] != is_seen[ends[:, 1]]]]] = True
    is_pinhole = is_bordering[labels] & (size[labels] < (PINHOLE * spacing) ** 2)
    is_kept = is_seen | is_pinhole
    return mesh.part(np.asarray(is_kept[mesh.triangles].all(1)))


def _smoothed(mesh: Mesh, is_seen: Array) -> Array:
    """Replace is_seen (V,) by the majority around each vertex; the raw outline is frayed."""
    ends, count = trimesh.geometry.faces_to_edges(mesh.triangles), len(is_seen)
    both = np.concatenate([ends, ends[:, ::-1]])
    joined = coo_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), (count, count)).tocsr()
    degree = np.bincount(both[:, 0], minlength=count)
    share = is_seen.astype(np.float64)
    for _ in range(SMOOTHING):
        share = (share + joined @ share / degree) / 2
    return share > 0.5


def _seen_vertices(
    mesh: Mesh, poses: PoseDistribution, options: RenderOptions, spacing: float
) -> Array:
    vertices, normals = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.normals)
    width = 2 * math.tan(math.radians(options.fov_degrees) / 2)  # of the picture, at the origin
    image_size = max(2, round(width / (PIXEL * spacing)))
    is_seen = torch.zeros(len(vertices), dtype=torch.bool)
    cameras = sample_poses(poses, NUM_CAMERAS, rng=torch.Generator().manual_seed(0))
    for pitch, yaw in zip(cameras.pitch.tolist(), cameras.yaw.tolist(), strict=True):
        seen = rasterizer.project(vertices, pitch, yaw, image_size, options.fov_degrees)
        column, row = seen.columns.round().long(), seen.rows.round().long()
        is_inside = (column >= 0) & (column < image_size) & (row >= 0) & (row < image_size)
        is_inside &= (seen.depths >= options.near) & (seen.depths <= options.far)
        inside = is_inside.nonzero()[:, 0]
        pixel = row[inside] * image_size + column[inside]
        depths = seen.depths[inside]
        nearest = torch.full((image_size**2,), torch.inf, dtype=depths.dtype)
        nearest.scatter_reduce_(0, pixel, depths, "amin")
        is_near = depths <= nearest[pixel] + TOLERANCE * spacing
        origin = camera_origins(Poses(torch.tensor([pitch]), torch.tensor([yaw])))
        is_facing = (normals[inside] * (origin - vertices[inside])).sum(1) > 0
        is_seen[inside[is_near & is_facing]] = True
    return is_seen.numpy()


def seen_points(
    points: Tensor,
    normals: Tensor,
    pose: Poses,
    depths: Tensor,
    *,
    fov_degrees: float,
    slack: float,
) -> Tensor:
    """Return which points (..., 3) of a surface a camera sees, bool (...).

    A point is seen if it faces the camera, lies in its picture, and is at most slack (scene units)
    behind the surface that one of the nine nearest pixels shows.

    Args:
        points: of the surface; NaN is not seen.
        normals: (..., 3), outward.
        pose: of the camera, (1,).
        depths: (H, H) of the surface that the camera sees, NaN where it sees none.
        fov_degrees: the camera's angle of view.
        slack: scene units.
    """
    flat, size = points.reshape(1, -1, 3), depths.shape[-1]
    places, distances = project(flat, pose, fov_degrees)
    column, row = ((places[0] + 1) * (size - 1) / 2).nan_to_num(-1).round().long().unbind(-1)
    is_inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    farthest = F.max_pool2d(depths.nan_to_num(-torch.inf)[None], 3, stride=1, padding=1)[0]
    shown = farthest[row.clamp(0, size - 1), column.clamp(0, size - 1)]
    towards = camera_origins(pose).to(flat) - flat[0]
    is_facing = (normals.reshape(-1, 3) * towards).sum(-1) > 0
    return (is_inside & is_facing & (distances[0] <= shown + slack)).view(points.shape[:-1])
