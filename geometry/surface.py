"""Triangle meshes: marching cubes on a density grid, normals, connected components.

Legend: N voxels along each axis, V vertices, T triangles.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from geometry.density_grid import Cube

Array = NDArray[Any]

CLEARANCE = 1e-3  # of the largest step to a neighbour: least distance of a value from the level


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
        """Return the triangles for which is_kept (T,) holds, without unused vertices."""
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
    """Return the closed surface, grey, around all voxels whose value is above level.

    values are float32 (N, N, N), axis order [ix, iy, iz]. Where the inside reaches a face of the
    cube, a plane half a voxel outside closes the surface. The mesh is empty where no voxel is above
    level.
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
    """Pad values with one layer on each side: the last one mirrored below the level."""
    closed: Array = np.zeros([size + 2 for size in values.shape], np.float32)
    closed[1:-1, 1:-1, 1:-1] = values
    for axis in range(3):
        layers = np.moveaxis(closed, axis, 0)
        for outer, last in ((0, 1), (-1, -2)):
            layers[outer] = np.minimum(layers[last], 2 * np.float32(level) - layers[last])
    return closed


def _keep_clear(closed: Array, level: float) -> None:
    """Move values away from the level by up to CLEARANCE, so that no two vertices coincide."""
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
    """Return outward unit normals (V, 3), float32: area-weighted means over adjacent triangles."""
    doubled = trimesh.triangles.cross(vertices[triangles].astype(np.float64))  # twice the area long
    normals = trimesh.geometry.mean_vertex_normals(len(vertices), triangles, doubled)
    return np.asarray(normals, np.float32)


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    """Convert a mesh to trimesh's class, without colors."""
    return trimesh.Trimesh(
        vertices=mesh.vertices,
        faces=mesh.triangles,
        vertex_normals=mesh.normals,
        process=False,
    )


def triangle_components(triangles: Array) -> Array:
    """Label each triangle (T,) with its connected component, across shared edges."""
    return trimesh.graph.connected_component_labels(
        trimesh.graph.face_adjacency(triangles), node_count=len(triangles)
    )


def areas(mesh: Mesh) -> Array:
    """Return the areas (T,) of the triangles, square scene units."""
    corners = mesh.vertices[mesh.triangles].astype(np.float64)  # (T, 3, 3)
    return trimesh.triangles.area(corners)


def largest_component(mesh: Mesh) -> Mesh:
    """Return the connected component with the largest area."""
    labels = triangle_components(mesh.triangles)
    return mesh.part(labels == np.argmax(np.bincount(labels, areas(mesh))))
