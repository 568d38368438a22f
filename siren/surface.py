"""Density from the signed distance to a surface.

Legend: B objects, P points per object. Distances are scene units, positive inside of the object.
Source: VolSDF (Yariv et al. 2021) and StyleSDF (Or-El et al. 2022), equation 5.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Share of the density inside below which there is none: such points cost nothing and learn nothing.
CLEAR = 1e-6
ROUNDING = 1e-7  # of float32 near 1


class Surface(NamedTuple):
    """How signed distances become densities.

    The signed distance at x is radius - |x| plus the raw output of the field's density head: a ball
    before the head has learned anything. The density is a sigmoid of it, 1 / width far inside.

    width: how soon density rises at the surface: from 12 % to 88 % within four widths.
    radius: that of the ball.
    """

    width: float
    radius: float

    def distances(self, points: Tensor, raw: Tensor) -> Tensor:
        """Return signed distances (B, P) at points (B, P, 3) with raw outputs (B, P)."""
        return raw + (self.radius - torch.linalg.vector_norm(points, dim=-1))

    def densities(self, points: Tensor, raw: Tensor) -> Tensor:
        """Return densities (B, P), not above 0 where they are below CLEAR of those inside."""
        return self.densities_at(self.distances(points, raw))

    def densities_at(self, distances: Tensor) -> Tensor:
        """Return the densities of signed distances."""
        return (torch.sigmoid(distances / self.width) - CLEAR) / self.width

    @property
    def level(self) -> float:
        """Return the density at the surface.

        Half of the light of a ray that meets it at a right angle is absorbed in front of it.
        """
        return (0.5 - CLEAR) / self.width

    def inverse(self, densities: Tensor) -> Tensor:
        """Return the signed distances with these densities, within 16 widths of the surface.

        Between voxels they are straight lines, which densities are not.
        """
        inside = (densities * self.width + CLEAR).clamp(ROUNDING, 1 - ROUNDING)
        return self.width * torch.logit(inside)

    @property
    def clear_at_center(self) -> float:
        """Return the raw output up to which the origin has no density; at x it is |x| higher."""
        return self.width * math.log(CLEAR / (1 - CLEAR)) - self.radius
