"""Evaluate the folded field by PyTorch's own operations, on any device, in chunks of points.

It runs on CUDA if the Triton kernels cannot. The operands of products are float16 or bfloat16 if
autocast asks for it, else they have the points' precision, which TF32 does not round. Products are
summed and returned in float32, so that phases are not rounded, and the first layer is float32. The
backward pass computes a chunk's layers again; gradients are scaled by a power of two per object to
fit the range of float16.

Legend: as in eager_layers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from siren.film import at_least_float32
from siren.fused import eager_layers, packing
from siren.fused.eager_layers import DENSITY, DIRECTION, ONES, Chunk, Weights, product
from siren.fused.folded import JoinedField
from siren.tf32 import float32_products

CHUNK_NUMBERS = 2**25  # sines of one layer and chunk: 64 MiB, backward 2 (L + 1) times as much


def evaluate(
    field: JoinedField, encoded: Tensor, directions: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Return colors in [0, 1] and raw densities (B, P, 4), float32 at least; differentiable once.

    Arguments as in fused_field.evaluate; dtype is that of the operands of products, None takes that
    of encoded, float32 at least. Differentiating twice (create_graph=True) raises a RuntimeError.
    """
    with torch.autocast(encoded.device.type, enabled=False):
        encoded, directions = at_least_float32(encoded), at_least_float32(directions)
        output: Tensor = _FieldFunction.apply(  # type: ignore[no-untyped-call]
            dtype or encoded.dtype, encoded, directions, *field
        )
    return output


@torch.no_grad()
@float32_products(in_tf32=False)
def density(field: JoinedField, encoded: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return raw densities (B, P) of encoded (B, P, in); not differentiable."""
    with torch.autocast(encoded.device.type, enabled=False):
        encoded = at_least_float32(encoded)
        weights = eager_layers.pack(dtype or encoded.dtype, field)
        directions = encoded.new_zeros(len(encoded), 1, 3)
        output = encoded.new_empty(encoded.shape[:2])
        for chunk in eager_layers.chunks(weights, encoded, directions, CHUNK_NUMBERS):
            x = eager_layers.trunk(weights, chunk, eager_layers.room(weights, chunk, 2))
            output[:, chunk.where] = eager_layers.logits(weights, x)[..., DENSITY]
        return output


class _FieldFunction(torch.autograd.Function):
    """The field as one autograd operation on encoded, directions and the tensors of JoinedField."""

    @staticmethod
    @float32_products(in_tf32=False)
    def forward(  # noqa: D102
        ctx: Any, dtype: torch.dtype, encoded: Tensor, directions: Tensor, *folded: Tensor
    ) -> Tensor:
        weights = eager_layers.pack(dtype, JoinedField(*folded))
        output = encoded.new_empty(*encoded.shape[:2], 4)
        for chunk in eager_layers.chunks(weights, encoded, directions, CHUNK_NUMBERS):
            sines = eager_layers.room(weights, chunk, 2)
            part = output[:, chunk.where]
            part[..., DENSITY], x = eager_layers.color_layer(weights, chunk, sines)
            colors = eager_layers.logits(weights, x)[..., :DENSITY]
            torch.sigmoid(colors, out=part[..., :DENSITY])
        ctx.dtype = dtype
        ctx.save_for_backward(output, encoded, directions, *folded)
        return output

    @staticmethod
    @float32_products(in_tf32=False)
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():  # create_graph=True: the result would lack its graph
            raise RuntimeError("the fast field is differentiable once; use FilmSiren.reference")
        output, encoded, directions, *folded = ctx.saved_tensors
        weights = eager_layers.pack(ctx.dtype, JoinedField(*folded))
        upstream = packing.upstream(output, gradient)
        scale = packing.gradient_scale(upstream, folded[4])
        scaled = upstream * scale[:, None, None]
        needs = ctx.needs_input_grad[1:3]
        sums = _Sums(*(torch.zeros_like(t, dtype=encoded.dtype) for t in weights))
        of_encoded = torch.empty_like(encoded) if needs[0] else None
        of_directions = encoded.new_empty(*encoded.shape[:2], 3) if needs[1] else None
        for chunk in eager_layers.chunks(weights, encoded, directions, CHUNK_NUMBERS):
            _add_chunk(weights, chunk, scaled[:, chunk.where], sums, of_encoded, of_directions)
        if of_encoded is not None:
            of_encoded /= scale[:, None, None]
        if of_directions is not None:
            of_each = of_directions.unflatten(1, (directions.shape[1], -1))
            of_directions = of_each.sum(2) / scale[:, None, None]
        return None, of_encoded, of_directions, *_of_folded(sums, scale), upstream.sum((0, 1))


class _Sums(NamedTuple):
    """Scaled gradients of Weights, in the points' precision."""

    first: Tensor
    layers: Tensor
    heads: Tensor


def _add_chunk(
    weights: Weights,
    chunk: Chunk,
    upstream: Tensor,
    sums: _Sums,
    of_encoded: Tensor | None,
    of_directions: Tensor | None,
) -> None:
    """Add a chunk's gradients of the weights to sums; write those of its inputs on request."""
    num_layers, width = weights.layers.shape[1], weights.first.shape[1]
    sines = eager_layers.room(weights, chunk, num_layers + 1)
    slopes = sines.new_empty(*sines.shape[:3], width)
    eager_layers.color_layer(weights, chunk, sines, slopes)
    of_phase = torch.zeros_like(sines[0])  # (B, n, A), the heads' logits beside H
    of_logits = of_phase[..., width:].clone()
    of_logits[..., :DENSITY] = upstream[..., :DENSITY]
    of_phase[..., width + DENSITY] = upstream[..., DENSITY]
    sums.heads.add_(product(of_logits.transpose(1, 2), sines[-1]))
    of_sine = torch.bmm(of_logits, weights.heads[..., :width])
    for index in reversed(range(num_layers)):
        torch.mul(of_sine, slopes[index + 1], out=of_phase[..., :width])
        is_color = index == num_layers - 1
        left = of_phase if is_color else of_phase[..., :width]
        rows = left.shape[-1]
        sums.layers[:, index, :rows] += product(left.transpose(1, 2), sines[index])
        of_inputs = torch.bmm(left, weights.layers[:, index, :rows])
        of_sine = of_inputs[..., :width]
        if is_color and of_directions is not None:
            of_directions[:, chunk.where] = of_inputs[..., width:][..., DIRECTION]
    of_first = torch.mul(of_sine, slopes[0], out=torch.empty_like(of_sine, dtype=upstream.dtype))
    sums.first.add_(torch.bmm(of_first.transpose(1, 2), chunk.encoded))
    if of_encoded is not None:
        of_encoded[:, chunk.where] = torch.bmm(of_first, weights.first[..., :-1])


def _of_folded(sums: _Sums, scale: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of all tensors of JoinedField except the last."""
    width = sums.first.shape[1]
    first = sums.first / scale[:, None, None]
    layers = sums.layers / scale[:, None, None, None]
    heads = (sums.heads / scale[:, None, None])[:, : DENSITY + 1, :width].sum(0)
    heads[DENSITY] += layers[:, -1, width + DENSITY, :width].sum(0)
    beside = layers[:, :, :width, width:]
    return (
        first[..., :-1],
        beside[:, -1, :, DIRECTION],
        layers[:, :, :width, :width],
        torch.cat([first[..., None, :, -1], beside[..., ONES.start]], dim=1),
        heads,
    )
