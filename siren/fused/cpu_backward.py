"""The backward pass of one chunk of the folded field; it computes the layers again.

Each row of a matrix is a point.

Legend: P points per object, G directions per object, H hidden width, L trunk layers, n points of a
chunk.
"""

from typing import NamedTuple

from torch import Tensor

from siren.fused.arithmetic import outer_product, product, product_times, sine_and_cosine
from siren.fused.cpu_forward import filled_up, rows
from siren.fused.cpu_weights import Weights


class Upstream(NamedTuple):
    """One object's encoded points (P, in), their output (P, 4) and the output's gradient."""

    encoded: Tensor
    output: Tensor
    gradient: Tensor


class Downstream(NamedTuple):
    """Sums of gradients: of the weights, and of encoded points (P, in) or None."""

    weights: Weights
    encoded: Tensor | None


class BothWays(NamedTuple):
    """An object's weights, and its transposed H x H matrices, the color layer's last."""

    weights: Weights
    transposed: list[Tensor]

    @classmethod
    def of(cls, weights: Weights) -> "BothWays":
        """Transpose the H x H matrices of weights."""
        squares = [*(matrix for matrix, _ in weights.trunk[1:]), weights.color]
        return cls(weights, [matrix.t().contiguous() for matrix in squares])


def add_gradients(known: Upstream, points: Tensor, weights: BothWays, into: Downstream) -> None:
    """Compute the layers of the points with indices points (n,) again; add their gradients."""
    count = len(points)
    points = filled_up(points)
    x, output, gradient = (array.index_select(0, points) for array in known)
    gradient[count:] = 0  # padding adds nothing
    bias = rows(weights.weights.color_bias, points, len(known.encoded))
    layers = _layers(x, bias, weights.weights)
    color_phase, first = _backward(Upstream(x, output, gradient), layers, weights, into.weights)
    _add_color_bias(color_phase, points, len(known.encoded), into.weights)
    if into.encoded is not None:
        into.encoded[points[:count]] = first[:count] @ weights.weights.trunk[0][0]


def _layers(x: Tensor, color_bias: Tensor, weights: Weights) -> Tensor:
    """Return the sines and cosines (2, L + 1, n, H) of all layers, the color layer's last.

    They have the operands' type; x (n, in) are encoded points; color_bias is (n, H) or (H,).
    """
    trunk = [*weights.trunk, (weights.color, color_bias)]
    layers = weights.color.new_empty(2, len(trunk), len(x), len(weights.color))
    for (matrix, bias), sine, cosine in zip(trunk, *layers, strict=True):
        sine_and_cosine(product(x, matrix, bias), sine, cosine)
        x = sine
    return layers


def _backward(
    chunk: Upstream, layers: Tensor, weights: BothWays, into: Weights
) -> tuple[Tensor, Tensor]:
    """Add the chunk's gradients; return those of the color and the first phases (n, H)."""
    (forward, transposed), (sines, cosines) = weights, layers
    operands, exact_type = forward.color.dtype, chunk.encoded.dtype
    rgb = chunk.output[:, :3]
    color_logits = chunk.gradient[:, :3] * rgb * (1 - rgb)  # (n, 3)
    density = chunk.gradient[:, 3:]  # (n, 1)
    into.color_head[0].add_(color_logits.t() @ sines[-1].to(exact_type))
    into.color_head[1].add_(color_logits.sum(0))
    into.density_head[0].add_(density.t() @ sines[-2].to(exact_type))
    into.density_head[1].add_(density.sum(0))
    color_phase = (color_logits @ forward.color_head[0]).to(operands).mul_(cosines[-1])
    into.color.add_(outer_product(color_phase, sines[-2]))
    gradient = product(color_phase, transposed[-1])
    gradient.addmm_(density.to(operands), forward.density_head[0].to(operands))
    phase = gradient.mul_(cosines[-2])
    for i in reversed(range(1, len(forward.trunk))):
        into.trunk[i][0].add_(outer_product(phase, sines[i - 1]))
        into.trunk[i][1].add_(phase.sum(0))
        phase = product_times(phase, transposed[i - 1], cosines[i - 1])
    first = phase.to(exact_type)
    # Three rows are faster than three columns.
    into.trunk[0][0].add_(outer_product(chunk.encoded, first).t())
    into.trunk[0][1].add_(first.sum(0))
    return color_phase, first


def _add_color_bias(color_phase: Tensor, points: Tensor, num_points: int, into: Weights) -> None:
    """Add the gradients of color phases (n, H) to those of the color bias of their points."""
    directions = len(into.color_bias)
    if directions == 1:
        into.color_bias[0] += color_phase.sum(0)
    else:
        rays = points // (num_points // directions)
        into.color_bias.index_add_(0, rays, color_phase.to(into.color_bias.dtype))
