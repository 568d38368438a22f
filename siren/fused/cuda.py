"""The folded field on CUDA: which implementation serves.

Triton serves where autocast asks for half precision, on GPUs from Hopper on; the eager path, in
float32, serves everything else on CUDA.
"""

import functools

import torch
from torch import Tensor

from siren.fused import eager
from siren.fused.folded import FoldedField
from siren.fused.packing import WIDTHS

SHARED_MEMORY = 200 * 1024  # bytes a block of points needs at 256 wide


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _fits(device: torch.device) -> bool:
    """Whether the GPU has Hopper's matrix units, or later ones, and memory for a block."""
    properties = torch.cuda.get_device_properties(device)
    shared: int = getattr(properties, "shared_memory_per_block_optin", 0)
    return properties.major >= 9 and shared >= SHARED_MEMORY


def operand_type(device: torch.device, width: int) -> torch.dtype | None:
    """Triton's operands for a field of this width under the autocast now in force, or None.

    None means that the eager path serves.
    """
    if device.type != "cuda" or width not in WIDTHS or not torch.is_autocast_enabled("cuda"):
        return None
    dtype = torch.get_autocast_dtype("cuda")
    is_half = dtype in (torch.float16, torch.bfloat16)
    return dtype if is_half and has_triton() and _fits(device) else None


def evaluate(field: FoldedField, encoded: Tensor, directions: Tensor) -> Tensor:
    """Colors in [0, 1] and raw densities (B, P, 4), by the path that operand_type names."""
    dtype = operand_type(encoded.device, field.color_weight.shape[-1])
    if dtype is None:
        return eager.evaluate(field, encoded, directions)
    from siren.fused import triton_field  # here, because CPU users need no Triton

    return triton_field.evaluate(field, encoded, directions, dtype)


def density(field: FoldedField, encoded: Tensor) -> Tensor:
    """Raw densities (B, P) of encoded (B, P, in) alone, by the same path; not differentiable."""
    dtype = operand_type(encoded.device, field.color_weight.shape[-1])
    if dtype is None:
        return eager.density(field, encoded)
    from siren.fused import triton_field

    return triton_field.density(field, encoded, dtype)
