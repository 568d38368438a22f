"""Gradients of the field by Triton kernels, a chunk of points at a time.

Legend: B objects, P points per object, G directions per object, H hidden width, L inner layers (the
trunk after its first layer, then the color layer), C features beside the point, N rows of a chunk:
its points of one object, padded to whole blocks; S splits of the rows, summed last.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from siren.fused import kernels, launching, packing
from siren.fused.launching import ROWS
from siren.fused.packing import Inputs, Weights

STEP = 64  # rows of one turn of the reduction; divides ROWS
STAGES = 3  # turns of the reduction whose rows are in shared memory
CHUNK_NUMBERS = 2**25  # of one layer's sines: 64 MiB, of which 2 (L + 1)
PROGRAMS = 512  # that a reduction is split into where objects and layers are few
NARROW = 16  # columns of the narrowest matrix that the matrix units take
# Columns of _beside: the point in two parts, a one, the direction in two parts.
POINT, ONE, DIRECTION = (slice(0, 3), slice(3, 6)), 6, (slice(7, 10), slice(10, 13))


class _Sums(NamedTuple):
    """float32 sums over the points.

    inner (S, L, B, H, H); beside (S, L, B, H, 16), against the columns of _beside; the first
    layer's: first_beside (S, 1, B, H, 16) and first_features (S, 1, B, H, C); heads
    (S, 2, B, H, 16): the last two layers' sines against the upstream gradients.
    """

    inner: Tensor
    beside: Tensor
    first_beside: Tensor
    first_features: Tensor
    heads: Tensor


def gradients(
    output: Tensor,
    gradient: Tensor,
    inputs: Inputs,
    weights: Weights,
    *,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of encoded (B, P, in), of directions (B, G, 3) and of the tensors of joined.

    Args:
        output: (B, P, 4), of the forward pass.
        gradient: (B, P, 4), of output.
        inputs: of the forward pass.
        weights: of the forward pass.
        needs: whether encoded's and whether the directions' are needed; None stands for the others.
    """
    upstream = packing.upstream(output, gradient)
    scale = packing.gradient_scale(upstream, weights.heads)  # (B,)
    scaled = (upstream * scale[:, None, None]).contiguous()
    points, features = inputs.points, inputs.features
    wanted = zip((points, features, points), (needs[0], needs[0], needs[1]), strict=True)
    into = Inputs(*(points.new_empty(t.shape if is_needed else 0) for t, is_needed in wanted))
    kept = _kept(weights, points.shape[1])
    sums = _zero_sums(weights, kept.shape[3])
    for start in range(0, points.shape[1], kept.shape[3]):
        _add_chunk(weights, inputs, scaled, start, kept, into, sums, needs)
    of_encoded = of_directions = None
    if needs[0]:
        of_encoded = torch.cat([into.features, into.points], dim=-1) / scale[:, None, None]
    if needs[1]:
        of_each = into.directions.unflatten(1, (inputs.directions.shape[1], -1))
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
    """Room for a chunk's sines and gradients, (2, L + 1, B, N, H)."""
    num_objects, num_inner, width, _ = weights.inner.shape
    blocks = max(1, CHUNK_NUMBERS // (num_objects * width * ROWS))
    num_rows = min(blocks, math.ceil(num_points / ROWS)) * ROWS
    return weights.inner.new_empty(2, num_inner + 1, num_objects, max(num_rows, ROWS), width)


def _add_chunk(
    weights: Weights,
    inputs: Inputs,
    upstream: Tensor,
    start: int,
    kept: Tensor,
    into: Inputs,
    sums: _Sums,
    needs: tuple[bool, bool],
) -> None:
    """Add what the N points from start on give to sums, and write theirs into into."""
    points, features, directions = inputs
    num_objects, num_points, _ = points.shape
    num_directions = directions.shape[1]
    sines, of_phases = kept
    num_rows = kept.shape[3]
    block = launching.blocks_of(points.device).backward
    launching.launch(
        kernels.backward_kernel, (num_rows // block, num_objects),
        *inputs, *weights[:-1], upstream, sines, of_phases, *into,
        start, num_rows, num_objects, num_points, num_directions, weights.inner.shape[1],
        OF_POINTS=needs[0], OF_DIRECTIONS=needs[1], **packing.constants(weights, block),
    )  # fmt: skip
    stop = min(start + num_rows, num_points)
    group = torch.arange(start, stop, device=points.device) // (num_points // num_directions)
    beside = _beside(points[:, start:stop], directions[:, group], kept.dtype, num_rows)
    _reduce(of_phases[1:], sines[:-1], beside, sums.inner, sums.beside)
    rows = _padded(features[:, start:stop], num_rows)[None]
    _reduce(of_phases[:1], rows, beside, sums.first_features, sums.first_beside)
    logits = torch.cat(packing.high_and_low(upstream[:, start:stop], kept.dtype), dim=-1)
    _reduce(sines[-2:], None, _padded(logits, num_rows, NARROW), sums.heads, sums.heads)


def _reduce(
    left: Tensor, right: Tensor | None, narrow: Tensor, wide_sum: Tensor, narrow_sum: Tensor
) -> None:
    """Add left^T right to wide_sum and left^T narrow to narrow_sum; shapes are in kernels.py."""
    num_layers, num_objects, num_rows, width = left.shape
    splits, tile = len(narrow_sum), min(width, launching.blocks_of(left.device).tile)
    launching.launch(
        kernels.reduction_kernel, (width // tile, num_layers * num_objects, splits),
        left, left if right is None else right, narrow, wide_sum, narrow_sum,
        num_rows, num_objects, math.ceil(num_rows / STEP / splits) * STEP,
        H=width, TILE=tile, RIGHT=0 if right is None else right.shape[-1], NARROW=NARROW,
        STEP=STEP, STAGES=STAGES, **launching.options(width),
    )  # fmt: skip


def _padded(x: Tensor, num_rows: int, num_columns: int = 0) -> Tensor:
    """X (B, n, c) with zeros up to (B, num_rows, at least num_columns)."""
    # Not F.pad, which refuses what is empty up to PyTorch 2.6.
    padded = x.new_zeros(len(x), num_rows, max(num_columns, x.shape[2]))
    padded[:, : x.shape[1], : x.shape[2]] = x
    return padded


def _beside(points: Tensor, directions: Tensor, dtype: torch.dtype, num_rows: int) -> Tensor:
    """What the narrow inputs of the layers are, (B, N, 16): see POINT, ONE, DIRECTION."""
    one = torch.ones_like(points[..., :1]).to(dtype)
    parts = [*packing.high_and_low(points, dtype), one, *packing.high_and_low(directions, dtype)]
    return _padded(torch.cat(parts, dim=-1), num_rows, NARROW)


def _of_weights(sums: _Sums, scale: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the tensors of joined but the last, from sums without S."""
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
