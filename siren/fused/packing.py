"""Pack the folded field into the contiguous tensors and the constants of the kernels.

Legend: B objects, P points per object, G directions per object, H hidden width, L inner layers (the
trunk after its first layer, then the color layer), C features beside the point.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from siren.fused import launching
from siren.fused.folded import JoinedField

WIDTHS = (64, 128, 256)  # widths of fields that the kernels take
# Scaled gradients begin below this. Layers of a trained field can multiply them by thousands, and
# float16 ends at 65,504; this much smaller, they lose no digits (tests/test_cuda_dispatch.py).
ENTERING = 2**-7
ALIGNED = 4  # float32 numbers, as many as 16 bytes hold
SMALLEST_HEAD = 1e-2  # head weights under this do not raise the scale of the gradients


class Weights(NamedTuple):
    """Contiguous weights for the kernels; kernels.py lists their shapes."""

    first: Tensor
    features: Tensor
    direction: Tensor
    inner: Tensor
    biases: Tensor
    heads: Tensor
    head_biases: Tensor


class Inputs(NamedTuple):
    """Points (B, P, 3) and directions (B, G, 3) in float32, features (B, P, C) as operands."""

    points: Tensor
    features: Tensor
    directions: Tensor


def packed(dtype: torch.dtype, field: JoinedField) -> Weights:
    """Return a field's weights in the layout of the kernels."""
    return Weights(
        field.first[..., -3:].transpose(1, 2).float().contiguous(),
        field.first[..., :-3].to(dtype).contiguous(),
        field.direction.transpose(1, 2).float().contiguous(),
        field.inner.to(dtype).contiguous(),
        field.biases.float().contiguous(),
        field.heads.float().contiguous(),
        field.head_biases.float().contiguous(),
    )


def _aligned(x: Tensor) -> Tensor:
    """Return x, or a copy if it is a part of a tensor and its address not a multiple of 16 bytes.

    For other addresses Triton compiles a kernel once more, and nothing has tried that one.
    """
    return x.clone() if x.storage_offset() % ALIGNED else x


def inputs(encoded: Tensor, directions: Tensor, dtype: torch.dtype) -> Inputs:
    """Return encoded (B, P, in) and directions (B, G, 3) in the layout of the kernels."""
    return Inputs(
        _aligned(encoded[..., -3:].float().contiguous()),
        encoded[..., :-3].to(dtype).contiguous(),
        _aligned(directions.float().contiguous()),
    )


def constants(weights: Weights, block: int) -> dict[str, Any]:
    """Return the compile-time constants of a kernel whose programs hold block points each."""
    width = weights.inner.shape[-1]
    piece = min(width, 128)
    return {
        "H": width,
        "WIDTH": piece,
        "PIECES": width // piece,
        "CHANNELS": weights.features.shape[-1],
        "BLOCK": block,
        "STAGES": launching.STAGES,
        "num_warps": launching.num_warps(width),
    }


def upstream(output: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradients of color logits and densities (B, P, 4) from those of the output."""
    rgb = output[..., :3]
    return torch.cat([gradient[..., :3] * rgb * (1 - rgb), gradient[..., 3:]], dim=-1)


def gradient_scale(upstream: Tensor, heads: Tensor) -> Tensor:
    """Return a power of two per object (B,) that brings entering gradients below ENTERING."""
    if upstream.numel() == 0:
        return upstream.new_ones(len(upstream))
    largest = heads.abs().amax(dim=1).clamp(min=SMALLEST_HEAD)  # (4,)
    return power_of_two((upstream.abs() * largest).amax(dim=(1, 2)))


def power_of_two(entering: Tensor) -> Tensor:
    """Return the power of two that brings numbers into [ENTERING / 2, ENTERING)."""
    exponent = torch.frexp(entering).exponent.clamp(min=-100)
    return torch.ldexp(torch.full_like(entering, ENTERING), -exponent)


def high_and_low(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split x into two tensors of dtype with the sum x: together they hold twice the digits."""
    high = x.to(dtype)
    return high, (x - high.to(x.dtype)).to(dtype)
