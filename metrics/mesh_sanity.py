"""Check a mesh: connected components, holes, and the share of it that cameras see.

Legend: V vertices, E edges, T triangles.
"""

from typing import NamedTuple

import numpy as np

from generators.cameras import PoseDistribution
from generators.volumetric_rendering import RenderOptions
from geometry.surface import Mesh, areas, as_trimesh, triangle_components
from geometry.visibility import visible_part


class MeshSanity(NamedTuple):
    """Counts of components and holes; main_share and seen_share: parts of the area in [0, 1]."""

    components: int
    holes: int
    main_share: float
    seen_share: float


def mesh_sanity(
    mesh: Mesh, poses: PoseDistribution, options: RenderOptions, *, spacing: float
) -> MeshSanity:
    """Measure a closed mesh (geometry.surface.surface_mesh); all figures are 0 where it is empty.

    components: connected components; floating specks and cavities inside the body are some.
    main_share: the largest component's share of the whole area. holes: tunnels through the body,
    the total genus, by Euler's formula for closed surfaces, V - E + T = 2 components - 2 holes.
    seen_share: share of the area that a camera of the distribution sees (in its picture and ray
    range, front side, not hidden); the rest was never trained. spacing is that of the mesh's grid,
    scene units.
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
