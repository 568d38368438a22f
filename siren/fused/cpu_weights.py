"""The weights of a folded field, one object at a time, and their gradients.

Legend: B objects, P points per object, G directions per object, H hidden width, L trunk layers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """One object's weights, as matrices for points in rows, or the gradients of them.

    The square ones of a field, not those of its gradients, are in the operands' precision.
    """

    trunk: list[tuple[Tensor, Tensor]]  # (H, in), (H,)
    color: Tensor  # (H, H)
    density_head: tuple[Tensor, Tensor]  # (1, H), (1,)
    color_head: tuple[Tensor, Tensor]  # (3, H), (3,)
    color_bias: Tensor  # (G, H)


class Inputs(NamedTuple):
    """The tensors of the whole field in one order, or their gradients."""

    color_bias: Tensor  # (B, G, H)
    color: Tensor  # (B, H, H)
    heads: tuple[Tensor, ...]  # density's weight and bias, color's weight and bias
    trunk: tuple[Tensor, ...]  # L of (B, H, in), L of (B, H)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Inputs":
        """The tensors in the order of flat."""
        return cls(tensors[0], tensors[1], tuple(tensors[2:6]), tuple(tensors[6:]))

    @property
    def width(self) -> int:
        """H."""
        return self.color.shape[-1]

    def zeros(self, objects: slice) -> "Inputs":
        """Gradients of no object yet, for some objects."""
        return self._map(lambda tensor: torch.zeros_like(tensor[objects]), torch.zeros_like)

    def add(self, other: "Inputs", objects: slice) -> None:
        """Add gradients of some objects to these of all."""
        of_some = self._map(lambda tensor: tensor[objects], lambda head: head)
        torch._foreach_add_(of_some.flat(), other.flat())

    def _map(
        self, of_objects: Callable[[Tensor], Tensor], of_heads: Callable[[Tensor], Tensor]
    ) -> "Inputs":
        return Inputs(
            of_objects(self.color_bias),
            of_objects(self.color),
            tuple(of_heads(head) for head in self.heads),
            tuple(of_objects(tensor) for tensor in self.trunk),
        )

    def flat(self) -> list[Tensor]:
        """All tensors in one list."""
        return [self.color_bias, self.color, *self.heads, *self.trunk]

    def one(self, index: int, dtype: torch.dtype | None = None) -> Weights:
        """Object index's, with square matrices in dtype where it is given."""
        layers = len(self.trunk) // 2
        matrices = [weight[index] for weight in self.trunk[:layers]]
        color = self.color[index]
        if dtype is not None:
            matrices[1:] = [matrix.to(dtype) for matrix in matrices[1:]]
            color = color.to(dtype).contiguous()
        biases = (bias[index] for bias in self.trunk[layers:])
        return Weights(
            list(zip(matrices, biases, strict=True)),
            color,
            (self.heads[0], self.heads[1]),
            (self.heads[2], self.heads[3]),
            self.color_bias[index],
        )
