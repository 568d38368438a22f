"""Whether a mesh is one body, whether it has holes, and whether cameras see its surface.

Legend: V vertices, E edges, T triangles.
"""

from typing import NamedTuple

import numpy as np

from generators.cameras import PoseDistribution
from generators.volumetric_rendering import RenderOptions
from geometry.surface import Mesh, areas, as_trimesh, triangle_components
from geometry.visibility import visible_part


class MeshSanity(NamedTuple):
    """components and holes: counts; main_share and seen_share: shares of the area in [0, 1]."""

    components: int
    holes: int
    main_share: float
    seen_share: float


def mesh_sanity(
    mesh: Mesh, poses: PoseDistribution, options: RenderOptions, *, spacing: float
) -> MeshSanity:
    """What is odd about a closed mesh; all 0 where it is empty.

    components: connected pieces, cavities inside of the body among them; floating specks show here.
    main_share: of the largest piece in the area of all.
    holes: tunnels through the body, the genus of all pieces together: from Euler's formula
    V - E + T = 2 components - 2 holes of a closed surface.
    seen_share: share of the area that a camera of the distribution sees (in its picture, its ray
    range, facing it, not hidden); the rest was never trained and may be anything.

    Args:
        mesh: closed, from geometry.surface.surface_mesh.
        poses: where the cameras stand.
        options: their angle of view and ray range.
        spacing: voxels of the grid that the mesh came from, scene units.
    """
    if not len(mesh.triangles):
        return MeshSanity(0, 0, 0.0, 0.0)
    labels = triangle_components(mesh.triangles)
    components = int(labels.max()) + 1
    pieces = np.bincount(labels, areas(mesh))
    seen = visible_part(mesh, poses, options, spacing=spacing)
    return MeshSanity(
        components=components,
        holes=max(0, components - as_trimesh(mesh).euler_number // 2),
        main_share=float(pieces.max() / pieces.sum()),
        seen_share=float(areas(seen).sum() / pieces.sum()),
    )
