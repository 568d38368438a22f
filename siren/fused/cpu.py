"""The folded field on the CPU, in chunks that stay in the cache, recomputed in the backward pass.

The textbook evaluation is bound by memory: each layer writes four arrays of all points. Here a
chunk of points goes through all layers before the next one starts, and only the output is kept. The
backward pass repeats the layers of those points alone whose output received a gradient: with the
ReLU density of the paper, empty space receives none.

Under autocast to bfloat16 the square products take operands rounded to it; phases, sines, sums, the
first layer and the heads stay float32.

Legend: B objects, P points per object, G directions per object, H hidden width, L trunk layers,
n points of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from siren.fused.arithmetic import product, sine_
from siren.fused.cpu_backward import add_gradients, filled_up, rows
from siren.fused.cpu_weights import Inputs, Weights
from siren.fused.folded import FoldedField

# Of one layer's output in one chunk. Forward: two mebibytes; smaller ones are closer to the core,
# but each operation costs some ten microseconds more. Backward all layers of a chunk are kept.
CHUNK_NUMBERS = 2**19
BACKWARD_NUMBERS = 2**18
# Share of a chunk's points from which on all are colored: choosing them costs as much.
MANY = 0.85


def is_supported(encoded: Tensor) -> bool:
    """Whether evaluate takes these points: float32 or float64 on the CPU.

    Under autocast: float32, to bfloat16.
    """
    if encoded.device.type != "cpu":
        return False
    if not torch.is_autocast_enabled("cpu"):
        return encoded.dtype in (torch.float32, torch.float64)
    return encoded.dtype == torch.float32 and torch.get_autocast_dtype("cpu") == torch.bfloat16


def evaluate(
    field: FoldedField, encoded: Tensor, directions: Tensor, *, skips_clear: bool = False
) -> Tensor:
    """Colors in [0, 1] and raw densities (B, P, 4); differentiable once.

    Differentiating twice (create_graph=True) raises a RuntimeError.

    Args:
        field: folded weights of B objects.
        encoded: (B, P, in) what the first layer sees.
        directions: (B, G, 3); each serves P / G consecutive points.
        skips_clear: points whose raw density is not positive may be left black.
    """
    operands = _operands(encoded)
    with torch.autocast("cpu", enabled=False):
        # What a direction adds to the color layer is the same for all points that it serves.
        color_bias = torch.baddbmm(
            field.color_bias[:, None], directions, field.direction_weight.transpose(1, 2)
        )  # (B, G, H)
        output: Tensor = _FieldFunction.apply(  # type: ignore[no-untyped-call]
            (operands, skips_clear), encoded, *_tensors(field, color_bias)
        )
    return output


def density(field: FoldedField, encoded: Tensor) -> Tensor:
    """Raw densities (B, P) of encoded (B, P, in), without the color layer; not differentiable."""
    inputs = Inputs.of(_tensors(field, field.color_bias[:, None]))
    operands = _operands(encoded)
    output = encoded.new_empty(encoded.shape[:2])
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for index in range(len(encoded)):
            weights = inputs.one(index, operands)
            for part in _chunks(encoded.shape[1], inputs):
                features, _ = _trunk_chunk(encoded[index, part], weights)
                _density_chunk(features, weights, output[index, part])
    return output


def _operands(encoded: Tensor) -> torch.dtype:
    return torch.bfloat16 if torch.is_autocast_enabled("cpu") else encoded.dtype


def _tensors(field: FoldedField, color_bias: Tensor) -> list[Tensor]:
    heads = (*field.density_head, *field.color_head)
    return [color_bias, field.color_weight, *heads, *field.trunk_weights, *field.trunk_biases]


def _chunks(num_points: int, inputs: Inputs) -> list[slice]:
    """The points of one object."""
    size = max(1, CHUNK_NUMBERS // inputs.color.shape[-1])
    return [slice(start, min(start + size, num_points)) for start in range(0, num_points, size)]


def _trunk_chunk(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """The trunk's features (n, H) of x (n, in), and the same as operands."""
    for matrix, vector in weights.trunk:
        features = sine_(product(x, matrix, vector))
        x = features.to(weights.color.dtype)
    return features, x


