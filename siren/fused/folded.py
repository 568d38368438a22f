"""A field with FiLM folded into its linear layers: every object has its own weights."""

from typing import NamedTuple

import torch
from torch import Tensor


class ClearBelow(NamedTuple):
    """The raw densities up to which a point is clear: start + slope |encoded point|."""

    start: float = 0.0
    slope: float = 0.0

    def limits(self, encoded: Tensor) -> Tensor | float:
        """Return the limits (...) at encoded points (..., in), or one number for all of them."""
        if self.slope == 0:
            return self.start
        return self.start + self.slope * torch.linalg.vector_norm(encoded[..., -3:], dim=-1)


class FoldedField(NamedTuple):
    """Weights of B objects: a layer is sin(weight x + bias); the heads are shared.

    trunk_weights (B, H, in) and trunk_biases (B, H), one per layer; the color layer's weight in two
    parts, (B, H, 3) for the direction and (B, H, H) for the features, and its bias (B, H);
    density_head (1, H) and (1,), color_head (3, H) and (3,), a sigmoid follows.
    """

    trunk_weights: list[Tensor]
    trunk_biases: list[Tensor]
    direction_weight: Tensor
    color_weight: Tensor
    color_bias: Tensor
    density_head: tuple[Tensor, Tensor]
    color_head: tuple[Tensor, Tensor]


class JoinedField(NamedTuple):
    """FoldedField in six tensors, as its implementations on CUDA take it.

    first (B, H, in) is the first layer's weight, direction (B, H, 3) the color layer's for the
    direction; inner (B, L, H, H) are those of the other layers of the trunk, then the color
    layer's for the features. biases (B, L + 1, H) are in the order of the layers; heads (4, H) and
    head_biases (4,) give color logits (a sigmoid follows), then the density.
    """

    first: Tensor
    direction: Tensor
    inner: Tensor
    biases: Tensor
    heads: Tensor
    head_biases: Tensor

    @property
    def width(self) -> int:
        """Return H."""
        return self.inner.shape[-1]
