"""The weights of a folded field, one object at a time, and their gradients.

Legend: B objects, P points per object, G directions per object, H hidden width, L trunk layers.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TURN = 2 * math.pi


class Weights(NamedTuple):
    """One object's weights, or the gradients of them.

    The H x H matrices have the operands' precision; their gradients have not.
    """

    trunk: list[tuple[Tensor, Tensor]]  # (H, in), (H,)
    color: Tensor  # (H, H)
    density_head: tuple[Tensor, Tensor]  # (1, H), (1,)
    color_head: tuple[Tensor, Tensor]  # (3, H), (3,)
    color_bias: Tensor  # (G, H)

    def as_operands(self, dtype: torch.dtype) -> "Weights":
        """Return weights with H x H matrices in dtype, the color layer's contiguous.

        A lower precision rounds the phases too: biases less whole turns make their error smaller.
        """
        first, *rest = self.trunk
        if dtype == self.color.dtype:
            return self._replace(color=self.color.contiguous())
        return self._replace(
            trunk=[first, *((matrix.to(dtype), _within_a_turn(bias)) for matrix, bias in rest)],
            color=self.color.to(dtype).contiguous(),
            color_bias=_within_a_turn(self.color_bias),
        )


def _within_a_turn(phase: Tensor) -> Tensor:
    """Return phases in radians less whole turns: from -pi to pi."""
    return phase - TURN * (phase / TURN).round()


class Inputs(NamedTuple):
    """The tensors of the field of all objects in a fixed order, or their gradients."""

    color_bias: Tensor  # (B, G, H)
    color: Tensor  # (B, H, H)
    heads: tuple[Tensor, ...]  # density's weight and bias, color's weight and bias
    trunk: tuple[Tensor, ...]  # L of (B, H, in), L of (B, H)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> "Inputs":
        """Make Inputs of the list that flat returns."""
        return cls(tensors[0], tensors[1], tuple(tensors[2:6]), tuple(tensors[6:]))

    @property
    def width(self) -> int:
        """H."""
        return self.color.shape[-1]

    def zeros(self, objects: slice) -> "Inputs":
        """Return zero gradients for a range of objects."""
        return self._map(lambda tensor: torch.zeros_like(tensor[objects]), torch.zeros_like)

    def add(self, other: "Inputs", objects: slice) -> None:
        """Add the gradients of a range of objects to self, the gradients of all objects."""
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
        """Return all tensors in one list."""
        return [self.color_bias, self.color, *self.heads, *self.trunk]

    def one(self, index: int) -> Weights:
        """Return the weights of the object with this index."""
        layers = len(self.trunk) // 2
        matrices = (weight[index] for weight in self.trunk[:layers])
        biases = (bias[index] for bias in self.trunk[layers:])
        return Weights(
            list(zip(matrices, biases, strict=True)),
            self.color[index],
            (self.heads[0], self.heads[1]),
            (self.heads[2], self.heads[3]),
            self.color_bias[index],
        )