def _density_chunk(features: Tensor, weights: Weights, out: Tensor) -> None:
    """Fill out (n,) with raw densities."""
    torch.add(features @ weights.density_head[0][0], weights.density_head[1], out=out)


def _color_chunk(x: Tensor, color_bias: Tensor, weights: Weights, out: Tensor) -> None:
    """Fill out (n, 3) with colors of features x (n, H), operands; color_bias (H,) or (n, H)."""
    features = sine_(product(x, weights.color, color_bias))
    torch.addmm(weights.color_head[1], features, weights.color_head[0].t(), out=out)
    out.sigmoid_()


def _forward_part(
    encoded: Tensor, part: slice, weights: Weights, out: Tensor, skips_clear: bool
) -> None:
    """Fill out (P, 4) with colors and densities of a part of one object's points (P, in)."""
    num_points, chosen = len(encoded), out[part]
    features, x = _trunk_chunk(encoded[part], weights)
    _density_chunk(features, weights, chosen[:, 3])
    if skips_clear:
        dense = (chosen[:, 3] > 0).nonzero()[:, 0]
        if len(dense) < MANY * len(x):
            chosen[:, :3] = 0
            indices = filled_up(dense)
            colors = x.new_empty(len(indices), 3, dtype=out.dtype)
            bias = rows(weights.color_bias, indices + part.start, num_points)
            _color_chunk(x.index_select(0, indices), bias, weights, colors)
            chosen[:, :3].index_copy_(0, dense, colors[: len(dense)])
            return
    _color_chunk(x, rows(weights.color_bias, part, num_points), weights, chosen[:, :3])


class _FieldFunction(torch.autograd.Function):
    """The whole field as one operation; its inputs are those that evaluate lists."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, how: tuple[torch.dtype, bool], encoded: Tensor, *rest: Tensor
    ) -> Tensor:
        operands, skips_clear = how
        inputs = Inputs.of(rest)
        num_objects, num_points, _ = encoded.shape
        output = encoded.new_empty(num_objects, num_points, 4)
        for index in range(num_objects):
            weights = inputs.one(index, operands)
            for part in _chunks(num_points, inputs):
                _forward_part(encoded[index], part, weights, output[index], skips_clear)
        ctx.operands = operands
        ctx.save_for_backward(output, encoded, *rest)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():  # create_graph=True: the result would lack its graph
            raise RuntimeError("the fast field is differentiable once; use FilmSiren.reference")
        output, encoded, *rest = ctx.saved_tensors
        inputs = Inputs.of(rest)
        of_encoded = torch.zeros_like(encoded) if ctx.needs_input_grad[1] else None
        total = Inputs.of([torch.zeros_like(tensor) for tensor in rest])
        chunk = max(1, BACKWARD_NUMBERS // inputs.color.shape[-1])
        # Exact: a point whose output received no gradient adds nothing to any other gradient.
        needed = (gradient != 0).any(-1)
        with torch.autocast("cpu", enabled=False):
            for index in needed.any(-1).nonzero()[:, 0].tolist():
                weights = inputs.one(index, ctx.operands)
                squares = [*(matrix for matrix, _ in weights.trunk[1:]), weights.color]
                both = (weights, [matrix.t().contiguous() for matrix in squares])
                arrays = (encoded[index], output[index], gradient[index])
                for points in needed[index].nonzero()[:, 0].split(chunk):
                    of_first = add_gradients(arrays, points, both, total.one(index))
                    if of_encoded is not None:
                        of_encoded[index, points] = of_first.t() @ weights.trunk[0][0]
        return (None, of_encoded, *total.flat())
