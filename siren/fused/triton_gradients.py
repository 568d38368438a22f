"""Compute gradients of the field by Triton kernels, one chunk of points at a time.

Legend: B objects, P points per object, G directions per object, H hidden width, L inner layers (the
trunk after its first layer, then the color layer), C features beside the point, R rows: an object's
points with a gradient and empty ones, in chunks of N; S splits of a chunk, summed last.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from siren.fused import kernels, launching, packing, row_kernels
from siren.fused.launching import ROWS
from siren.fused.packing import Inputs, Weights

STEP = 64  # rows of one iteration of the reduction; divides ROWS
STAGES = 3  # iterations of the reduction whose rows are in shared memory
CHUNK_NUMBERS = 2**25  # sines of one layer and chunk: 64 MiB; a chunk takes 2 (L + 1) times that
PROGRAMS = 512  # splits raise the programs of a reduction to this if objects and layers are few
NARROW = 16  # columns of the narrowest matrix that the matrix units take
BLOCK = 128  # points or rows of one program of row_kernels; ROWS is a multiple
# Columns of _Rows.beside: the point in two parts, a one, the direction in two parts.
POINT, ONE, DIRECTION = (slice(0, 3), slice(3, 6)), 6, (slice(7, 10), slice(10, 13))


class _Sums(NamedTuple):
    """Sums of products over the points, float32.

    inner (S, L, B, H, H); beside (S, L, B, H, 16), with the columns of _Rows.beside; the first
    layer's: first_beside (S, 1, B, H, 16) and first_features (S, 1, B, H, C); heads
    (S, 2, B, H, 16): the last two layers' sines times the upstream gradients.
    """

    inner: Tensor
    beside: Tensor
    first_beside: Tensor
    first_features: Tensor
    heads: Tensor


class _Rows(NamedTuple):
    """Points with a gradient in their order, then empty rows up to whole chunks.

    counts (B,) int32 rows hold points. inputs are points and directions (B, R, 3) and features
    (B, R, C); upstream (B, R, 4) are the scaled gradients. beside (B, R, 16) are the narrow inputs
    of the layers, and logits (B, R, 16) the upstream gradients as high and low parts; both are
    zero in empty rows.
    """

    counts: Tensor
    inputs: Inputs
    upstream: Tensor
    beside: Tensor
    logits: Tensor


def gradients(
    output: Tensor,
    gradient: Tensor,
    inputs: Inputs,
    weights: Weights,
    *,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Return gradients of encoded (B, P, in), directions (B, G, 3) and the tensors of JoinedField.

    gradient (B, P, 4) is that of output (B, P, 4); inputs and weights are those of the forward
    pass. needs tells whether gradients of encoded and of directions are needed; else they are None.
    """
    upstream, number, scale = _upstream(output, gradient, weights.heads)
    num_points, num_directions = upstream.shape[1], inputs.directions.shape[1]
    kept = _kept(weights, num_points)
    num_rows = math.ceil(num_points / kept.shape[3]) * kept.shape[3]
    rows = _rows(inputs, upstream, number, scale, num_rows)
    into, sums = _add_chunks(weights, rows, kept, needs)
    of_encoded = of_directions = None
    if needs[0]:
        of_rows = torch.cat([into.features, into.points], dim=-1)
        of_encoded = _of_points(of_rows, number) / scale[:, None, None]
    if needs[1]:
        of_each = _of_points(into.directions, number).unflatten(1, (num_directions, -1))
        of_directions = of_each.sum(2) / scale[:, None, None]
    return (
        of_encoded,
        of_directions,
        *_of_weights(_Sums(*(t[0] if len(t) == 1 else t.sum(0) for t in sums)), scale),
        upstream.sum((0, 1)),
    )


