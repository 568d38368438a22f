"""A field with FiLM folded into its linear layers: every object has its own weights."""

from typing import NamedTuple

from torch import Tensor


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
