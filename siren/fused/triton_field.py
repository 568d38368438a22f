"""Evaluate the folded field by Triton kernels, as one operation with gradients.

Folding FiLM into each object's weights costs no accuracy in half precision: a rounding is relative,
so that of f W is f times that of W. A folded layer is one product and one sine, and the gradient of
the frequencies follows from that of f W without a pass over the points.

The backward pass skips points whose gradient is zero, as in the empty space of a scene whose
density is a ReLU. For a chunk of the others, one kernel computes the layers again, keeps their
sines and replaces their slopes by the gradients of the phases; another one multiplies the two into
the gradients of the weights, in a fixed order, so that results are repeatable. Gradients are scaled
by a power of two per object to fit the range of float16, whatever the loss scale is.

Legend: B objects, P points per object, G directions per object, H hidden width, L inner layers (the
trunk after its first layer, then the color layer), C features beside the point.
"""

import math
from typing import Any

import torch
from torch import Tensor

from siren.fused import kernels, launching, packing, triton_gradients
from siren.fused.folded import ClearBelow, JoinedField
from siren.fused.packing import Inputs, Weights


def evaluate(
    field: JoinedField,
    encoded: Tensor,
    directions: Tensor,
    dtype: torch.dtype,
    clear_below: ClearBelow | None = None,
) -> Tensor:
    """Return colors in [0, 1] and raw densities (B, P, 4), float32; differentiable once.

    Arguments as in fused_field.evaluate; dtype is that of the operands of matrix products, float16
    or bfloat16. clear_below leaves blocks of points black in which no raw density is above it.
    Differentiating twice (create_graph=True) raises a RuntimeError.

    Raises:
        ValueError: the field's width is none of WIDTHS, or G does not divide P.
    """
    num_points, num_directions = encoded.shape[1], directions.shape[1]
    if num_directions == 0 or num_points % num_directions:
        raise ValueError(f"{num_directions} directions cannot share {num_points} points")
    width = field.width
    if width not in packing.WIDTHS:
        raise ValueError(f"the kernels take fields {packing.WIDTHS} wide, this one is {width}")
    output: Tensor = _FieldFunction.apply(  # type: ignore[no-untyped-call]
        (dtype, clear_below), encoded, directions, *field
    )
    return output


@torch.no_grad()
def density(field: JoinedField, encoded: Tensor, dtype: torch.dtype) -> Tensor:
    """Return raw densities (B, P) of encoded (B, P, in), float32; not differentiable."""
    inputs = packing.inputs(encoded, encoded.new_zeros(len(encoded), 1, 3), dtype)
    return _forward(packing.packed(dtype, field), inputs, is_density_only=True)


def _forward(
    weights: Weights,
    inputs: Inputs,
    *,
    clear_below: ClearBelow | None = None,
    is_density_only: bool = False,
) -> Tensor:
    num_objects, num_points, _ = inputs.points.shape
    output = inputs.points.new_empty(num_objects, num_points, *(() if is_density_only else (4,)))
    if output.numel() == 0:
        return output
    block = launching.blocks_of(output.device).forward
    launching.launch(
        kernels.forward_kernel, (math.ceil(num_points / block), num_objects),
        *inputs, *weights, output, *(clear_below or ClearBelow()),
        num_points, inputs.directions.shape[1], weights.inner.shape[1],
        DENSITY_ONLY=is_density_only, SKIPS_CLEAR=clear_below is not None,
        **packing.constants(weights, block),
    )  # fmt: skip
    return output


class _FieldFunction(torch.autograd.Function):
    """The field as one autograd operation on encoded, directions and the tensors of JoinedField."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        how: tuple[torch.dtype, ClearBelow | None],
        encoded: Tensor,
        directions: Tensor,
        *folded: Tensor,
    ) -> Tensor:
        dtype, clear_below = how
        weights, inputs = (
            packing.packed(dtype, JoinedField(*folded)),
            packing.inputs(encoded, directions, dtype),
        )
        output = _forward(weights, inputs, clear_below=clear_below)
        ctx.save_for_backward(output, *inputs, *weights)
        ctx.dtypes = [t.dtype for t in (encoded, directions, *folded)]
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():  # create_graph=True: the result would lack its graph
            raise RuntimeError("the fast field is differentiable once; use FilmSiren.reference")
        output, *saved = ctx.saved_tensors
        inputs, weights = Inputs(*saved[:3]), Weights(*saved[3:])
        found = triton_gradients.gradients(
            output, gradient.float(), inputs, weights, needs=ctx.needs_input_grad[1:3]
        )
        typed = (
            None if value is None else value.to(dtype)
            for value, dtype in zip(found, ctx.dtypes, strict=True)
        )
        return None, *typed
