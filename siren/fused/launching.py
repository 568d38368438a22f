"""Launch Triton kernels on the right GPU, with block sizes that fit it.

The sizes were chosen by compiling for each architecture (tests/test_triton_compiles.py) with Triton
3.6 and 3.9: the largest ones that fit the shared memory and hardly spill registers in their loops.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ROWS = 128  # a chunk's rows are a multiple of this, which every block size divides
STAGES = 2  # iterations whose weights are in shared memory; three would exceed it
KIB = 1024


@dataclass(frozen=True)
class Blocks:
    """Sizes for one GPU.

    forward and backward: points of one program. tile: rows of one program of the reduction.
    """

    forward: int = ROWS
    backward: int = ROWS
    tile: int = 128

    def __str__(self) -> str:
        return f"{self.forward} points forward, {self.backward} backward, tiles of {self.tile}"


def blocks_for(capability: tuple[int, int], shared_memory: int) -> Blocks | None:
    """Return block sizes that fit a GPU, or None if none do.

    capability is major and minor compute capability, shared_memory the bytes that one program may
    take.
    """
    if capability < (8, 0) or shared_memory < 97 * KIB:
        return None
    if capability[0] == 9:  # Hopper's matrix units read both operands from shared memory
        return Blocks() if shared_memory >= 225 * KIB else None
    if capability in {(8, 0), (8, 7)}:
        # 128 points fit as well, but newer Tritons then spill a sixth of the registers.
        return Blocks(forward=64, backward=64, tile=64)
    return Blocks(backward=128 if shared_memory >= 161 * KIB else 64, tile=64)


@functools.cache
def find_blocks(device: torch.device) -> Blocks | None:
    """Return block sizes for a device, or None if none fit; Triton's interpreter has defaults."""
    if device.type != "cuda":
        return Blocks()
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    # PyTorch's type annotations lack this attribute.
    shared_memory: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return blocks_for(capability, shared_memory)


def blocks_of(device: torch.device) -> Blocks:
    """Return block sizes for a device that the kernels fit, else raise ValueError."""
    found = find_blocks(device)
    if found is None:
        raise ValueError(f"the Triton kernels do not fit {device}")
    return found


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **constants: Any
) -> None:
    """Launch a kernel on the device of its tensors, which need not be the current one.

    Fused multiply-add was Triton's default up to version 3.9; it is set here so that it stays on.
    """
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device_of(first):
        kernel[grid](*arguments, ON_DEVICE=first.is_cuda, enable_fp_fusion=True, **constants)


def num_warps(width: int) -> int:
    """Return the warps of a program of the kernels for a field of this width."""
    return 4 if width == 64 else 8
