"""Choose points behind a surface at which its vertex colors are sampled.

The light that a camera sees does not leave the iso-surface itself but matter behind it. A camera
that looks straight at the surface weights each point behind it by the share of light absorbed
there; a few points with equal shares stand for all.

Legend: V vertices, S samples along a line, Q points per vertex.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.volumetric_rendering import RenderOptions, clamped_density
from geometry.level import Lattice

SAMPLES = 48
REACH = 1 / 10  # of the lattice's side: length of the line behind each vertex
VERTICES = 2**15  # processed together; bounds the memory


def lit_points(
    vertices: Tensor, normals: Tensor, lattice: Lattice, options: RenderOptions, *, count: int
) -> Tensor:
    """Return points (V, Q, 3) behind the surface that absorb equal shares of the light.

    vertices (V, 3) lie on the surface, normals (V, 3) point outwards; count is Q. options give the
    activation of the lattice's raw densities.
    """
    reach = REACH * lattice.spacing * (len(lattice.values) - 1)
    steps = (torch.arange(SAMPLES) + 0.5) / SAMPLES * reach
    parts = []
    for vertex, normal in zip(vertices.split(VERTICES), normals.split(VERTICES), strict=True):
        raw = lattice.sample(vertex[:, None] - normal[:, None] * steps[:, None])  # (V, S)
        depths = light_depths(clamped_density(raw, options), reach, count)
        parts.append(vertex[:, None] - normal[:, None] * depths[..., None])
    return torch.cat(parts)


def light_depths(density: Tensor, reach: float, count: int) -> Tensor:
    """Return depths (V, Q) along lines of length reach that absorb equal shares of the light.

    density: (V, S) >= 0, in the middles of S even steps.
    """
    num_samples = density.shape[1]
    optical_depth = F.pad((density * (reach / num_samples)).cumsum(1), (1, 0))  # (V, S + 1)
    absorbed = -torch.expm1(-optical_depth)
    shares = (torch.arange(count) + 0.5) / count * absorbed[:, -1:]  # (V, Q)
    above = torch.searchsorted(absorbed, shares.contiguous()).clamp(1, num_samples)
    low, high = absorbed.gather(1, above - 1), absorbed.gather(1, above)
    inside = ((shares - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)).clamp(0, 1)
    return (above - 1 + inside) * (reach / num_samples)
