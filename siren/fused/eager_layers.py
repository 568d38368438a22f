"""The layers of the field by PyTorch's own operations: one product and one sine each.

Memory traffic bounds the speed, so the bias is part of the product: each layer's input has two
extra columns of ones, and its weight the bias in two columns, high and low part. More extra columns
hold the direction, and the color layer's product returns the density beside its phases.

Legend: B objects, P points per object, G directions per object, H hidden width, L inner layers (the
trunk after its first layer, then the color layer), A = H + 8 columns, n points of a chunk.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from siren.fused import packing
from siren.fused.folded import JoinedField

BESIDE = 8  # extra columns, a multiple that matrix units need: two ones, the direction, zeros
ONES, DIRECTION = slice(0, 2), slice(2, 5)  # among the extra columns
DENSITY = 3  # the density head among the four heads: colors, then density


class Weights(NamedTuple):
    """Weights in the layout of the products.

    first (B, H, in + 1), float32 at least, the bias last. layers (B, L, A, A) as (out, in): rows
    from H on are zero, except for the heads in the last layer. heads (B, 8, A): four, then zeros.
    """

    first: Tensor
    layers: Tensor
    heads: Tensor


class Chunk(NamedTuple):
    """A slice of points: encoded with a one (B, n, in + 1), and the extra columns (B, n, 8)."""

    where: slice
    encoded: Tensor
    beside: Tensor


def product(x: Tensor, y: Tensor) -> Tensor:
    """Return the products x y of matrices (B, a, b) and (B, b, c), summed in float32."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        return torch.bmm(x, y)
    if x.is_cuda:
        return torch.bmm(x, y, out_dtype=torch.float32)
    return torch.bmm(x.float(), y.float())  # PyTorch has out_dtype on CUDA only


def pack(dtype: torch.dtype, field: JoinedField) -> Weights:
    """Return a field's weights in the layout of the products, operands in dtype."""
    num_objects, num_layers, width, _ = field.inner.shape
    of_heads = field.inner.new_zeros(BESIDE, width + BESIDE, dtype=dtype)
    four = of_heads[: len(field.heads)]
    four[:, :width] = field.heads
    four[:, width:][:, ONES] = torch.stack(packing.high_and_low(field.head_biases, dtype), -1)
    layers = field.inner.new_zeros(num_objects, num_layers, *[width + BESIDE] * 2, dtype=dtype)
    layers[:, :, :width, :width] = field.inner
    beside = layers[:, :, :width, width:]
    beside[..., ONES] = torch.stack(packing.high_and_low(field.biases[:, 1:], dtype), -1)
    beside[:, -1, :, DIRECTION] = field.direction
    layers[:, -1, width:] = of_heads
    with_bias = torch.cat([field.first, field.biases[:, 0, :, None]], dim=-1)
    return Weights(with_bias, layers, of_heads.repeat(num_objects, 1, 1))


def chunks(weights: Weights, encoded: Tensor, directions: Tensor, numbers: int) -> Iterator[Chunk]:
    """Yield chunks of points (B, P, in), each with at most so many numbers per layer."""
    num_objects, num_points, _ = encoded.shape
    if encoded.numel() == 0:
        return
    size = max(1, numbers // (num_objects * weights.first.shape[1]))
    share = num_points // max(1, directions.shape[1])
    for start in range(0, num_points, size):
        where = slice(start, min(start + size, num_points))
        part = encoded[:, where]
        beside = weights.layers.new_zeros(*part.shape[:2], BESIDE)
        beside[..., ONES] = 1
        served = torch.arange(where.start, where.stop, device=part.device) // share
        beside[..., DIRECTION] = directions[:, served]
        yield Chunk(where, torch.cat([part, torch.ones_like(part[..., :1])], dim=-1), beside)


def room(weights: Weights, chunk: Chunk, count: int) -> Tensor:
    """Allocate (count, B, n, A) for the sines of count layers; fill in the extra columns."""
    width = weights.first.shape[1]
    sines = chunk.beside.new_empty(count, *chunk.beside.shape[:2], width + BESIDE)
    sines[..., width:] = chunk.beside
    return sines


def trunk(weights: Weights, chunk: Chunk, sines: Tensor, slopes: Tensor | None = None) -> Tensor:
    """Return the sines (B, n, A) of the trunk's last layer.

    The layers use the slots of sines (count, B, n, A) in turn; slopes receives their cosines.
    """
    phase = torch.bmm(chunk.encoded, weights.first.transpose(1, 2))
    width = phase.shape[-1]
    _write_sine(phase, 0, sines, slopes)
    num_inner = weights.layers.shape[1] - 1
    for index in range(num_inner):
        layer = weights.layers[:, index, :width].transpose(1, 2)
        phase = product(sines[index % len(sines)], layer)
        _write_sine(phase, index + 1, sines, slopes)
    return sines[num_inner % len(sines)]


def color_layer(
    weights: Weights, chunk: Chunk, sines: Tensor, slopes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return densities (B, n) and the color layer's sines (B, n, A); arguments as in trunk."""
    num_layers, width = weights.layers.shape[1], weights.first.shape[1]
    x = trunk(weights, chunk, sines, slopes)
    found = product(x, weights.layers[:, -1].transpose(1, 2))
    _write_sine(found[..., :width], num_layers, sines, slopes)
    return found[..., width + DENSITY], sines[num_layers % len(sines)]


def logits(weights: Weights, x: Tensor) -> Tensor:
    """Return the outputs of the heads on sines (B, n, A): (B, n, 8), of which four are used."""
    return product(x, weights.heads.transpose(1, 2))


def _write_sine(phase: Tensor, index: int, sines: Tensor, slopes: Tensor | None) -> None:
    torch.sin(phase, out=sines[index % len(sines), ..., : phase.shape[-1]])
    if slopes is not None:
        torch.cos(phase, out=slopes[index])
