"""The folded field on the CPU, in chunks that stay in the cache, recomputed in the backward pass.

The textbook evaluation is bound by memory: each layer writes four arrays of all points. Here a
chunk of points goes through all layers before the next one starts, in the same few buffers, and
only the output is kept. The backward pass repeats the layers of those points alone whose output
received a gradient: with the ReLU density of the paper, empty space receives none.

Legend: B objects, P points per object, G directions per object, H hidden width, L trunk layers,
n points of a chunk.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from siren.fused.folded import FoldedField

CHUNK_NUMBERS = 2**17  # of one layer's output in one chunk: half a mebibyte, a few fit in L2


class _Weights(NamedTuple):
    """One object's weights, as matrices for points in rows."""

    trunk: list[tuple[Tensor, Tensor]]  # (H, in), (H,)
    color: Tensor  # (H, H)
    density_head: tuple[Tensor, Tensor]
    color_head: tuple[Tensor, Tensor]


class _Activations(NamedTuple):
    """Arguments and values of every sine for one chunk, colors last, each (n, H)."""

    phases: list[Tensor]
    sines: list[Tensor]


def is_supported(encoded: Tensor) -> bool:
    """Whether evaluate takes these points: float32 or float64 on the CPU, outside autocast."""
    return (
        encoded.device.type == "cpu"
        and encoded.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def evaluate(field: FoldedField, encoded: Tensor, directions: Tensor) -> Tensor:
    """Colors in [0, 1] and raw densities (B, P, 4); differentiable once.

    Differentiating twice (create_graph=True) raises a RuntimeError.

    Args:
        field: folded weights of B objects.
        encoded: (B, P, in) what the first layer sees.
        directions: (B, G, 3); each serves P / G consecutive points.
    """
    # What a direction adds to the color layer is the same for all points that it serves.
    color_bias = torch.baddbmm(
        field.color_bias[:, None], directions, field.direction_weight.transpose(1, 2)
    )  # (B, G, H)
    output: Tensor = _FieldFunction.apply(  # type: ignore[no-untyped-call]
        encoded,
        color_bias,
        field.color_weight,
        *field.density_head,
        *field.color_head,
        *field.trunk_weights,
        *field.trunk_biases,
    )
    return output


def density(field: FoldedField, encoded: Tensor) -> Tensor:
    """Raw densities (B, P) of encoded (B, P, in), without the color layer; not differentiable."""
    num_objects, num_points, _ = encoded.shape
    width = field.color_weight.shape[-1]
    chunk = max(1, CHUNK_NUMBERS // width)
    buffers = [encoded.new_empty(min(chunk, num_points), width) for _ in range(2)]
    output = encoded.new_empty(num_objects, num_points, 1)
    head_weight, head_bias = field.density_head
    for index in range(num_objects):
        trunk = [
            (weight[index].t(), bias[index])
            for weight, bias in zip(field.trunk_weights, field.trunk_biases, strict=True)
        ]
        for part in range(0, num_points, chunk):
            x = encoded[index, part : part + chunk]
            current, other = (buffer[: len(x)] for buffer in buffers)
            for matrix, vector in trunk:
                torch.addmm(vector, x, matrix, out=current).sin_()
                x, current, other = current, other, current
            out = output[index, part : part + chunk]
            torch.addmm(head_bias, x, head_weight.t(), out=out)
    return output[..., 0]


def _weights(
    index: int, color: Tensor, heads: tuple[Tensor, ...], trunk: Sequence[Tensor]
) -> _Weights:
    layers = len(trunk) // 2
    return _Weights(
        [(trunk[i][index], trunk[layers + i][index]) for i in range(layers)],
        color[index],
        (heads[0], heads[1]),
        (heads[2], heads[3]),
    )


def _rows(color_bias: Tensor, points: Tensor | slice, num_points: int) -> Tensor:
    """The color bias (n, H) or (H,) of the points of one object; color_bias is (G, H)."""
    if len(color_bias) == 1:
        return color_bias[0]
    if isinstance(points, slice):
        points = torch.arange(points.start, points.stop)
    return color_bias[points // (num_points // len(color_bias))]


def _forward_chunk(
    x: Tensor, bias: Tensor, weights: _Weights, out: Tensor, buffers: list[Tensor]
) -> None:
    """Fill out (n, 4) with colors and densities of x (n, in), using two buffers of (n, H)."""
    current, other = (buffer[: len(x)] for buffer in buffers)
    for matrix, vector in weights.trunk:
        torch.addmm(vector, x, matrix.t(), out=current).sin_()
        x, current, other = current, other, current
    torch.addmm(weights.density_head[1], x, weights.density_head[0].t(), out=out[:, 3:])
    torch.addmm(bias, x, weights.color.t(), out=current).sin_()
    torch.addmm(weights.color_head[1], current, weights.color_head[0].t(), out=out[:, :3])
    out[:, :3].sigmoid_()


def _recompute_chunk(x: Tensor, bias: Tensor, weights: _Weights) -> _Activations:
    phases, sines = [], []
    for matrix, vector in weights.trunk:
        phases.append(torch.addmm(vector, x, matrix.t()))
        x = phases[-1].sin()
        sines.append(x)
    phases.append(torch.addmm(bias, x, weights.color.t()))
    sines.append(phases[-1].sin())
    return _Activations(phases, sines)


class _Gradients(NamedTuple):
    """Accumulators: one object's slices of the gradients, and those of the shared heads."""

    trunk: list[tuple[Tensor, Tensor]]
    color: Tensor
    density_head: tuple[Tensor, Tensor]
    color_head: tuple[Tensor, Tensor]


def _backward_chunk(
    x: Tensor,
    activations: _Activations,
    weights: _Weights,
    upstream: tuple[Tensor, Tensor],
    into: _Gradients,
    *,
    needs_x: bool,
) -> tuple[Tensor, Tensor | None]:
    """Add the chunk's share to the gradients; returns those of the color phases and of x.

    upstream: gradients of the color logits (n, 3) and of the densities (n, 1).
    """
    phases, sines = activations
    color_logits, density = upstream
    into.color_head[0].addmm_(color_logits.t(), sines[-1])
    into.color_head[1].add_(color_logits.sum(0))
    color_phase = (color_logits @ weights.color_head[0]).mul_(phases[-1].cos_())
    into.color.addmm_(color_phase.t(), sines[-2])
    into.density_head[0].addmm_(density.t(), sines[-2])
    into.density_head[1].add_(density.sum(0))
    gradient = torch.mm(color_phase, weights.color)
    gradient.addmm_(density, weights.density_head[0])
    for i in reversed(range(len(weights.trunk))):
        phase = gradient.mul_(phases[i].cos_())
        into.trunk[i][0].addmm_(phase.t(), sines[i - 1] if i else x)
        into.trunk[i][1].add_(phase.sum(0))
        if i or needs_x:
            gradient = torch.mm(phase, weights.trunk[i][0])
    return color_phase, gradient if needs_x else None


class _FieldFunction(torch.autograd.Function):
    """The whole field as one operation; its inputs are those that evaluate lists."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, encoded: Tensor, color_bias: Tensor, color: Tensor, *rest: Tensor
    ) -> Tensor:
        heads, trunk = rest[:4], rest[4:]
        num_objects, num_points, _ = encoded.shape
        output = encoded.new_empty(num_objects, num_points, 4)
        chunk = max(1, CHUNK_NUMBERS // color.shape[-1])
        buffers = [encoded.new_empty(min(chunk, num_points), color.shape[-1]) for _ in range(2)]
        for index in range(num_objects):
            weights = _weights(index, color, heads, trunk)
            for start in range(0, num_points, chunk):
                part = slice(start, min(start + chunk, num_points))
                bias = _rows(color_bias[index], part, num_points)
                _forward_chunk(encoded[index, part], bias, weights, output[index, part], buffers)
        ctx.save_for_backward(output, encoded, color_bias, color, *rest)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():  # create_graph=True: the result would lack its graph
            raise RuntimeError("the fast field is differentiable once; use FilmSiren.reference")
        output, encoded, color_bias, color, *rest = ctx.saved_tensors
        heads, trunk = tuple(rest[:4]), rest[4:]
        num_points = encoded.shape[1]
        of_encoded = torch.zeros_like(encoded) if ctx.needs_input_grad[0] else None
        of_bias, of_color, *of_rest = (torch.zeros_like(t) for t in (color_bias, color, *rest))
        for index in range(len(encoded)):
            weights = _weights(index, color, heads, trunk)
            into = _Gradients(*_weights(index, of_color, tuple(of_rest[:4]), of_rest[4:]))
            # Exact: a point whose output received no gradient adds nothing to any other gradient.
            needed = (gradient[index] != 0).any(-1).nonzero()[:, 0]
            for points in needed.split(max(1, CHUNK_NUMBERS // color.shape[-1])):
                x = encoded[index, points]
                bias = _rows(color_bias[index], points, num_points)
                rgb, upstream = output[index, points, :3], gradient[index, points]
                color_phase, of_x = _backward_chunk(
                    x,
                    _recompute_chunk(x, bias, weights),
                    weights,
                    (upstream[:, :3] * rgb * (1 - rgb), upstream[:, 3:]),
                    into,
                    needs_x=of_encoded is not None,
                )
                if of_encoded is not None and of_x is not None:
                    of_encoded[index, points] = of_x
                if len(of_bias[index]) == 1:
                    of_bias[index, 0] += color_phase.sum(0)
                else:
                    share = num_points // len(of_bias[index])
                    of_bias[index].index_add_(0, points // share, color_phase)
        return (of_encoded, of_bias, of_color, *of_rest)
