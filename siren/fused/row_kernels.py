"""Triton kernels that order the points of the backward pass and lay out what its chunks read.

Legend and arrays as in kernels.py; P points, of which R rows take those with a gradient.
"""

import triton
import triton.language as tl

from siren.fused.kernel_layers import load3


@triton.jit
def _largest(heads_ptr, row: tl.constexpr, smallest, H: tl.constexpr):
    """Return the largest size of one head's weights, at least smallest."""
    weights = tl.abs(tl.load(heads_ptr + row * H + tl.arange(0, H)))
    return tl.maximum(tl.max(weights, axis=0), smallest)


@triton.jit
def _of_logit(output_ptr, gradient_ptr, point, channel: tl.constexpr, is_inside):
    """Return the gradient of a color's logit from that of the color."""
    color = tl.load(output_ptr + point * 4 + channel, mask=is_inside, other=0.0)
    gradient = tl.load(gradient_ptr + point * 4 + channel, mask=is_inside, other=0.0)
    return gradient * color * (1 - color)


@triton.jit(do_not_specialize=["num_points", "smallest"])
def upstream_kernel(
    output_ptr, gradient_ptr, heads_ptr, upstream_ptr, needed_ptr, largest_ptr,
    num_points, smallest,
    H: tl.constexpr, BLOCK: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write the upstream gradients (B, P, 4) of color logits and density from those of the output.

    needed (B, P) int32 is 1 where one of them is not zero; largest (B, blocks) is the largest
    product of a gradient's size with that of its head's weights in a block of points. Grid: (blocks
    of points, B).
    """
    which = tl.program_id(1).to(tl.int64)
    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = point < num_points
    output_ptr += which * num_points * 4
    gradient_ptr += which * num_points * 4
    upstream_ptr += which * num_points * 4
    red = _of_logit(output_ptr, gradient_ptr, point, 0, is_inside)
    green = _of_logit(output_ptr, gradient_ptr, point, 1, is_inside)
    blue = _of_logit(output_ptr, gradient_ptr, point, 2, is_inside)
    density = tl.load(gradient_ptr + point * 4 + 3, mask=is_inside, other=0.0)
    tl.store(upstream_ptr + point * 4, red, mask=is_inside)
    tl.store(upstream_ptr + point * 4 + 1, green, mask=is_inside)
    tl.store(upstream_ptr + point * 4 + 2, blue, mask=is_inside)
    tl.store(upstream_ptr + point * 4 + 3, density, mask=is_inside)
    is_needed = (red != 0) | (green != 0) | (blue != 0) | (density != 0)  # NaN is not zero either
    tl.store(needed_ptr + which * num_points + point, is_needed.to(tl.int32), mask=is_inside)
    largest = tl.abs(red) * _largest(heads_ptr, 0, smallest, H)
    largest = tl.maximum(largest, tl.abs(green) * _largest(heads_ptr, 1, smallest, H))
    largest = tl.maximum(largest, tl.abs(blue) * _largest(heads_ptr, 2, smallest, H))
    largest = tl.maximum(largest, tl.abs(density) * _largest(heads_ptr, 3, smallest, H))
    tl.store(largest_ptr + which * tl.num_programs(0) + tl.program_id(0), tl.max(largest, axis=0))


@triton.jit
def _with_column(tile, column: tl.constexpr, value):
    """Return a tile (BLOCK, 16) with one column replaced by value (BLOCK,)."""
    return tl.where((tl.arange(0, 16) == column)[None, :], value[:, None], tile)


@triton.jit
def _with_parts(tile, column: tl.constexpr, distance: tl.constexpr, value, operand: tl.constexpr):
    """Return a tile with value's high part in a column, and its low part at a distance."""
    high = value.to(operand).to(tl.float32)
    return _with_column(_with_column(tile, column, high), column + distance, value - high)


@triton.jit
def _store_rows(ptr, row, tile, is_wanted, COLUMNS: tl.constexpr):
    """Store rows (BLOCK, COLUMNS) of an array with as many columns."""
    address = ptr + row[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(address, tile, mask=is_wanted[:, None])


@triton.jit(do_not_specialize=["num_points", "num_directions", "total_rows"])
def rows_kernel(
    points_ptr, features_ptr, directions_ptr, upstream_ptr, scale_ptr, number_ptr,
    point_rows_ptr, feature_rows_ptr, direction_rows_ptr, upstream_rows_ptr, beside_ptr, logits_ptr,
    num_points, num_directions, total_rows,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write the points with a gradient to rows, in their order; the upstream gradients times scale.

    number (B, P) int32 counts the points with a gradient up to each point; scale is (B,). Outputs:
    points and directions (B, R, 3), features (B, R, C), upstream gradients (B, R, 4). beside
    (B, R, 16) are the point, high and low parts, a one, the direction, high and low parts; logits
    (B, R, 16) the upstream gradients, high and low parts. The two, and the features, are 0 in
    empty rows. Grid: (R / BLOCK, B).
    """
    operand: tl.constexpr = beside_ptr.dtype.element_ty
    which = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # of a point, and of a row
    is_point = place < num_points
    number_ptr += which * num_points
    number = tl.load(number_ptr + place, mask=is_point, other=0)
    before = tl.load(number_ptr + place - 1, mask=is_point & (place > 0), other=0)
    is_needed = is_point & (number > before)
    row = which * total_rows + number - 1
    empty = which * total_rows + place
    is_empty = (place >= tl.load(number_ptr + num_points - 1)) & (place < total_rows)
    if CHANNELS > 0:
        address = which * num_points + place
        columns = tl.arange(0, CHANNELS)[None, :]
        features = tl.load(
            features_ptr + address[:, None] * CHANNELS + columns, mask=is_needed[:, None], other=0.0
        )
        _store_rows(feature_rows_ptr, row, features, is_needed, CHANNELS)
        _store_rows(feature_rows_ptr, empty, tl.zeros_like(features), is_empty, CHANNELS)

    zeros = tl.zeros((BLOCK, 16), tl.float32)
    _store_rows(beside_ptr, empty, zeros.to(operand), is_empty, 16)
    _store_rows(logits_ptr, empty, zeros.to(operand), is_empty, 16)
    x, y, z = load3(points_ptr + which * num_points * 3, place, is_needed)
    share = num_points // num_directions
    u, v, w = load3(directions_ptr + which * num_directions * 3, place // share, is_needed)
    beside = _with_parts(zeros, 0, 3, x, operand)
    beside = _with_parts(beside, 1, 3, y, operand)
    beside = _with_parts(beside, 2, 3, z, operand)
    beside = _with_column(beside, 6, tl.zeros((BLOCK,), tl.float32) + 1)
    beside = _with_parts(beside, 7, 3, u, operand)
    beside = _with_parts(beside, 8, 3, v, operand)
    beside = _with_parts(beside, 9, 3, w, operand)
    _store_rows(beside_ptr, row, beside.to(operand), is_needed, 16)
    logits = zeros
    scale = tl.load(scale_ptr + which)
    for channel in tl.static_range(4):
        address = upstream_ptr + (which * num_points + place) * 4 + channel
        value = tl.load(address, mask=is_needed, other=0.0) * scale
        tl.store(upstream_rows_ptr + row * 4 + channel, value, mask=is_needed)
        logits = _with_parts(logits, channel, 4, value, operand)
    _store_rows(logits_ptr, row, logits.to(operand), is_needed, 16)
    tl.store(point_rows_ptr + row * 3, x, mask=is_needed)
    tl.store(point_rows_ptr + row * 3 + 1, y, mask=is_needed)
    tl.store(point_rows_ptr + row * 3 + 2, z, mask=is_needed)
    tl.store(direction_rows_ptr + row * 3, u, mask=is_needed)
    tl.store(direction_rows_ptr + row * 3 + 1, v, mask=is_needed)
    tl.store(direction_rows_ptr + row * 3 + 2, w, mask=is_needed)
