"""Compute gradients of the field by Triton kernels, one chunk of points at a time.

Legend: B objects, P points per object, G directions per object, H hidden width, L inner layers (the
trunk after its first layer, then the color layer), C features beside the point, R rows: an object's
points with a gradient and empty ones, in chunks of N; S splits of a chunk, summed last.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from siren.fused import kernels, launching, packing
from siren.fused.launching import ROWS
from siren.fused.packing import Inputs, Weights

STEP = 64  # rows of one iteration of the reduction; divides ROWS
STAGES = 3  # iterations of the reduction whose rows are in shared memory
CHUNK_NUMBERS = 2**25  # sines of one layer and chunk: 64 MiB; a chunk takes 2 (L + 1) times that
PROGRAMS = 512  # splits raise the programs of a reduction to this if objects and layers are few
NARROW = 16  # columns of the narrowest matrix that the matrix units take
# Columns of _beside: the point in two parts, a one, the direction in two parts.
POINT, ONE, DIRECTION = (slice(0, 3), slice(3, 6)), 6, (slice(7, 10), slice(10, 13))


class _Sums(NamedTuple):
    """Sums of products over the points, float32.

    inner (S, L, B, H, H); beside (S, L, B, H, 16), with the columns of _beside; the first
    layer's: first_beside (S, 1, B, H, 16) and first_features (S, 1, B, H, C); heads
    (S, 2, B, H, 16): the last two layers' sines times the upstream gradients.
    """

    inner: Tensor
    beside: Tensor
    first_beside: Tensor
    first_features: Tensor
    heads: Tensor


class _Rows(NamedTuple):
    """The order of rows: points with a gradient in their order, then empty rows.

    counts (B,) int32 rows hold points, is_row (B, R) marks them; point_of_row (B, R). has_gradient
    (B, P) marks the points that have a row; row_of_point (B, P).
    """

    counts: Tensor
    is_row: Tensor
    point_of_row: Tensor
    row_of_point: Tensor
    has_gradient: Tensor

    @staticmethod
    def of(upstream: Tensor, num_rows: int) -> "_Rows":
        """Leave out points whose upstream gradient (B, P, 4) is zero, without host-device sync."""
        has_gradient = (upstream != 0).any(-1)  # NaN is not zero either
        row_of_point = has_gradient.cumsum(1) - 1
        counts = has_gradient.sum(1)
        points = torch.arange(upstream.shape[1], device=upstream.device).expand_as(row_of_point)
        point_of_row = row_of_point.new_zeros(len(upstream), num_rows + 1)
        rows = row_of_point.where(has_gradient, num_rows)  # to an extra row, which is dropped
        point_of_row.scatter_(1, rows, points)
        is_row = torch.arange(num_rows, device=upstream.device) < counts[:, None]
        return _Rows(
            counts.int(), is_row, point_of_row[:, :-1], row_of_point.clamp(min=0), has_gradient
        )

    def take(self, x: Tensor, share: int = 1) -> Tensor:
        """Gather rows (B, R, c) of x (B, P, c) or (B, P / share, c); empty rows are zero."""
        taken = torch.take_along_dim(x, (self.point_of_row // share)[..., None], dim=1)
        return taken.where(self.is_row[..., None], 0).contiguous()

    def put_back(self, x: Tensor) -> Tensor:
        """Return rows x (B, R, c) as values of points (B, P, c): zero for points without a row."""
        found = torch.take_along_dim(x, self.row_of_point[..., None], dim=1)
        return found.where(self.has_gradient[..., None], 0)


def gradients(
    output: Tensor,
    gradient: Tensor,
    inputs: Inputs,
    weights: Weights,
    *,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Return gradients of encoded (B, P, in), directions (B, G, 3) and the tensors of JoinedField.

    Args:
        output: (B, P, 4), of the forward pass.
        gradient: (B, P, 4), of output.
        inputs: of the forward pass.
        weights: of the forward pass.
        needs: whether those of encoded and of directions are needed; else they are None.
    """
    upstream = packing.upstream(output, gradient)
    scale = packing.gradient_scale(upstream, weights.heads)  # (B,)
    num_points, num_directions = upstream.shape[1], inputs.directions.shape[1]
    kept = _kept(weights, num_points)
    num_rows = kept.shape[3]
    rows = _Rows.of(upstream, math.ceil(num_points / num_rows) * num_rows)
    share = max(1, num_points // num_directions)
    seen_from = rows.take(inputs.directions, share)
    taken = Inputs(rows.take(inputs.points), rows.take(inputs.features), seen_from)
    into, sums = _add_chunks(
        weights, taken, rows.take(upstream * scale[:, None, None]), rows.counts, kept, needs
    )
    of_encoded = of_directions = None
    if needs[0]:
        of_encoded = rows.put_back(torch.cat([into.features, into.points], dim=-1))
        of_encoded /= scale[:, None, None]
    if needs[1]:
        of_each = rows.put_back(into.directions).unflatten(1, (num_directions, -1))
        of_directions = of_each.sum(2) / scale[:, None, None]
    return (
        of_encoded,
        of_directions,
        *_of_weights(_Sums(*(t.sum(0) for t in sums)), scale),
        upstream.sum((0, 1)),
    )


def _zero_sums(weights: Weights, num_rows: int) -> _Sums:
    num_objects, num_inner, width, _ = weights.inner.shape
    programs = num_objects * num_inner * math.ceil(width / 128)
    splits = max(1, min(PROGRAMS // programs, num_rows // ROWS))
    zeros = functools.partial(weights.biases.new_zeros, dtype=torch.float32)
    return _Sums(
        zeros(splits, num_inner, num_objects, width, width),
        zeros(splits, num_inner, num_objects, width, NARROW),
        zeros(splits, 1, num_objects, width, NARROW),
        zeros(splits, 1, num_objects, width, weights.features.shape[-1]),
        zeros(splits, 2, num_objects, width, NARROW),
    )


def _kept(weights: Weights, num_points: int) -> Tensor:
    """Allocate (2, L + 1, B, N, H) for a chunk's sines and gradients."""
    num_objects, num_inner, width, _ = weights.inner.shape
    blocks = max(1, CHUNK_NUMBERS // (num_objects * width * ROWS))
    num_rows = min(blocks, math.ceil(num_points / ROWS)) * ROWS
    return weights.inner.new_empty(2, num_inner + 1, num_objects, max(num_rows, ROWS), width)


def _add_chunks(
    weights: Weights,
    rows: Inputs,
    upstream: Tensor,
    counts: Tensor,
    kept: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Inputs, _Sums]:
    """Return the gradients of rows (B, R, ...) that are needed, and the sums over the rows.

    Only the first counts (B,) rows hold points. kept is memory for a chunk of N; N divides R.
    """
    points, features, _ = rows
    num_objects, total_rows, _ = points.shape
    (sines, of_phases), num_rows = kept, kept.shape[3]
    wanted = zip((points, features, points), (needs[0], needs[0], needs[1]), strict=True)
    into = Inputs(*(points.new_empty(t.shape if is_needed else 0) for t, is_needed in wanted))
    sums = _zero_sums(weights, num_rows)
    beside, logits = _beside(rows, kept.dtype), _logits(upstream, kept.dtype)
    block = launching.blocks_of(points.device).backward
    for start in range(0, total_rows, num_rows):
        launching.launch(
            kernels.backward_kernel, (num_rows // block, num_objects),
            *rows, *weights[:-1], upstream, counts, sines, of_phases, *into,
            start, num_rows, num_objects, total_rows, weights.inner.shape[1],
            OF_POINTS=needs[0], OF_DIRECTIONS=needs[1], **packing.constants(weights, block),
        )  # fmt: skip
        reduce = functools.partial(_reduce, counts, start)
        reduce(of_phases[1:], sines[:-1], beside, sums.inner, sums.beside)
        reduce(of_phases[:1], features[None], beside, sums.first_features, sums.first_beside)
        reduce(sines[-2:], None, logits, sums.heads, sums.heads)
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
        STEP=STEP, STAGES=STAGES, **launching.options(width),
    )  # fmt: skip


def _beside(rows: Inputs, dtype: torch.dtype) -> Tensor:
    """Return the layers' narrow inputs (B, R, 16) in the columns POINT, ONE, DIRECTION."""
    points = packing.high_and_low(rows.points, dtype)
    directions = packing.high_and_low(rows.directions, dtype)
    one = torch.ones_like(points[0][..., :1])
    return _padded(torch.cat([*points, one, *directions], dim=-1))


def _logits(upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the upstream gradients (B, R, 4) as high and low parts, padded to (B, R, 16)."""
    return _padded(torch.cat(packing.high_and_low(upstream, dtype), dim=-1))


def _padded(x: Tensor) -> Tensor:
    """Pad x with columns of zeros up to NARROW."""
    return torch.nn.functional.pad(x, (0, NARROW - x.shape[-1]))


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
