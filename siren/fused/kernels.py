"""Triton kernels of the field: all layers of a block of points without leaving the chip.

A program owns BLOCK consecutive points of one object. Its activations stay in registers, in PIECES
pieces of WIDTH features, and an iteration of its loop computes one piece of one layer. All programs
of an object read the same weights, from the L2 cache into shared memory; those of the next
iteration load while this one computes. Matrix operands are float16 or bfloat16; sums, phases and
sines are float32, and so are the points, the directions and both heads, which are too narrow for
matrix units.

Legend: B objects, P points per object, G directions per object (P / G consecutive points share
one), H hidden width = PIECES * WIDTH, L inner layers (H to H: the trunk after its first layer, then
the color layer), C features beside the point (CHANNELS), N rows of a chunk (num_rows), R rows of
all chunks (total_rows): backward, the points with a gradient, then empty ones. ON_DEVICE is false
in Triton's interpreter.

Arrays, contiguous: points (B, P, 3), features (B, P, C), directions (B, G, 3), first weight
(B, 3, H), features weight (B, H, C), direction weight (B, 3, H), weights (B, L, H, H) as (out, in),
biases (B, L + 1, H), heads (4, H) and (4,): red, green, blue, density.
"""

import triton
import triton.language as tl

from siren.fused.kernel_layers import (
    color_layer_back,
    color_logits,
    dot_add,
    layers_back,
    load3,
    load_features,
    logit,
    store3,
    store3_back,
    store_input_gradients,
    trunk,
)


