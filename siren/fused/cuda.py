"""Choose and run the implementation of the folded field on CUDA.

If autocast asks for half precision, the Triton kernels run on GPUs from Ampere on, and PyTorch's
operations with half-precision operands on older ones. Without autocast all is float32.
"""

import functools
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from siren.fused import eager, launching
from siren.fused.folded import ClearBelow, JoinedField
from siren.fused.launching import Blocks
from siren.fused.packing import WIDTHS


@dataclass(frozen=True)
class Choice:
    """The implementation that evaluates a field on CUDA; str() describes it in one line.

    dtype: of the operands of matrix products. blocks: sizes of the Triton kernels; None means
    PyTorch's own operations. num_warps: of one of their programs. reason: says why Triton cannot
    serve if half precision was asked for.
    """

    dtype: torch.dtype
    blocks: Blocks | None = None
    num_warps: int = 0
    reason: str = ""

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        if self.blocks is not None:
            how = f"{self.num_warps} warps, {launching.STAGES} stages"
            return f"Triton, {dtype}, {self.blocks}, {how}"
        return f"folded, {dtype}" + (f" (not by Triton: {self.reason})" if self.reason else "")


SWITCH = "PIGAN_TRITON"  # the environment variable that turns Triton off if it is 0


@functools.cache
def missing_tool() -> str:
    """Return a text that says what Triton lacks to run on this machine; empty if nothing."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    try:
        from triton.runtime import driver
    except ImportError:
        return "it is not installed"
    if os.name == "posix" and (lacking := _missing_compiler()):  # elsewhere Triton brings one along
        return lacking
    try:  # it compiles a file into its cache and looks for CUDA's library
        driver.active.get_current_device()
    except Exception as error:
        return f"it cannot start: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def _missing_compiler() -> str:
    """Return what lacks to compile a C file against Python; empty if nothing."""
    named = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([named] if named else ["gcc", "clang"])):
        return f"CC names no program: {named}" if named else "no C compiler: install gcc or clang"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton
    if not Path(sysconfig.get_paths(scheme)["include"], "Python.h").exists():
        return "no Python.h for its C compiler: install python3-dev"
    return ""


def half_type(device: torch.device) -> torch.dtype | None:
    """Return autocast's half precision if the GPU has matrix units for it, else None."""
    if not torch.is_autocast_enabled("cuda") or torch.version.hip is not None:
        return None
    dtype = torch.get_autocast_dtype("cuda")
    first = {torch.float16: 7, torch.bfloat16: 8}  # major compute capability with matrix units
    major = torch.cuda.get_device_properties(device).major
    return dtype if major >= first.get(dtype, major + 1) else None


def choose(device: torch.device, width: int) -> Choice:
    """Choose the implementation for a field of this width on a device under current autocast."""
    dtype = half_type(device)
    if dtype is None:
        return Choice(torch.float32)
    if width not in WIDTHS:
        return Choice(dtype, reason=f"a field {width} wide")
    blocks = launching.find_blocks(device)
    if blocks is None:
        return Choice(dtype, reason="the GPU is older than Ampere, or has too little shared memory")
    if reason := missing_tool():
        return Choice(dtype, reason=reason)
    return Choice(dtype, blocks, launching.num_warps(width))


def tried(device: torch.device, width: int, num_inputs: int) -> Choice:
    """Choose for a field with so many inputs; kernels are tried before their first use.

    Where their results differ from those of PyTorch's operations, these serve.
    """
    choice = choose(device, width)
    if choice.blocks is None:
        return choice
    reason = _fault(device, width, num_inputs, choice.dtype)
    return Choice(choice.dtype, reason=reason) if reason else choice


@functools.cache
def _fault(device: torch.device, width: int, num_inputs: int, dtype: torch.dtype) -> str:
    """Return what is wrong with the kernels of a field; they are tried once."""
    from siren.fused import trial  # here, because CPU users need no Triton

    return trial.field_fault(device, width, num_inputs, dtype)


def evaluate(
    field: JoinedField,
    encoded: Tensor,
    directions: Tensor,
    clear_below: ClearBelow | None = None,
) -> Tensor:
    """Return colors in [0, 1] and raw densities (B, P, 4), by the implementation of tried.

    clear_below: points with no higher raw density may be left black; None colors all.
    """
    choice = tried(encoded.device, field.width, encoded.shape[-1])
    if choice.blocks is None:
        return eager.evaluate(field, encoded, directions, _operands(choice))
    from siren.fused import triton_field  # here, because CPU users need no Triton

    return triton_field.evaluate(field, encoded, directions, choice.dtype, clear_below=clear_below)


def density(field: JoinedField, encoded: Tensor) -> Tensor:
    """Return raw densities (B, P) of encoded (B, P, in), likewise; not differentiable."""
    choice = tried(encoded.device, field.width, encoded.shape[-1])
    if choice.blocks is None:
        return eager.density(field, encoded, _operands(choice))
    from siren.fused import triton_field

    return triton_field.density(field, encoded, choice.dtype)


def _operands(choice: Choice) -> torch.dtype | None:
    """Return the operands' type; None keeps the points' precision, float32 or float64."""
    return None if choice.dtype == torch.float32 else choice.dtype
