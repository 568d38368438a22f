"""The backward pass of one chunk of the folded field, its layers recomputed.

Points stand in columns here: none of the three products of a layer needs a copy then.

Legend: G directions per object, H hidden width, n points of a chunk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from siren.fused.arithmetic import product, sine_and_cosine_
from siren.fused.cpu_weights import Weights

# oneDNN makes machine code for each shape that it meets: how many points have a gradient is another
# number every time, and making it took longer than computing.
POINTS_MULTIPLE = 64


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


class _Activations(NamedTuple):
    """Sines (H, n) of every layer, colors last, as operands; the derivatives of the sines."""

    sines: list[Tensor]
    cosines: list[Tensor]


def _recompute_chunk(x: Tensor, color_bias: Tensor, weights: Weights) -> _Activations:
    """The activations of x (n, in), with points in columns: no product below needs a copy then.

    color_bias: (H, n) or (H, 1).
    """
    operands = weights.color.dtype
    sines, cosines = [], []
    biases = [*(vector[:, None] for _, vector in weights.trunk), color_bias]
    for matrix, bias in zip([*(m for m, _ in weights.trunk), weights.color], biases, strict=True):
        sine, cosine = sine_and_cosine_(product(matrix, x).add_(bias))
        sines.append(sine.to(operands))
        cosines.append(cosine)
        x = sines[-1].t()
    return _Activations(sines, cosines)


def _backward_chunk(
    x: Tensor,
    activations: _Activations,
    weights: tuple[Weights, list[Tensor]],
    upstream: tuple[Tensor, Tensor],
    into: Weights,
) -> tuple[Tensor, Tensor]:
    """Add the chunk's share to the gradients; returns those of color and first phases (H, n).

    weights: the object's, and its square matrices transposed.
    upstream: gradients of the color logits (3, n) and of the densities (n,).
    """
    (sines, cosines), (forward, transposed) = activations, weights
    operands = forward.color.dtype
    color_logits, density = upstream
    into.color_head[0].addmm_(color_logits, sines[-1].to(x.dtype).t())
    into.color_head[1].add_(color_logits.sum(1))
    color_phase = product(forward.color_head[0].t(), color_logits.t()).mul_(cosines[-1])
    phase = color_phase.to(operands)
    into.color.add_(product(phase, sines[-2]))
    into.density_head[0][0].addmv_(sines[-2].to(x.dtype), density)
    into.density_head[1].add_(density.sum())
    gradient = product(transposed[-1], phase.t()).addr_(forward.density_head[0][0], density)
    for i in reversed(range(1, len(forward.trunk))):
        exact = gradient.mul_(cosines[i])
        phase = exact.to(operands)
        into.trunk[i][0].add_(product(phase, sines[i - 1]))
        into.trunk[i][1].add_(exact.sum(1))
        gradient = product(transposed[i - 1], phase.t())
    first = gradient.mul_(cosines[0])
    into.trunk[0][0].add_(product(x.t(), first).t())  # three rows are faster than three columns
    into.trunk[0][1].add_(first.sum(1))
    return color_phase, first


def add_gradients(
    arrays: tuple[Tensor, Tensor, Tensor],
    points: Tensor,
    weights: tuple[Weights, list[Tensor]],
    into: Weights,
) -> Tensor:
    """Add the gradients of some points of one object; returns that of the first phases (H, n).

    arrays: the object's encoded points, output and gradient of the output, (P, ...) each.
    """
    num_points, count = len(arrays[0]), len(points)
    points = filled_up(points)
    x, output, upstream = (array.index_select(0, points) for array in arrays)
    upstream[count:] = 0  # what fills up adds nothing
    rgb = output[:, :3]
    color_bias = rows(weights[0].color_bias, points, num_points)
    color_phase, first = _backward_chunk(
        x,
        _recompute_chunk(x, torch.atleast_2d(color_bias).t(), weights[0]),
        weights,
        ((upstream[:, :3] * rgb * (1 - rgb)).t().contiguous(), upstream[:, 3].contiguous()),
        into,
    )
    if len(into.color_bias) == 1:
        into.color_bias[0] += color_phase.sum(1)
    else:
        share = num_points // len(into.color_bias)
        into.color_bias.index_add_(0, points // share, color_phase.t())
    return first[:, :count]
