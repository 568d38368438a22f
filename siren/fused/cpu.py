"""The folded field on the CPU, in chunks that stay in the cache.

The textbook evaluation is bound by memory: each layer writes four arrays of all points. Here a
chunk of points passes through all layers before the next one starts, and only the output is kept.
The backward pass recomputes the layers, but only for points whose output received a gradient: with
the ReLU density of the paper, empty space receives none. Keeping sines and cosines instead was not
faster: writing and reading them takes about as long as computing them again.

Under autocast to bfloat16, the H x H products of wide fields take rounded operands and return
rounded phases, less whole turns; sums, the first layer and the heads stay float32.

Legend: B objects, P points per object, G directions per object, H hidden width, L trunk layers,
n points of a chunk.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from siren.fused import cores, cpu_forward
from siren.fused.cpu_backward import BothWays, Downstream, Upstream, add_gradients
from siren.fused.cpu_forward import Points
from siren.fused.cpu_weights import Inputs
from siren.fused.folded import ClearBelow, FoldedField

# One layer's output in one chunk takes 2 MiB: smaller chunks fit a faster cache, but each operation
# costs some ten microseconds. The backward pass holds all layers of a chunk at once.
CHUNK_NUMBERS = 2**19
WIDE = 128  # from this width on, chunks are spread over cores, and operands may be rounded

Chunk = tuple[int, slice]  # an object and some of its points
Part = TypeVar("Part", Chunk, tuple[int, Tensor])
Result = TypeVar("Result")


def is_supported(encoded: Tensor) -> bool:
    """Return whether evaluate takes these points: float32 or float64 on the CPU.

    Under autocast they must be float32, and autocast's type bfloat16.
    """
    if encoded.device.type != "cpu":
        return False
    if not torch.is_autocast_enabled("cpu"):
        return encoded.dtype in (torch.float32, torch.float64)
    return encoded.dtype == torch.float32 and torch.get_autocast_dtype("cpu") == torch.bfloat16


def evaluate(
    field: FoldedField,
    encoded: Tensor,
    directions: Tensor,
    clear_below: ClearBelow | None = None,
) -> Tensor:
    """Return colors in [0, 1] and raw densities (B, P, 4); differentiable once.

    Arguments as in fused_field.evaluate. Differentiating twice (create_graph=True) raises a
    RuntimeError.
    """
    operands = _operands(encoded, field.color_weight.shape[-1])
    with torch.autocast("cpu", enabled=False):
        # A direction adds the same bias to the color layer for all points that share it.
        color_bias = torch.baddbmm(
            field.color_bias[:, None], directions, field.direction_weight.transpose(1, 2)
        )  # (B, G, H)
        output: Tensor = _FieldFunction.apply(  # type: ignore[no-untyped-call]
            (operands, clear_below), encoded, *_tensors(field, color_bias)
        )
    return output


def density(field: FoldedField, encoded: Tensor) -> Tensor:
    """Return raw densities (B, P) of encoded (B, P, in), without gradients or color layer."""
    inputs = Inputs.of(_tensors(field, field.color_bias[:, None]))
    operands = _operands(encoded, field.color_weight.shape[-1])
    output = encoded.new_empty(encoded.shape[:2])

    def fill(chunks: Sequence[Chunk]) -> None:
        for index, points in _points_of(chunks, encoded, inputs, operands):
            cpu_forward.evaluate_density(points, output[index, points.chosen])

    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        _spread(fill, _chunks(encoded, inputs), inputs)
    return output


def _operands(encoded: Tensor, width: int) -> torch.dtype:
    """Return the type of the H x H products' operands; rounding pays only in wide fields."""
    is_rounded = torch.is_autocast_enabled("cpu") and width >= WIDE
    return torch.bfloat16 if is_rounded else encoded.dtype


def _tensors(field: FoldedField, color_bias: Tensor) -> list[Tensor]:
    heads = (*field.density_head, *field.color_head)
    return [color_bias, field.color_weight, *heads, *field.trunk_weights, *field.trunk_biases]


def _chunks(encoded: Tensor, inputs: Inputs) -> list[Chunk]:
    """Split points (B, P, in) into chunks, one object after the other."""
    num_objects, num_points, _ = encoded.shape
    size = max(1, CHUNK_NUMBERS // inputs.width)
    parts = [slice(at, min(at + size, num_points)) for at in range(0, num_points, size)]
    return list(itertools.product(range(num_objects), parts))


def _points_of(
    chunks: Sequence[Chunk], encoded: Tensor, inputs: Inputs, operands: torch.dtype
) -> Iterator[tuple[int, Points]]:
    """Yield each chunk's points with their weights, which are converted once per object."""
    for index, of_object in itertools.groupby(chunks, key=itemgetter(0)):
        weights = inputs.one(index).as_operands(operands)
        for _, chosen in of_object:
            yield index, Points(encoded[index], chosen, weights)


def _spread(
    work: Callable[[Sequence[Part]], Result], parts: Sequence[Part], inputs: Inputs
) -> list[Result]:
    """Return work(group) of groups of parts; wide fields compute each group on its own core."""
    return cores.spread(work, parts) if inputs.width >= WIDE else [work(parts)]


class _FieldFunction(torch.autograd.Function):
    """The whole field as one autograd operation; evaluate lists its inputs."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, how: tuple[torch.dtype, ClearBelow | None], encoded: Tensor, *rest: Tensor
    ) -> Tensor:
        operands, clear_below = how
        inputs = Inputs.of(rest)
        output = encoded.new_empty(*encoded.shape[:2], 4)

        def fill(chunks: Sequence[Chunk]) -> None:
            for index, points in _points_of(chunks, encoded, inputs, operands):
                cpu_forward.evaluate(points, output[index, points.chosen], clear_below)

        _spread(fill, _chunks(encoded, inputs), inputs)
        ctx.operands = operands
        ctx.save_for_backward(output, encoded, *rest)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():  # create_graph=True: the result would lack its graph
            raise RuntimeError("the fast field is differentiable once; use FilmSiren.reference")
        output, encoded, *rest = ctx.saved_tensors
        inputs = Inputs.of(rest)
        of_encoded = torch.zeros_like(encoded) if ctx.needs_input_grad[1] else None

        def add(parts: Sequence[tuple[int, Tensor]]) -> tuple[slice, Inputs]:
            objects = slice(parts[0][0], parts[-1][0] + 1) if parts else slice(0, 0)
            total = inputs.zeros(objects)
            for index, of_object in itertools.groupby(parts, key=itemgetter(0)):
                weights = BothWays.of(inputs.one(index).as_operands(ctx.operands))
                known = Upstream(encoded[index], output[index], gradient[index])
                beyond = None if of_encoded is None else of_encoded[index]
                into = Downstream(total.one(index - objects.start), beyond)
                for _, points in of_object:
                    add_gradients(known, points, weights, into)
            return objects, total

        total = inputs.zeros(slice(None))
        with torch.autocast("cpu", enabled=False):
            for objects, part in _spread(add, _needed(gradient, inputs), inputs):
                total.add(part, objects)
        return (None, of_encoded, *total.flat())


def _needed(gradient: Tensor, inputs: Inputs) -> list[tuple[int, Tensor]]:
    """Return object and indices of points with a gradient (B, P, 4), at most a chunk per part.

    This is exact: a point whose output received no gradient adds nothing to any other gradient.
    """
    size = max(1, CHUNK_NUMBERS // inputs.width)
    parts = []
    for index, points in enumerate((gradient != 0).any(-1)):
        parts += [(index, some) for some in points.nonzero()[:, 0].split(size) if len(some) > 0]
    return parts
