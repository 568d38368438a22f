"""Choose the fast implementation of the field for a device."""

import torch
from torch import Tensor

from siren.fused import cpu, cuda
from siren.fused.folded import FoldedField, JoinedField

__all__ = [
    "FoldedField", "JoinedField", "density", "evaluate", "is_supported", "path_name",
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
    *,
    skips_clear: bool = False,
    clear_below: Tensor | None = None,
) -> Tensor:
    """Return colors and raw densities (B, P, 4) of encoded (B, P, in) along directions (B, G, 3).

    Each direction serves P / G consecutive points.
    field: joined for CUDA, folded for other devices.
    skips_clear: points whose raw density is not positive may be left black.
    clear_below: raw densities (B, P) that take the place of 0 in that.
    """
    if isinstance(field, JoinedField):
        skips_clear = skips_clear and clear_below is None  # its kernels compare with 0 alone
        return cuda.evaluate(field, encoded, directions, skips_clear=skips_clear)
    return cpu.evaluate(
        field, encoded, directions, skips_clear=skips_clear, clear_below=clear_below
    )


def density(field: FoldedField | JoinedField, encoded: Tensor) -> Tensor:
    """Return raw densities (B, P) of encoded (B, P, in), field as in evaluate; no gradient."""
    if isinstance(field, JoinedField):
        return cuda.density(field, encoded)
    return cpu.density(field, encoded)
