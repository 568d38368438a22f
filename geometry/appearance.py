"""Where the color of a surface comes from: the places that its light leaves.

Light does not come from the surface at one level of a density but from some way behind it. A camera
that looks straight at the surface sees each place behind it with the share of light that is lost
there; a few places that share the light evenly stand for all.

Legend: V vertices, S samples along a line, Q places.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.volumetric_rendering import RenderOptions, clamped_density
from geometry.level import Lattice

SAMPLES = 48
REACH = 1 / 10  # of the lattice's side: how far behind the surface light is looked for
VERTICES = 2**15  # looked at together; bounds the memory


def lit_places(
    vertices: Tensor, normals: Tensor, lattice: Lattice, options: RenderOptions, *, count: int
) -> Tensor:
    """Places (V, Q, 3) behind the surface that share the light it loses evenly.

    Args:
        vertices: (V, 3), on a surface.
        normals: (V, 3), outward.
        lattice: raw densities.
        options: what raw densities mean.
        count: Q.
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
    """Depths (V, Q) along lines of length reach that share the light lost there evenly.

    density: (V, S) >= 0, in the middles of S even steps.
    """
    num_samples = density.shape[1]
    optical_depth = F.pad((density * (reach / num_samples)).cumsum(1), (1, 0))  # (V, S + 1)
    lost = -torch.expm1(-optical_depth)
    shares = (torch.arange(count) + 0.5) / count * lost[:, -1:]  # (V, Q)
    above = torch.searchsorted(lost, shares.contiguous()).clamp(1, num_samples)
    low, high = lost.gather(1, above - 1), lost.gather(1, above)
    inside = ((shares - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)).clamp(0, 1)
    return (above - 1 + inside) * (reach / num_samples)
