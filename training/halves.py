"""Convert the parameters of a network to half precision in one operation.

Autocast converts each weight in an operation of its own, whenever a layer meets it; on CUDA the
start of an operation takes longer than the conversion of a weight.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def converted(network: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    """Return network as a function with its float32 parameters in dtype; gradients reach them."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    halves = _Conversion.apply(dtype, *parameters)  # type: ignore[no-untyped-call]
    by_name = dict(zip(names, halves, strict=True))
    return lambda *inputs: functional_call(network, by_name, inputs)


class _Conversion(torch.autograd.Function):
    """Conversion of float32 tensors; those that nothing used have no gradient, as usual."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        ctx.set_materialize_grads(False)
        return tuple(_copied(tensors, dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        found = iter(_copied([g for g in gradients if g is not None], torch.float32))
        return None, *(None if g is None else next(found) for g in gradients)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
