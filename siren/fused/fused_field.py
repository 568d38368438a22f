"""The one place where a fast implementation of the field is chosen."""

import torch
from torch import Tensor

from siren.fused import cpu
from siren.fused.folded import FoldedField

__all__ = ["FoldedField", "density", "evaluate", "is_density_supported", "is_supported"]


def is_supported(encoded: Tensor) -> bool:
    """Whether a fast path takes these inputs; the reference serves where none does."""
    return cpu.is_supported(encoded)


def evaluate(field: FoldedField, encoded: Tensor, directions: Tensor) -> Tensor:
    """Colors and raw densities (B, P, 4) of encoded (B, P, in) seen along directions (B, G, 3)."""
    return cpu.evaluate(field, encoded, directions)


def is_density_supported(encoded: Tensor) -> bool:
    """Whether a fast path gives densities alone; outside of it the reference serves."""
    return cpu.is_supported(encoded) and not torch.is_grad_enabled()


def density(field: FoldedField, encoded: Tensor) -> Tensor:
    """Raw densities (B, P) of encoded (B, P, in); not differentiable."""
    return cpu.density(field, encoded)
