"""Choose the fast implementation of the field for a device."""

import torch
from torch import Tensor

from siren.fused import cpu, cuda
from siren.fused.folded import ClearBelow, FoldedField, JoinedField

__all__ = [
    "ClearBelow", "FoldedField", "JoinedField", "density", "evaluate", "is_supported", "path_name",
]  # fmt: skip


def is_supported(encoded: Tensor) -> bool:
    """Return whether a fast implementation takes these inputs; else use the reference."""
    return encoded.is_cuda or cpu.is_supported(encoded)


def path_name(device: torch.device, width: int, num_inputs: int = 3) -> str:
    """Name the implementation for a field of this width on a device under current autocast.

    num_inputs: of its first layer: a point and the features beside it.
    """
    if device.type == "cuda":
        return str(cuda.tried(device, width, num_inputs))
    return "folded" if cpu.is_supported(torch.empty(0, device=device)) else "reference"


def evaluate(
    field: FoldedField | JoinedField,
    encoded: Tensor,
    directions: Tensor,
    clear_below: ClearBelow | None = None,
) -> Tensor:
    """Return colors and raw densities (B, P, 4) of encoded (B, P, in) along directions (B, G, 3).

    Each direction serves P / G consecutive points.
    field: joined for CUDA, folded for other devices.
    clear_below: points with no higher raw density may be left black; None colors all.
    """
    if isinstance(field, JoinedField):
        return cuda.evaluate(field, encoded, directions, clear_below)
    return cpu.evaluate(field, encoded, directions, clear_below)


def density(field: FoldedField | JoinedField, encoded: Tensor) -> Tensor:
    """Return raw densities (B, P) of encoded (B, P, in), field as in evaluate; no gradient."""
    if isinstance(field, JoinedField):
        return cuda.density(field, encoded)
    return cpu.density(field, encoded)
