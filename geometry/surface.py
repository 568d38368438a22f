"""Triangle meshes: the surface at a level of a grid, its normals, and parts of it.

Legend: N voxels along each axis, V vertices, T triangles.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from geometry.density_grid import Cube

Array = NDArray[Any]

CLEARANCE = 1e-3  # of the largest step to a neighbour: a voxel is at least so far from the level


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mesh:
    """Triangles, counter-clockwise seen from outside.

    vertices (V, 3) in scene units, normals (V, 3) of unit length, outward, colors (V, 3) in [0, 1]:
    float32. triangles (T, 3), indices of vertices: int32.
    """

    vertices: Array
    triangles: Array
    normals: Array
    colors: Array

    def part(self, is_kept: Array) -> "Mesh":
        """The triangles (T,) that are kept, with their vertices as they are."""
        triangles = self.triangles[is_kept]
        is_used = np.zeros(len(self.vertices), dtype=bool)
        is_used[triangles] = True
        new_index = np.cumsum(is_used, dtype=np.int32) - 1
        return Mesh(
            vertices=self.vertices[is_used],
            triangles=new_index[triangles].astype(np.int32),
            normals=self.normals[is_used],
            colors=self.colors[is_used],
        )


def surface_mesh(values: Array, cube: Cube, level: float) -> Mesh:
    """The closed surface around all voxels whose value is above level; grey.

    Where the inside reaches a face of the cube, the surface is closed by a plane half a voxel
    outside of it. Empty where no voxel is above level.

    Args:
        values: float32 (N, N, N), axis order [ix, iy, iz].
        cube: where they are.
        level: a number among them.
    """
    closed = _closed(values, level)
    if not closed.min() < level < closed.max():
        return Mesh(
            **{name: np.zeros((0, 3), np.float32) for name in ("vertices", "normals", "colors")},
            triangles=np.zeros((0, 3), np.int32),
        )
    _keep_clear(closed, level)
    places, triangles, _, _ = marching_cubes(closed, level, gradient_direction="ascent")
    vertices = np.asarray(cube.first) + (places.astype(np.float64) - 1) * cube.spacing
    return Mesh(
        vertices=vertices.astype(np.float32),
        triangles=triangles.astype(np.int32),
        normals=vertex_normals(vertices, triangles),
        colors=np.full((len(vertices), 3), 0.5, np.float32),
    )


def _closed(values: Array, level: float) -> Array:
    """The values with one layer more on each side, below level and as far from it as the last."""
    closed: Array = np.zeros([size + 2 for size in values.shape], np.float32)
    closed[1:-1, 1:-1, 1:-1] = values
    for axis in range(3):
        layers = np.moveaxis(closed, axis, 0)
        for outer, last in ((0, 1), (-1, -2)):
            layers[outer] = np.minimum(layers[last], 2 * np.float32(level) - layers[last])
    return closed


def _keep_clear(closed: Array, level: float) -> None:
    """Move values off the level, so that no two vertices coincide: at most CLEARANCE of a voxel."""
    near = CLEARANCE * max(float(closed.max()) - level, level - float(closed.min()))
    for i in range(1, len(closed) - 1):  # a plane at a time bounds the memory
        gap = closed[i] - np.float32(level)
        j, k = np.nonzero(np.abs(gap[1:-1, 1:-1]) < 2 * near)
        j, k = j + 1, k + 1
        here = closed[i, j, k]
        around = [closed[i - 1, j, k], closed[i + 1, j, k], closed[i, j - 1, k]]
        around += [closed[i, j + 1, k], closed[i, j, k - 1], closed[i, j, k + 1]]
        step = np.max([np.abs(other - here) for other in around], axis=0, initial=0.0)
        least = np.maximum(CLEARANCE * step, np.spacing(np.float32(abs(level))))
        moved = np.maximum(np.abs(gap[j, k]), least)
        closed[i, j, k] = np.float32(level) + np.where(gap[j, k] > 0, moved, -moved)


def vertex_normals(vertices: Array, triangles: Array) -> Array:
    """Outward unit normals (V, 3), float32: those of the triangles around, weighted by area."""
    a, b, c = (vertices[triangles[:, corner]].astype(np.float64) for corner in range(3))
    doubled = np.cross(b - a, c - a)  # (T, 3), twice the area long
    total = np.zeros((len(vertices), 3))
    for corner in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(
                triangles[:, corner], doubled[:, axis], minlength=len(vertices)
            )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return (total / np.maximum(length, np.finfo(np.float64).tiny)).astype(np.float32)


def edges(triangles: Array) -> Array:
    """The vertices (3 T, 2) at the ends of all sides of the triangles; row i is of i mod T."""
    return np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])


def vertex_components(triangles: Array, is_vertex: Array) -> Array:
    """Which connected piece each vertex (V,) is in, over the vertices where is_vertex (V,) holds.

    Every other vertex is a piece of its own.
    """
    ends = edges(triangles)
    return _components(ends[is_vertex[ends].all(1)], len(is_vertex))


def triangle_components(triangles: Array) -> Array:
    """Which connected piece each triangle (T,) is in; pieces share edges, not only vertices."""
    ends = np.sort(edges(triangles).astype(np.int64), axis=1)
    edge = ends[:, 0] * (triangles.max(initial=0) + 1) + ends[:, 1]
    order = np.argsort(edge, kind="stable")
    owner = order % len(triangles)
    is_shared = edge[order[1:]] == edge[order[:-1]]
    pairs = np.stack([owner[:-1][is_shared], owner[1:][is_shared]], axis=1)
    return _components(pairs, len(triangles))


def _components(pairs: Array, count: int) -> Array:
    """Which connected piece each of count things is in, where pairs (K, 2) of them are joined."""
    joined = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (count, count))
    labels: Array = connected_components(joined, directed=False)[1]
    return labels


def areas(mesh: Mesh) -> Array:
    """Areas (T,) of the triangles, square scene units."""
    a, b, c = (mesh.vertices[mesh.triangles[:, corner]].astype(np.float64) for corner in range(3))
    return np.asarray(0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1))


def largest_component(mesh: Mesh) -> Mesh:
    """The connected piece with the largest area."""
    labels = triangle_components(mesh.triangles)
    return mesh.part(labels == np.argmax(np.bincount(labels, areas(mesh))))