def _upstream(output: Tensor, gradient: Tensor, heads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return upstream gradients (B, P, 4), the order of their points, and their scales (B,).

    The order (B, P) int32 is how many points up to each one have a gradient that is not zero.
    """
    shape = output.shape[:2]
    upstream = torch.empty_like(output)
    is_needed = output.new_empty(shape, dtype=torch.int32)
    blocks = math.ceil(shape[1] / BLOCK)
    largest = output.new_empty(shape[0], blocks)
    if output.numel() == 0:
        return upstream, is_needed, output.new_ones(shape[0])
    launching.launch(
        row_kernels.upstream_kernel, (blocks, shape[0]),
        output, gradient.contiguous(), heads, upstream, is_needed, largest,
        shape[1], packing.SMALLEST_HEAD, H=heads.shape[1], BLOCK=BLOCK,
    )  # fmt: skip
    number = is_needed.cumsum(1, dtype=torch.int32)
    return upstream, number, packing.power_of_two(largest.amax(1))


def _rows(inputs: Inputs, upstream: Tensor, number: Tensor, scale: Tensor, num_rows: int) -> _Rows:
    """Gather the points with a gradient into rows (B, num_rows, ...), without host-device sync."""
    empty = [t.new_empty(len(t), num_rows, t.shape[-1]) for t in (*inputs, upstream)]
    dtype = inputs.features.dtype
    narrow = [upstream.new_empty(len(upstream), num_rows, NARROW, dtype=dtype) for _ in range(2)]
    if num_rows == 0:
        counts = number.new_zeros(len(number))
        return _Rows(counts, Inputs(*empty[:3]), empty[3], *narrow)
    launching.launch(
        row_kernels.rows_kernel, (num_rows // BLOCK, len(upstream)),
        *inputs, upstream, scale, number, *empty, *narrow,
        upstream.shape[1], inputs.directions.shape[1], num_rows,
        CHANNELS=inputs.features.shape[-1], BLOCK=BLOCK,
    )  # fmt: skip
    # A clone, not a view of the last element: kernels are compiled for aligned addresses.
    return _Rows(number[:, -1].clone(), Inputs(*empty[:3]), empty[3], *narrow)


def _of_points(x: Tensor, number: Tensor) -> Tensor:
    """Return rows x (B, R, c) as values of points (B, P, c): zero for points without a row."""
    has_row = F.pad(number, (1, 0)).diff(dim=1) > 0
    index = (number - 1).clamp(min=0).long()[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index).where(has_row[..., None], 0)


def _zero_sums(weights: Weights, num_rows: int) -> _Sums:
    num_objects, num_inner, width, _ = weights.inner.shape
    programs = num_objects * num_inner * math.ceil(width / 128)
    splits = max(1, min(PROGRAMS // programs, num_rows // ROWS))
    rest = (num_objects, width)
    shapes = (
        (splits, num_inner, *rest, width),
        (splits, num_inner, *rest, NARROW),
        (splits, 1, *rest, NARROW),
        (splits, 1, *rest, weights.features.shape[-1]),
        (splits, 2, *rest, NARROW),
    )
    sizes = [math.prod(shape) for shape in shapes]
    parts = weights.biases.new_zeros(sum(sizes)).split(sizes)  # one operation for all
    return _Sums(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


def _kept(weights: Weights, num_points: int) -> Tensor:
    """Allocate (2, L + 1, B, N, H) for a chunk's sines and gradients."""
    num_objects, num_inner, width, _ = weights.inner.shape
    blocks = max(1, CHUNK_NUMBERS // (num_objects * width * ROWS))
    num_rows = min(blocks, math.ceil(num_points / ROWS)) * ROWS
    return weights.inner.new_empty(2, num_inner + 1, num_objects, max(num_rows, ROWS), width)


def _add_chunks(
    weights: Weights, rows: _Rows, kept: Tensor, needs: tuple[bool, bool]
) -> tuple[Inputs, _Sums]:
    """Return the gradients of the rows' inputs (B, R, ...) that are needed, and sums over the rows.

    kept is memory for a chunk of N; N divides R.
    """
    points, features, _ = rows.inputs
    num_objects, total_rows, _ = points.shape
    (sines, of_phases), num_rows = kept, kept.shape[3]
    wanted = zip((points, features, points), (needs[0], needs[0], needs[1]), strict=True)
    into = Inputs(*(points.new_empty(t.shape if is_needed else 0) for t, is_needed in wanted))
    sums = _zero_sums(weights, num_rows)
    block = launching.blocks_of(points.device).backward
    for start in range(0, total_rows, num_rows):
        launching.launch(
            kernels.backward_kernel, (num_rows // block, num_objects),
            *rows.inputs, *weights[:-1], rows.upstream, rows.counts, sines, of_phases, *into,
            start, num_rows, num_objects, total_rows, weights.inner.shape[1],
            OF_POINTS=needs[0], OF_DIRECTIONS=needs[1], **packing.constants(weights, block),
        )  # fmt: skip
        reduce = functools.partial(_reduce, rows.counts, start)
        reduce(of_phases[1:], sines[:-1], rows.beside, sums.inner, sums.beside)
        reduce(of_phases[:1], features[None], rows.beside, sums.first_features, sums.first_beside)
        reduce(sines[-2:], None, rows.logits, sums.heads, sums.heads)
    return into, sums


def _reduce(
    counts: Tensor,
    start: int,
    left: Tensor,
    right: Tensor | None,
    narrow: Tensor,
    wide_sum: Tensor,
    narrow_sum: Tensor,
) -> None:
    """Add left^T right to wide_sum and left^T narrow to narrow_sum; shapes are in kernels.py."""
    num_layers, num_objects, num_rows, width = left.shape
    splits, tile = len(narrow_sum), min(width, launching.blocks_of(left.device).tile)
    right_rows = num_rows if right is None else right.shape[2]
    launching.launch(
        kernels.reduction_kernel, (width // tile, num_layers * num_objects, splits),
        left, left if right is None else right, narrow, wide_sum, narrow_sum, counts,
        start, num_rows, right_rows, narrow.shape[1], num_objects,
        H=width, TILE=tile, RIGHT=0 if right is None else right.shape[-1], NARROW=NARROW,
        STEP=STEP, STAGES=STAGES, num_warps=launching.num_warps(width),
    )  # fmt: skip


def _of_weights(sums: _Sums, scale: Tensor) -> tuple[Tensor, ...]:
    """Return gradients of all tensors of JoinedField except the last, from sums without S."""
    of_point = torch.stack([sums.first_beside[0, ..., part] for part in POINT]).sum(0)
    of_direction = torch.stack([sums.beside[-1, ..., part] for part in DIRECTION]).sum(0)
    biases = torch.cat([sums.first_beside[..., ONE], sums.beside[..., ONE]]).transpose(0, 1)
    of_density, of_color = sums.heads / scale[:, None, None]  # (B, H, 16)
    density, colors = (t[..., :4] + t[..., 4:8] for t in (of_density, of_color))
    heads = torch.cat([colors[..., :3], density[..., 3:]], dim=-1).sum(0).t()  # (4, H)
    return (
        torch.cat([sums.first_features[0], of_point], dim=-1) / scale[:, None, None],
        of_direction / scale[:, None, None],
        sums.inner.transpose(0, 1) / scale[:, None, None, None],
        biases / scale[:, None, None],
        heads,
    )