@triton.jit(do_not_specialize=["num_points", "num_directions", "num_inner"])
def forward_kernel(
    points_ptr, features_ptr, directions_ptr, first_ptr, features_weight_ptr,
    direction_weight_ptr, weights_ptr, biases_ptr, heads_ptr, head_biases_ptr, out_ptr,
    clear_start, clear_slope, num_points, num_directions, num_inner,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, DENSITY_ONLY: tl.constexpr,
    SKIPS_CLEAR: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write colors and raw densities to out (B, P, 4), or raw densities alone to out (B, P).

    SKIPS_CLEAR leaves blocks black whose densities are at most clear_start + clear_slope |point|.
    Grid: (blocks of points, B).
    """
    which = tl.program_id(1).to(tl.int64)
    first_ptr += which * 3 * H
    features_weight_ptr += which * H * CHANNELS
    direction_weight_ptr += which * 3 * H
    weights_ptr += which * num_inner * H * H
    biases_ptr += which * (num_inner + 1) * H
    columns = tl.arange(0, WIDTH)

    point = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = point < num_points
    x, y, z = load3(points_ptr + which * num_points * 3, point, is_inside)
    features = x
    if CHANNELS > 0:
        features = load_features(
            features_ptr + which * num_points * CHANNELS, point, is_inside, CHANNELS
        )
    h0, h1 = trunk(
        x, y, z, features, first_ptr, features_weight_ptr, weights_ptr, biases_ptr,
        out_ptr, out_ptr, point, 0, num_inner,
        H, WIDTH, PIECES, CHANNELS, STAGES, False, ON_DEVICE,
    )  # fmt: skip
    density = tl.load(head_biases_ptr + 3) + logit(h0, heads_ptr, 3, columns, H)
    if PIECES == 2:
        density += logit(h1, heads_ptr, 3, WIDTH + columns, H)
    if DENSITY_ONLY:
        tl.store(out_ptr + which * num_points + point, density, mask=is_inside)
    else:
        out_ptr += which * num_points * 4
        tl.store(out_ptr + point * 4 + 3, density, mask=is_inside)
        share = num_points // num_directions
        directions_ptr += which * num_directions * 3
        above = density - clear_start - clear_slope * tl.sqrt(x * x + y * y + z * z)
        if (tl.max(above, axis=0) > 0) | (not SKIPS_CLEAR):
            u, v, w = load3(directions_ptr, point // share, is_inside)
            red, green, blue = color_logits(
                h0, h1, u, v, w, direction_weight_ptr, weights_ptr, biases_ptr, heads_ptr,
                head_biases_ptr, num_inner - 1, H, WIDTH, PIECES, ON_DEVICE,
            )  # fmt: skip
            store3(out_ptr, point, is_inside, tl.sigmoid(red), tl.sigmoid(green), tl.sigmoid(blue))
        else:
            black = tl.zeros((BLOCK,), tl.float32)
            store3(out_ptr, point, is_inside, black, black, black)


@triton.jit(
    do_not_specialize=["start", "num_rows", "num_objects", "total_rows", "num_inner"]
)  # fmt: skip
def backward_kernel(
    points_ptr, features_ptr, directions_ptr, first_ptr, features_weight_ptr,
    direction_weight_ptr, weights_ptr, biases_ptr, heads_ptr, upstream_ptr, counts_ptr,
    sines_ptr, gradients_ptr, of_points_ptr, of_features_ptr, of_directions_ptr,
    start, num_rows, num_objects, total_rows, num_inner,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr, OF_POINTS: tl.constexpr,
    OF_DIRECTIONS: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Recompute a chunk's sines and the gradients of all phases, both (L + 1, B, N, H).

    The chunk holds the N rows from start on of each object's R rows, of which counts (B,) hold
    points. A block without points writes nothing; other rows without a point get gradient 0.

    points and directions are (B, R, 3), features (B, R, C); upstream (B, R, 4) are the gradients
    of the color logits and the densities. of_points (B, R, 3) and of_features (B, R, C), or
    of_directions (B, R, 3), are written on request. Grid: (N / BLOCK, B).
    """
    which = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = tl.load(counts_ptr + which)
    if start + tl.program_id(0) * BLOCK < count:
        _backward_block(
            points_ptr + which * total_rows * 3,
            features_ptr + which * total_rows * CHANNELS,
            directions_ptr + which * total_rows * 3,
            first_ptr + which * 3 * H,
            features_weight_ptr + which * H * CHANNELS,
            direction_weight_ptr + which * 3 * H,
            weights_ptr + which * num_inner * H * H,
            biases_ptr + which * (num_inner + 1) * H,
            heads_ptr,
            upstream_ptr + which * total_rows * 4,
            sines_ptr + which * num_rows * H,
            gradients_ptr + which * num_rows * H,
            of_points_ptr + which * total_rows * 3,
            of_features_ptr + which * total_rows * CHANNELS,
            of_directions_ptr + which * total_rows * 3,
            row, start + row, start + row < count,
            num_objects.to(tl.int64) * num_rows * H, num_inner,
            H, WIDTH, PIECES, CHANNELS, STAGES, OF_POINTS, OF_DIRECTIONS, ON_DEVICE,
        )  # fmt: skip


@triton.jit
def _backward_block(
    points_ptr, features_ptr, directions_ptr, first_ptr, features_weight_ptr,
    direction_weight_ptr, weights_ptr, biases_ptr, heads_ptr, upstream_ptr,
    sines_ptr, gradients_ptr, of_points_ptr, of_features_ptr, of_directions_ptr,
    row, point, is_inside, layer_stride, num_inner,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, CHANNELS: tl.constexpr,
    STAGES: tl.constexpr, OF_POINTS: tl.constexpr, OF_DIRECTIONS: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Compute one block of backward_kernel: pointers to its object, row its rows in the chunk.

    gradients holds the slopes at first, which are replaced layer by layer.
    """
    x, y, z = load3(points_ptr, point, is_inside)
    features = x
    if CHANNELS > 0:
        features = load_features(features_ptr, point, is_inside, CHANNELS)
    h0, h1 = trunk(
        x, y, z, features, first_ptr, features_weight_ptr, weights_ptr, biases_ptr,
        sines_ptr, gradients_ptr, row, layer_stride, num_inner,
        H, WIDTH, PIECES, CHANNELS, STAGES, True, ON_DEVICE,
    )  # fmt: skip
    density = tl.load(upstream_ptr + point * 4 + 3, mask=is_inside, other=0.0)
    color = num_inner * layer_stride
    offset = row[:, None] * H + tl.arange(0, WIDTH)[None, :]
    d0, d1 = color_layer_back(
        h0, h1, directions_ptr, upstream_ptr, point, is_inside, direction_weight_ptr,
        weights_ptr, biases_ptr, heads_ptr, sines_ptr + color, gradients_ptr + color, offset,
        num_inner, H, WIDTH, PIECES, ON_DEVICE,
    )  # fmt: skip
    if OF_DIRECTIONS:
        store3_back(
            of_directions_ptr, point, is_inside, d0, d1, direction_weight_ptr, H, WIDTH, PIECES
        )
    d0, d1 = layers_back(
        d0, d1, density, weights_ptr, heads_ptr, gradients_ptr, offset, layer_stride, num_inner,
        H, WIDTH, PIECES, STAGES, ON_DEVICE,
    )  # fmt: skip
    if OF_POINTS:
        store_input_gradients(
            d0, d1, point, is_inside, first_ptr, features_weight_ptr, of_points_ptr,
            of_features_ptr, H, WIDTH, PIECES, CHANNELS, ON_DEVICE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["start", "num_rows", "right_rows", "total_rows", "num_objects"])
def reduction_kernel(
    left_ptr, right_ptr, narrow_ptr, wide_out_ptr, narrow_out_ptr, counts_ptr,
    start, num_rows, right_rows, total_rows, num_objects,
    H: tl.constexpr, TILE: tl.constexpr, RIGHT: tl.constexpr, NARROW: tl.constexpr,
    STEP: tl.constexpr, STAGES: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Add left^T right (H, RIGHT) and left^T narrow (H, NARROW), summed over the rows of a chunk.

    Each program owns a part of the outputs, so the order of sums is fixed: results are repeatable.

    left (layers, B, N, H) holds the chunk, of which counts (B,) less start rows are in use; narrow
    (B, R, NARROW) holds all R rows. right has the chunk (layers, B, N, RIGHT) or, if right_rows is
    R, all rows (1, B, R, RIGHT); RIGHT 0 means no right. Outputs, float32: (splits, layers, B, H,
    RIGHT) and (..., NARROW). Grid: (H / TILE, layers * B, splits); N is a multiple of STEP.
    """
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    pair = tl.program_id(1).to(tl.int64)
    which = pair % num_objects
    split = tl.program_id(2)
    left_ptr += pair * num_rows * H + columns[None, :]
    narrow_columns = tl.arange(0, NARROW)
    narrow_ptr += (which * total_rows + start) * NARROW + narrow_columns[None, :]
    narrow_sum = tl.zeros((TILE, NARROW), tl.float32)
    if RIGHT > 0:
        right_columns = tl.arange(0, RIGHT)
        right_start = tl.where(right_rows == num_rows, 0, start)
        right_ptr += (pair * right_rows + right_start) * RIGHT + right_columns[None, :]
        wide_sum = tl.zeros((TILE, RIGHT), tl.float32)

    used = tl.minimum(tl.maximum(tl.load(counts_ptr + which) - start, 0), num_rows)
    turns = tl.cdiv(used, STEP)
    share = tl.cdiv(turns, tl.num_programs(2))
    begin = split * share * STEP
    end = tl.minimum(split * share + share, turns) * STEP
    for row in tl.range(begin, end, STEP, num_stages=STAGES):
        rows = row + tl.arange(0, STEP)
        left = tl.trans(tl.load(left_ptr + rows[:, None] * H))
        narrow = tl.load(narrow_ptr + rows[:, None] * NARROW)
        narrow_sum = dot_add(left, narrow, narrow_sum, ON_DEVICE)
        if RIGHT > 0:
            right = tl.load(right_ptr + rows[:, None] * RIGHT)
            wide_sum = dot_add(left, right, wide_sum, ON_DEVICE)

    if begin < end:
        first_row = (split * tl.num_programs(1) + pair) * H + columns
        target = narrow_out_ptr + first_row[:, None] * NARROW + narrow_columns[None, :]
        tl.store(target, tl.load(target) + narrow_sum)
        if RIGHT > 0:
            target = wide_out_ptr + first_row[:, None] * RIGHT + right_columns[None, :]
            tl.store(target, tl.load(target) + wide_sum)
