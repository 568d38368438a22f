"""The backward pass of one chunk of the folded field, its layers recomputed.

Points stand in columns: none of the three products of a layer needs a copy then.

Legend: P points per object, G directions per object, H hidden width, n points of a chunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from siren.fused.arithmetic import product, sine_and_cosine_
from siren.fused.cpu_forward import filled_up, rows
from siren.fused.cpu_weights import Weights


class Activations(NamedTuple):
    """Sines (H, n) of every layer, colors last, as operands; the derivatives of the sines."""

    sines: list[Tensor]
    cosines: list[Tensor]


class Upstream(NamedTuple):
    """What of one object is known: its encoded points (P, in), output and its gradient (P, 4)."""

    encoded: Tensor
    output: Tensor
    gradient: Tensor


class Downstream(NamedTuple):
    """Where gradients are added up: of the weights, and of encoded points (P, in) or None."""

    weights: Weights
    encoded: Tensor | None


class BothWays(NamedTuple):
    """An object's weights, and its square matrices transposed, color last."""

    weights: Weights
    transposed: list[Tensor]

    @classmethod
    def of(cls, weights: Weights) -> "BothWays":
        """Weights, and what follows from them."""
        squares = [*(matrix for matrix, _ in weights.trunk[1:]), weights.color]
        return cls(weights, [matrix.t().contiguous() for matrix in squares])


def add_gradients(known: Upstream, points: Tensor, weights: BothWays, into: Downstream) -> None:
    """Add the gradients of points (n,), indices, whose layers are recomputed."""
    count = len(points)
    points = filled_up(points)
    x, output, gradient = (array.index_select(0, points) for array in known)
    gradient[count:] = 0  # what fills up adds nothing
    bias = rows(weights.weights.color_bias, points, len(known.encoded))
    activations = _recomputed(x, torch.atleast_2d(bias).t(), weights.weights)
    color_phase, first = _backward(
        Upstream(x, output, gradient), activations, weights, into.weights
    )
    _add_color_bias(color_phase, points, len(known.encoded), into.weights)
    if into.encoded is not None:
        into.encoded[points[:count]] = first[:, :count].t() @ weights.weights.trunk[0][0]


def _recomputed(x: Tensor, color_bias: Tensor, weights: Weights) -> Activations:
    """The activations of x (n, in); color_bias is (H, n) or (H, 1)."""
    operands = weights.color.dtype
    sines, cosines = [], []
    biases = [*(vector[:, None] for _, vector in weights.trunk), color_bias]
    matrices = [*(matrix for matrix, _ in weights.trunk), weights.color]
    for matrix, bias in zip(matrices, biases, strict=True):
        sine, cosine = sine_and_cosine_(product(matrix, x).add_(bias))
        sines.append(sine.to(operands))
        cosines.append(cosine)
        x = sines[-1].t()
    return Activations(sines, cosines)


def _backward(
    chunk: Upstream, activations: Activations, weights: BothWays, into: Weights
) -> tuple[Tensor, Tensor]:
    """Add the chunk's share to the gradients; returns those of color and first phases (H, n)."""
    (forward, transposed), (sines, cosines) = weights, activations
    operands, exact_type = forward.color.dtype, chunk.encoded.dtype
    rgb = chunk.output[:, :3]
    color_logits = (chunk.gradient[:, :3] * rgb * (1 - rgb)).t().contiguous()  # (3, n)
    density = chunk.gradient[:, 3].contiguous()  # (n,)
    into.color_head[0].addmm_(color_logits, sines[-1].to(exact_type).t())
    into.color_head[1].add_(color_logits.sum(1))
    color_phase = product(forward.color_head[0].t(), color_logits.t()).mul_(cosines[-1])
    phase = color_phase.to(operands)
    into.color.add_(product(phase, sines[-2]))
    into.density_head[0][0].addmv_(sines[-2].to(exact_type), density)
    into.density_head[1].add_(density.sum())
    gradient = product(transposed[-1], phase.t()).addr_(forward.density_head[0][0], density)
    for i in reversed(range(1, len(forward.trunk))):
        exact = gradient.mul_(cosines[i])
        phase = exact.to(operands)
        into.trunk[i][0].add_(product(phase, sines[i - 1]))
        into.trunk[i][1].add_(exact.sum(1))
        gradient = product(transposed[i - 1], phase.t())
    first = gradient.mul_(cosines[0])
    # Three rows are faster than three columns.
    into.trunk[0][0].add_(product(chunk.encoded.t(), first).t())
    into.trunk[0][1].add_(first.sum(1))
    return color_phase, first


def _add_color_bias(color_phase: Tensor, points: Tensor, num_points: int, into: Weights) -> None:
    """Add gradients of color phases (H, n) to those of the bias that the points have."""
    directions = len(into.color_bias)
    if directions == 1:
        into.color_bias[0] += color_phase.sum(1)
    else:
        rays = points // (num_points // directions)
        # Not contiguous, this takes four times as long.
        into.color_bias.index_add_(0, rays, color_phase.t().contiguous())
