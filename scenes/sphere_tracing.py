"""Sphere tracing: where rays first meet the surface of a signed distance field.

A signed distance that never overestimates tells how far a ray may advance without crossing the
surface. Every ray advances on its own, so that its depth does not depend on the other rays.

Legend: N rays, M of them under way.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from generators.cameras import Rays

Distance = Callable[[Tensor], Tensor]  # points (M, 3) -> signed distances (M,)

TOLERANCE = 1e-4  # scene units; a ray this close to the surface has met it
MIN_SLOPE = 0.1  # the last correction trusts no surface that is more oblique
STEPS = 4  # steps between two looks at which rays are finished; fewer cost more gathering
LANES = 24576  # rays that advance together: few enough for the cache, enough to outweigh overhead


def trace(scene: Callable[[Tensor], Distance], rays: Rays, near: Tensor, far: Tensor) -> Tensor:
    """Depths at which rays first meet the surface, inf where they miss it.

    A ray that is found closer than TOLERANCE counts as meeting the surface.

    Args:
        scene: from the indices (M,) of the rays under way, the distance function of one point
            (M, 3) on each. It must not overestimate the distance to the surface.
        rays: origins and unit-length directions, each (N, 3).
        near: (N,) depths at which the rays start, scene units.
        far: (N,) depths at which they end; a ray with near > far misses.

    Returns:
        (N,) depths, scene units.
    """
    depths = torch.full_like(near, torch.inf)
    origins, directions = (x.T.contiguous().unbind() for x in rays)  # (N,) three times each
    waiting = (near <= far).nonzero()[:, 0]
    index, t = waiting[:0], near[:0]
    while len(index) + len(waiting) > 0:
        new, waiting = waiting.tensor_split([LANES - len(index)])
        index, t = torch.cat([index, new]), torch.cat([t, near.index_select(0, new)])
        lines = [row.index_select(0, index) for row in (*origins, *directions, far)]
        t, is_hit, is_going = _advance(scene(index), lines, t)
        hit, going = is_hit.nonzero()[:, 0], is_going.nonzero()[:, 0]
        depths.index_copy_(0, index.index_select(0, hit), t.index_select(0, hit))
        index, t = index.index_select(0, going), t.index_select(0, going)
    return depths


def _advance(
    distance: Distance, lines: Sequence[Tensor], t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Depths (M,) after STEPS steps, and which rays (M,) have hit and which are under way.

    Lines are origins, directions and far, coordinate by coordinate: seven times (M,), each too
    short for torch to share among threads, whose waiting for each other would cost more.
    A ray that hits early comes closer by the steps that are left.
    """
    far = lines[6]
    axes = list(zip(lines[:3], lines[3:6], strict=True))
    gap = last_gap = torch.full_like(t, torch.inf)
    for _ in range(STEPS):
        last_gap, gap = gap, distance(torch.stack([o + t * d for o, d in axes]).T)
        t = t + gap
    is_near, is_inside = gap < TOLERANCE, t <= far
    # The gap has shrunk by the cosine of incidence per unit of depth: where will it be nothing?
    slope = (1 - gap / last_gap.clamp(min=TOLERANCE**2)).clamp(MIN_SLOPE, 1)
    t = torch.where(is_near, t - gap + gap / slope, t)
    return t, is_near & is_inside, (gap >= TOLERANCE) & is_inside
