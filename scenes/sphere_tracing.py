"""Sphere tracing: the first hits of rays with the surface of a signed distance field.

A signed distance that never overestimates is a distance that a ray may advance without crossing the
surface. Every ray advances on its own, so that its depth does not depend on the other rays.

Legend: N rays, M of them active.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from generators.cameras import Rays

Distance = Callable[[Tensor], Tensor]  # points (M, 3) -> signed distances (M,)

TOLERANCE = 1e-4  # scene units; a ray this close to the surface has hit it
MIN_SLOPE = 0.1  # of the surface along the ray, for the last correction; bounds it at grazing rays
STEPS = 4  # steps between two selections of the active rays; fewer cost more gathering
LANES = 24576  # rays that advance together: few enough for the cache, enough to outweigh overhead


def trace(scene: Callable[[Tensor], Distance], rays: Rays, near: Tensor, far: Tensor) -> Tensor:
    """Return depths (N,), scene units, at which rays first hit the surface, inf where they miss it.

    A ray closer than TOLERANCE counts as a hit. scene maps the indices (M,) of active rays to the
    distance function of points (M, 3) on them, which must not overestimate the distance. rays are
    (N, 3) each. Rays go from depth near (N,) to far (N,); one with near > far misses.
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
    """Advance rays by STEPS steps; return their depths, hits and whether they stay active, (M,).

    lines holds origins, directions and far by coordinate, seven tensors (M,). Each is too short for
    torch to split among threads, whose synchronization would cost more. A ray that hits early comes
    closer in the remaining steps.
    """
    far = lines[6]
    axes = list(zip(lines[:3], lines[3:6], strict=True))
    gap = last_gap = torch.full_like(t, torch.inf)
    for _ in range(STEPS):
        last_gap, gap = gap, distance(torch.stack([o + t * d for o, d in axes]).T)
        t = t + gap
    is_near, is_inside = gap < TOLERANCE, t <= far
    # Extrapolate to gap 0: per unit of depth the gap shrinks by the cosine of incidence.
    slope = (1 - gap / last_gap.clamp(min=TOLERANCE**2)).clamp(MIN_SLOPE, 1)
    t = torch.where(is_near, t - gap + gap / slope, t)
    return t, is_near & is_inside, (gap >= TOLERANCE) & is_inside
