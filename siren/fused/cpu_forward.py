"""Evaluate one chunk of the folded field: colors and densities of some points of one object.

Each row of a matrix is a point.

Legend: P points per object, G directions per object, H hidden width, n points of a chunk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from siren.fused.arithmetic import product, sine_
from siren.fused.cpu_weights import Weights
from siren.fused.folded import ClearBelow

# oneDNN compiles code for every new shape, which took longer than computing: the number of points
# that need a color or have a gradient varies, so it is padded to a multiple of this.
POINTS_MULTIPLE = 64
# From this share of a chunk's points on, all are colored: selecting some would cost as much.
MANY = 0.85


class Points(NamedTuple):
    """Consecutive points of one object: all its encoded points (P, in), a slice, the weights."""

    encoded: Tensor
    chosen: slice
    weights: Weights

    @property
    def color_bias(self) -> Tensor:
        """Return the color bias (n, H), or (H,) if all points share one direction."""
        return rows(self.weights.color_bias, self.chosen, len(self.encoded))


def filled_up(points: Tensor) -> Tensor:
    """Pad the indices points with zeros to the next multiple of POINTS_MULTIPLE."""
    return F.pad(points, (0, -len(points) % POINTS_MULTIPLE))


def rows(color_bias: Tensor, points: Tensor | slice, num_points: int) -> Tensor:
    """Return the color bias (n, H) or (H,) of some points; color_bias (G, H) is the object's."""
    if len(color_bias) == 1:
        return color_bias[0]
    if isinstance(points, slice):
        points = torch.arange(points.start, points.stop)
    return color_bias.index_select(0, points // (num_points // len(color_bias)))


def evaluate(points: Points, out: Tensor, clear_below: ClearBelow | None) -> None:
    """Fill out (n, 4) with colors and raw densities.

    clear_below: points with no higher raw density become black; None colors all.
    """
    weights = points.weights
    encoded = points.encoded[points.chosen]
    x = _trunk(encoded, weights)
    _density(x, weights, out[:, 3])
    dense = None
    if clear_below is not None:
        dense = (out[:, 3] > clear_below.limits(encoded)).nonzero()[:, 0]
    if dense is None or len(dense) >= MANY * len(x):
        _colors_of(sine_(product(x, weights.color, points.color_bias)), weights, out[:, :3])
        return
    indices = filled_up(dense)
    bias = rows(weights.color_bias, indices + points.chosen.start, len(points.encoded))
    colors = out.new_empty(len(indices), 3)
    _colors_of(sine_(product(x.index_select(0, indices), weights.color, bias)), weights, colors)
    out[:, :3] = 0
    out[:, :3].index_copy_(0, dense, colors[: len(dense)])


def evaluate_density(points: Points, out: Tensor) -> None:
    """Fill out (n,) with raw densities."""
    _density(_trunk(points.encoded[points.chosen], points.weights), points.weights, out)


def _trunk(x: Tensor, weights: Weights) -> Tensor:
    """Return the trunk's features (n, H), in the operands' type, of encoded points x (n, in)."""
    for matrix, vector in weights.trunk:
        x = sine_(product(x, matrix, vector)).to(weights.color.dtype)
    return x


def _density(features: Tensor, weights: Weights, out: Tensor) -> None:
    """Fill out (n,) with the raw densities of features (n, H)."""
    weight, bias = weights.density_head
    torch.add(features.to(weight.dtype) @ weight[0], bias, out=out)


def _colors_of(features: Tensor, weights: Weights, out: Tensor) -> None:
    """Fill out (n, 3) with the colors of the color layer's features (n, H)."""
    weight, bias = weights.color_head
    torch.addmm(bias, features.to(weight.dtype), weight.t(), out=out)
    out.sigmoid_()
