"""One chunk of the folded field: colors and densities of some points of one object.

Points stand in rows.

Legend: P points per object, G directions per object, H hidden width, n points of a chunk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from siren.fused.arithmetic import product, sine_
from siren.fused.cpu_weights import Weights

# oneDNN makes machine code for each shape that it meets: how many points are to be colored, or have
# a gradient, is another number every time, and making it took longer than computing.
POINTS_MULTIPLE = 64
# Share of a chunk's points from which on all are colored: choosing them costs as much.
MANY = 0.85


class Points(NamedTuple):
    """Consecutive points of one object: its encoded points (P, in), which, and the weights."""

    encoded: Tensor
    chosen: slice
    weights: Weights

    @property
    def color_bias(self) -> Tensor:
        """(n, H), or (H,) where all points are seen from one direction."""
        return rows(self.weights.color_bias, self.chosen, len(self.encoded))


def filled_up(points: Tensor) -> Tensor:
    """Indices, and zeros up to the next multiple of POINTS_MULTIPLE."""
    return F.pad(points, (0, -len(points) % POINTS_MULTIPLE))


def rows(color_bias: Tensor, points: Tensor | slice, num_points: int) -> Tensor:
    """The color bias (n, H) or (H,) of the points of one object; color_bias is (G, H)."""
    if len(color_bias) == 1:
        return color_bias[0]
    if isinstance(points, slice):
        points = torch.arange(points.start, points.stop)
    return color_bias.index_select(0, points // (num_points // len(color_bias)))


def evaluate(points: Points, out: Tensor, *, skips_clear: bool) -> None:
    """Fill out (n, 4) with colors and raw densities.

    skips_clear: points whose raw density is not positive become black.
    """
    features, x = _trunk(points)
    _density(features, points.weights, out[:, 3])
    dense = _dense(out) if skips_clear else None
    _color(points, x, dense, out[:, :3])


def evaluate_density(points: Points, out: Tensor) -> None:
    """Fill out (n,) with raw densities."""
    _density(_trunk(points)[0], points.weights, out)


def _trunk(points: Points) -> tuple[Tensor, Tensor]:
    """The trunk's features (n, H), and the same as operands."""
    x = points.encoded[points.chosen]
    for matrix, vector in points.weights.trunk:
        features = sine_(product(x, matrix, vector))
        x = features.to(points.weights.color.dtype)
    return features, x


def _density(features: Tensor, weights: Weights, out: Tensor) -> None:
    """Fill out (n,) with the raw densities of features (n, H)."""
    torch.add(features @ weights.density_head[0][0], weights.density_head[1], out=out)


def _dense(out: Tensor) -> Tensor:
    """Indices of the points of out (n, 4) whose raw density is positive."""
    return (out[:, 3] > 0).nonzero()[:, 0]


def _color(points: Points, x: Tensor, dense: Tensor | None, out: Tensor) -> None:
    """Fill out (n, 3) with the colors of features x (n, H), operands: of all or of dense points."""
    weights = points.weights
    if dense is None or len(dense) >= MANY * len(x):
        _colors_of(x, points.color_bias, weights, out)
        return
    out[:] = 0
    indices = filled_up(dense)
    colors = torch.empty(len(indices), 3, dtype=out.dtype)
    bias = rows(weights.color_bias, indices + points.chosen.start, len(points.encoded))
    _colors_of(x.index_select(0, indices), bias, weights, colors)
    out.index_copy_(0, dense, colors[: len(dense)])


def _colors_of(x: Tensor, color_bias: Tensor, weights: Weights, out: Tensor) -> None:
    """Fill out (n, 3) with colors of features x (n, H), operands; color_bias (H,) or (n, H)."""
    features = sine_(product(x, weights.color, color_bias))
    torch.addmm(weights.color_head[1], features, weights.color_head[0].t(), out=out)
    out.sigmoid_()
