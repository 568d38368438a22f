"""Compare the Triton kernels with PyTorch's own operations on a small example, before their use.

A compiler may be wrong without an error: several versions of Triton compiled an earlier form of the
field's kernels to a function that was off by nine tenths. Others may refuse a kernel. Either way
PyTorch's operations serve instead, and one line says so.

Legend: as in triton_field.
"""

import functools
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from siren.fused import eager, triton_field
from siren.fused.cuda import SWITCH
from siren.fused.folded import ClearBelow, JoinedField

# Of the norm of each result, by the precision of products. Right ones differ by up to 0.04 in
# bfloat16 and 0.01 in float16; a fault in a few percent of the rows makes 0.1.
MOST = {torch.bfloat16: 0.2, torch.float16: 0.05, torch.float32: 0.05}
OBJECTS, POINTS, RAYS, INNER = 2, 300, 3, 3  # the last block of points is not full

Results = Callable[[], Sequence[Tensor]]


def fault(
    device: torch.device, dtype: torch.dtype, what: str, ours: Results, reference: Results
) -> str:
    """Return what is wrong with ours, beside reference, and warn of it; empty if nothing.

    Both are computed without the caller's modes: with gradients, without inference mode and
    autocast. dtype is that of the operands of products. what begins the warning, which says that
    PyTorch serves in place of Triton.

    Raises:
        RuntimeError: the GPU itself failed, so that this process can compute nothing on it.
    """
    no_autocast = torch.autocast(device.type, enabled=False)
    try:
        with torch.inference_mode(False), torch.enable_grad(), no_autocast:
            pairs = zip(ours(), reference(), strict=True)
            errors = [(a.float() - b.float()).norm() / b.float().norm() for a, b in pairs]
            error = float(torch.stack(errors).detach().max())
        reason = "" if error <= MOST[dtype] else f"its results are off by {error:.0%}"
    except torch.AcceleratorError as failure:
        raise RuntimeError(
            f"a Triton kernel failed on {device}; set {SWITCH}=0 in the environment, and PyTorch "
            f"computes in its place ({failure})"
        ) from failure
    except Exception as failure:  # compilers raise many kinds
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
    if reason:
        warnings.warn(f"{what} by PyTorch, not by Triton: {reason}", stacklevel=3)
    return reason


def uniform(rng: torch.Generator, most: float, *shape: int) -> Tensor:
    """Draw numbers between -most and most."""
    return (2 * torch.rand(shape, generator=rng) - 1) * most


def field_fault(device: torch.device, width: int, num_inputs: int, dtype: torch.dtype) -> str:
    """Return what is wrong with the kernels of a field, and warn of it; empty if nothing.

    They are evaluated with and without clear_below, which changes nothing here: every block of
    points has densities above zero.

    Args:
        device: where they run; the CPU by Triton's interpreter.
        width: H, one of WIDTHS.
        num_inputs: of the first layer, C + 3; with features beside the point, gradients of the
            encoded points are compared too.
        dtype: of the operands of products.
    """

    def results(
        evaluate: Callable[..., Tensor],
        trained: Callable[..., Tensor],
        density: Callable[..., Tensor],
        how: torch.dtype | None,
    ) -> list[Tensor]:
        field, encoded, directions, upstream = _example(device, width, num_inputs)
        leaves = [part.clone().requires_grad_() for part in (encoded, *field)]
        output = trained(JoinedField(*leaves[1:]), leaves[0], directions, how)
        with torch.no_grad():
            again = evaluate(field, encoded, directions, how)
        heads = [part for both in (output, again) for part in (both[..., :3], both[..., 3])]
        wanted = leaves if num_inputs > 3 else leaves[1:]
        gradients = torch.autograd.grad((output * upstream).sum(), wanted)
        return [*heads, density(field, encoded, how), *gradients]

    skipping = functools.partial(triton_field.evaluate, clear_below=ClearBelow())
    return fault(
        device,
        dtype,
        "the field is evaluated",
        lambda: results(triton_field.evaluate, skipping, triton_field.density, dtype),
        lambda: results(eager.evaluate, eager.evaluate, eager.density, None),
    )


def _example(
    device: torch.device, width: int, num_inputs: int
) -> tuple[JoinedField, Tensor, Tensor, Tensor]:
    """Return a field whose phases spread as in a fresh generator, points, directions, gradients."""
    rng, root = torch.Generator().manual_seed(0), width**-0.5
    field = JoinedField(
        first=uniform(rng, 6, OBJECTS, width, num_inputs),
        direction=uniform(rng, 1, OBJECTS, width, 3),
        inner=uniform(rng, 3 * root, OBJECTS, INNER, width, width),
        biases=uniform(rng, torch.pi, OBJECTS, INNER + 1, width),
        heads=uniform(rng, 4 * root, 4, width),
        head_biases=uniform(rng, 1, 4),
    )
    encoded = uniform(rng, 0.5, OBJECTS, POINTS, num_inputs)
    directions = uniform(rng, 1, OBJECTS, RAYS, 3)
    upstream = uniform(rng, 1, OBJECTS, POINTS, 4)
    encoded, directions, upstream = (t.to(device) for t in (encoded, directions, upstream))
    return JoinedField(*(part.to(device) for part in field)), encoded, directions, upstream
