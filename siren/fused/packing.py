"""The folded field as the kernels read it: few contiguous tensors, and their constants.

Legend: B objects, P points per object, G directions per object, H hidden width, L inner layers (the
trunk after its first layer, then the color layer), C features beside the point.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from siren.fused import launching
from siren.fused.folded import FoldedField

WIDTHS = (64, 128, 256)  # that the kernels take
SMALLEST_HEAD = 1e-2  # head weights under this do not raise the scale of the gradients


class Weights(NamedTuple):
    """What the kernels read, contiguous; their shapes are in kernels.py."""

    first: Tensor
    features: Tensor
    direction: Tensor
    inner: Tensor
    biases: Tensor
    heads: Tensor
    head_biases: Tensor


class Inputs(NamedTuple):
    """points (B, P, 3) and directions (B, G, 3) in float32, features (B, P, C) as operands."""

    points: Tensor
    features: Tensor
    directions: Tensor


def joined(field: FoldedField) -> tuple[Tensor, ...]:
    """The field in six tensors.

    First weight (B, H, in), direction weight (B, H, 3), inner weights (B, L, H, H), biases
    (B, L + 1, H), heads (4, H) and their biases (4,): colors, then density.
    """
    return (
        field.trunk_weights[0],
        field.direction_weight,
        torch.stack([*field.trunk_weights[1:], field.color_weight], dim=1),
        torch.stack([*field.trunk_biases, field.color_bias], dim=1),
        torch.cat([field.color_head[0], field.density_head[0]]),
        torch.cat([field.color_head[1], field.density_head[1]]),
    )


def packed(
    dtype: torch.dtype,
    first: Tensor,
    direction: Tensor,
    inner: Tensor,
    biases: Tensor,
    heads: Tensor,
    head_biases: Tensor,
) -> Weights:
    """The tensors of joined as the kernels read them."""
    return Weights(
        first[..., -3:].transpose(1, 2).float().contiguous(),
        first[..., :-3].to(dtype).contiguous(),
        direction.transpose(1, 2).float().contiguous(),
        inner.to(dtype).contiguous(),
        biases.float().contiguous(),
        heads.float().contiguous(),
        head_biases.float().contiguous(),
    )


def inputs(encoded: Tensor, directions: Tensor, dtype: torch.dtype) -> Inputs:
    """What the kernels read of encoded (B, P, in) and directions (B, G, 3)."""
    return Inputs(
        encoded[..., -3:].float().contiguous(),
        encoded[..., :-3].to(dtype).contiguous(),
        directions.float().contiguous(),
    )


def constants(weights: Weights, block: int) -> dict[str, Any]:
    """Compile-time constants of a kernel whose programs hold a block of points each."""
    width = weights.inner.shape[-1]
    piece = min(width, 128)
    return {
        "H": width,
        "WIDTH": piece,
        "PIECES": width // piece,
        "CHANNELS": weights.features.shape[-1],
        "BLOCK": block,
        "STAGES": launching.STAGES,
        **launching.options(width),
    }


def upstream(output: Tensor, gradient: Tensor) -> Tensor:
    """Gradients of color logits and densities (B, P, 4) from those of the output (B, P, 4)."""
    rgb = output[..., :3]
    return torch.cat([gradient[..., :3] * rgb * (1 - rgb), gradient[..., 3:]], dim=-1)


def gradient_scale(upstream: Tensor, heads: Tensor) -> Tensor:
    """A power of two per object (B,) under which no gradient enters the layers larger than 1."""
    if upstream.numel() == 0:
        return upstream.new_ones(len(upstream))
    largest = heads.abs().amax(dim=1).clamp(min=SMALLEST_HEAD)  # (4,)
    entering = (upstream.abs() * largest).amax(dim=(1, 2))
    exponent = torch.frexp(entering).exponent.clamp(min=-100)
    return torch.ldexp(torch.ones_like(entering), -exponent)


def high_and_low(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two numbers of dtype whose sum is x: together they hold twice the digits."""
    high = x.to(dtype)
    return high, (x - high.to(x.dtype)).to(dtype)
