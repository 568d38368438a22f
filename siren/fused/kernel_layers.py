"""Functions of the Triton kernels that pass one block of points through layers, on the chip.

The legend and the arrays are those of kernels.py. n and k are pieces of a layer's outputs and
inputs; h0, h1 are the pieces of a block's sines, d0, d1 those of the gradient of its phases (both
are piece 0 if there is only one piece).
"""

import triton
import triton.language as tl


@triton.jit
def sine_of(phase, ON_DEVICE: tl.constexpr):
    """Return the special function unit's sine: its error, 6e-8 of the phase, is under float16's."""
    if ON_DEVICE:
        return tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [phase], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.sin(phase)


@triton.jit
def cosine_of(phase, ON_DEVICE: tl.constexpr):
    """Return the cosine, computed as in sine_of."""
    if ON_DEVICE:
        return tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [phase], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.cos(phase)


@triton.jit
def dot_add(a, b, total, ON_DEVICE: tl.constexpr):
    """Return total + a b. Triton's interpreter would multiply the bits of bfloat16 as integers."""
    if ON_DEVICE:
        return tl.dot(a, b, total)
    else:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")


@triton.jit
def _outer3(x, y, z, weight_ptr, columns, H: tl.constexpr):
    """Return x, y, z (BLOCK,) times some columns of a (3, H) matrix."""
    product = x[:, None] * tl.load(weight_ptr + columns)[None, :]
    product += y[:, None] * tl.load(weight_ptr + H + columns)[None, :]
    product += z[:, None] * tl.load(weight_ptr + 2 * H + columns)[None, :]
    return product


@triton.jit
def load3(ptr, index, is_inside):
    """Load row index of an (..., 3) array as three vectors."""
    x = tl.load(ptr + index * 3, mask=is_inside, other=0.0)
    y = tl.load(ptr + index * 3 + 1, mask=is_inside, other=0.0)
    z = tl.load(ptr + index * 3 + 2, mask=is_inside, other=0.0)
    return x, y, z


@triton.jit
def store3(ptr, index, is_inside, x, y, z):
    """Store three vectors as the first numbers of row index of an (..., 4) array."""
    tl.store(ptr + index * 4, x, mask=is_inside)
    tl.store(ptr + index * 4 + 1, y, mask=is_inside)
    tl.store(ptr + index * 4 + 2, z, mask=is_inside)


@triton.jit
def _tile(weights_ptr, layer, k, n, H: tl.constexpr, WIDTH: tl.constexpr):
    """Load a layer's weights from inputs in piece k to outputs in piece n, as (in, out)."""
    inputs = k * WIDTH + tl.arange(0, WIDTH)
    outputs = n * WIDTH + tl.arange(0, WIDTH)
    return tl.load(weights_ptr + layer * (H * H) + outputs[None, :] * H + inputs[:, None])


@triton.jit
def _tile_back(weights_ptr, layer, k, n, H: tl.constexpr, WIDTH: tl.constexpr):
    """Load a layer's weights from outputs in piece k to inputs in piece n, as (out, in)."""
    outputs = k * WIDTH + tl.arange(0, WIDTH)
    inputs = n * WIDTH + tl.arange(0, WIDTH)
    return tl.load(weights_ptr + layer * (H * H) + outputs[:, None] * H + inputs[None, :])


@triton.jit
def _product(
    h0, h1, weights_ptr, layer, n,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return piece n of a layer's product with its inputs, the pieces h0 and h1."""
    tile = _tile(weights_ptr, layer, 0, n, H, WIDTH)
    zero = tl.zeros((h0.shape[0], WIDTH), tl.float32)
    if PIECES == 2:
        second = _tile(weights_ptr, layer, 1, n, H, WIDTH)
        return dot_add(h1, second, dot_add(h0, tile, zero, ON_DEVICE), ON_DEVICE)
    else:
        return dot_add(h0, tile, zero, ON_DEVICE)


@triton.jit
def _product_back(
    d0, d1, weights_ptr, layer, n,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return piece n of the gradient of a layer's inputs from that of its phases, d0 and d1."""
    tile = _tile_back(weights_ptr, layer, 0, n, H, WIDTH)
    zero = tl.zeros((d0.shape[0], WIDTH), tl.float32)
    if PIECES == 2:
        second = _tile_back(weights_ptr, layer, 1, n, H, WIDTH)
        return dot_add(d1, second, dot_add(d0, tile, zero, ON_DEVICE), ON_DEVICE)
    else:
        return dot_add(d0, tile, zero, ON_DEVICE)


@triton.jit
def _first_phase(
    x, y, z, features, first_ptr, features_weight_ptr, biases_ptr, columns,
    H: tl.constexpr, CHANNELS: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return some columns of the first layer's phases of a block."""
    phase = _outer3(x, y, z, first_ptr, columns, H) + tl.load(biases_ptr + columns)[None, :]
    if CHANNELS > 0:
        channels = tl.arange(0, CHANNELS)
        address = features_weight_ptr + columns[None, :] * CHANNELS + channels[:, None]
        phase = dot_add(features, tl.load(address), phase, ON_DEVICE)
    return phase


@triton.jit
def load_features(features_ptr, point, is_inside, CHANNELS: tl.constexpr):
    """Load the features (BLOCK, C) of a block, 0 behind the last point."""
    address = features_ptr + point[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return tl.load(address, mask=is_inside[:, None], other=0.0)


@triton.jit
def _kept_sine(sines_ptr, slopes_ptr, offset, phase, ON_DEVICE: tl.constexpr):
    """Return a piece of sines as operands; store them and their slopes, the cosines.

    The slopes leave the registers before the sines need some; in the other order they spill.
    """
    operand = sines_ptr.dtype.element_ty
    tl.store(slopes_ptr + offset, cosine_of(phase, ON_DEVICE).to(operand))
    sine = sine_of(phase, ON_DEVICE).to(operand)
    tl.store(sines_ptr + offset, sine)
    return sine


@triton.jit
def trunk(
    x, y, z, features, first_ptr, features_weight_ptr, weights_ptr, biases_ptr,
    sines_ptr, slopes_ptr, rows, layer_stride, num_inner,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, CHANNELS: tl.constexpr,
    STAGES: tl.constexpr, KEEPS: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return the trunk's sines of a block as operands: two pieces, or a single piece twice.

    KEEPS also stores each layer's sines and their slopes in sines and slopes (L + 1, ..., H).
    """
    operand = weights_ptr.dtype.element_ty
    columns = tl.arange(0, WIDTH)
    phase = _first_phase(
        x, y, z, features, first_ptr, features_weight_ptr, biases_ptr, columns,
        H, CHANNELS, ON_DEVICE,
    )  # fmt: skip
    if KEEPS:
        offset = rows[:, None] * H + columns[None, :]
        h0 = _kept_sine(sines_ptr, slopes_ptr, offset, phase, ON_DEVICE)
    else:
        h0 = sine_of(phase, ON_DEVICE).to(operand)
    h1 = h0
    if PIECES == 2:
        phase = _first_phase(
            x, y, z, features, first_ptr, features_weight_ptr, biases_ptr, WIDTH + columns,
            H, CHANNELS, ON_DEVICE,
        )  # fmt: skip
        if KEEPS:
            h1 = _kept_sine(sines_ptr, slopes_ptr, offset + WIDTH, phase, ON_DEVICE)
        else:
            h1 = sine_of(phase, ON_DEVICE).to(operand)

    pending = tl.zeros((h0.shape[0], WIDTH), operand)
    for turn in tl.range(0, (num_inner - 1) * PIECES, num_stages=STAGES):
        layer = turn // PIECES
        piece = turn % PIECES
        phase = _product(h0, h1, weights_ptr, layer, piece, H, WIDTH, PIECES, ON_DEVICE)
        bias = tl.load(biases_ptr + (layer + 1) * H + piece * WIDTH + columns)
        phase += bias[None, :]
        if KEEPS:
            shift = (layer + 1) * layer_stride + piece * WIDTH
            sine = _kept_sine(sines_ptr + shift, slopes_ptr + shift, offset, phase, ON_DEVICE)
        else:
            sine = sine_of(phase, ON_DEVICE).to(operand)
        if PIECES == 2:
            if piece == 1:
                h0 = pending
                h1 = sine
            pending = sine
        else:
            h0 = sine
            h1 = sine
    return h0, h1


@triton.jit
def color_phase(
    h0, h1, u, v, w, direction_weight_ptr, weights_ptr, biases_ptr, last, n: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return piece n of the color layer's phases, seen along (u, v, w)."""
    columns = n * WIDTH + tl.arange(0, WIDTH)
    phase = _product(h0, h1, weights_ptr, last, n, H, WIDTH, PIECES, ON_DEVICE)
    phase += _outer3(u, v, w, direction_weight_ptr, columns, H)
    return phase + tl.load(biases_ptr + (last + 1) * H + columns)[None, :]


@triton.jit
def logit(sine, heads_ptr, row: tl.constexpr, columns, H: tl.constexpr):
    """Return the part (BLOCK,) of one head's output that some columns contribute."""
    return tl.sum(sine * tl.load(heads_ptr + row * H + columns)[None, :], axis=1)


@triton.jit
def color_logits(
    h0, h1, u, v, w, direction_weight_ptr, weights_ptr, biases_ptr, heads_ptr, head_biases_ptr,
    last, H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return the outputs of the three color heads on a block seen along (u, v, w)."""
    red = tl.load(head_biases_ptr)
    green = tl.load(head_biases_ptr + 1)
    blue = tl.load(head_biases_ptr + 2)
    for n in tl.static_range(PIECES):
        columns = n * WIDTH + tl.arange(0, WIDTH)
        phase = color_phase(
            h0, h1, u, v, w, direction_weight_ptr, weights_ptr, biases_ptr, last, n,
            H, WIDTH, PIECES, ON_DEVICE,
        )  # fmt: skip
        sine = sine_of(phase, ON_DEVICE)
        red += logit(sine, heads_ptr, 0, columns, H)
        green += logit(sine, heads_ptr, 1, columns, H)
        blue += logit(sine, heads_ptr, 2, columns, H)
    return red, green, blue


@triton.jit
def _color_gradient(
    phase, red, green, blue, heads_ptr, sines_ptr, gradients_ptr, offset, columns,
    H: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return the gradient of some columns of the color layer's phases; store it and the sines."""
    operand = sines_ptr.dtype.element_ty
    tl.store(sines_ptr + offset, sine_of(phase, ON_DEVICE).to(operand))
    gradient = _outer3(red, green, blue, heads_ptr, columns, H) * cosine_of(phase, ON_DEVICE)
    gradient = gradient.to(operand)
    tl.store(gradients_ptr + offset, gradient)
    return gradient


@triton.jit
def color_layer_back(
    h0, h1, directions_ptr, upstream_ptr, point, is_inside, direction_weight_ptr, weights_ptr,
    biases_ptr, heads_ptr, sines_ptr, gradients_ptr, offset, num_inner,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the color layer's phases, two pieces; store it and the sines."""
    u, v, w = load3(directions_ptr, point, is_inside)
    red = tl.load(upstream_ptr + point * 4, mask=is_inside, other=0.0)
    green = tl.load(upstream_ptr + point * 4 + 1, mask=is_inside, other=0.0)
    blue = tl.load(upstream_ptr + point * 4 + 2, mask=is_inside, other=0.0)
    columns = tl.arange(0, WIDTH)
    last = num_inner - 1
    phase = color_phase(
        h0, h1, u, v, w, direction_weight_ptr, weights_ptr, biases_ptr, last, 0,
        H, WIDTH, PIECES, ON_DEVICE,
    )  # fmt: skip
    d0 = _color_gradient(
        phase, red, green, blue, heads_ptr, sines_ptr, gradients_ptr, offset, columns,
        H, ON_DEVICE,
    )  # fmt: skip
    d1 = d0
    if PIECES == 2:
        phase = color_phase(
            h0, h1, u, v, w, direction_weight_ptr, weights_ptr, biases_ptr, last, 1,
            H, WIDTH, PIECES, ON_DEVICE,
        )  # fmt: skip
        d1 = _color_gradient(
            phase, red, green, blue, heads_ptr, sines_ptr, gradients_ptr, WIDTH + offset,
            WIDTH + columns, H, ON_DEVICE,
        )  # fmt: skip
    return d0, d1


@triton.jit
def store3_back(
    ptr, index, is_inside, d0, d1, weight_ptr,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Store the product of a gradient's pieces with a (3, H) matrix, transposed, at row index."""
    columns = tl.arange(0, WIDTH)
    for row in tl.static_range(3):
        value = logit(d0, weight_ptr, row, columns, H)
        if PIECES == 2:
            value += logit(d1, weight_ptr, row, WIDTH + columns, H)
        tl.store(ptr + index * 3 + row, value, mask=is_inside)


@triton.jit
def layers_back(
    d0, d1, density, weights_ptr, heads_ptr, gradients_ptr, offset, layer_stride, num_inner,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
    STAGES: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Propagate the gradient of the color layer's phases back to that of the first layer's.

    Replace the slopes at gradients by the gradients of the phases; density (BLOCK,) is the
    gradient of the density head, which enters at the last layer of the trunk.
    """
    columns = tl.arange(0, WIDTH)
    last = num_inner - 1
    tl.debug_barrier()  # other threads read the slopes than those that stored them
    pending = tl.zeros((d0.shape[0], WIDTH), d0.dtype)
    for turn in tl.range(0, num_inner * PIECES, num_stages=STAGES):
        layer = last - turn // PIECES
        piece = turn % PIECES
        product = _product_back(d0, d1, weights_ptr, layer, piece, H, WIDTH, PIECES, ON_DEVICE)
        of_head = heads_ptr + 3 * H + piece * WIDTH + columns
        head = tl.load(of_head, mask=columns < tl.where(layer == last, WIDTH, 0), other=0.0)
        product += density[:, None] * head[None, :]
        target = gradients_ptr + (layer * layer_stride + piece * WIDTH) + offset
        turned = (product * tl.load(target)).to(d0.dtype)
        tl.store(target, turned)
        if PIECES == 2:
            if piece == 1:
                d0 = pending
                d1 = turned
            pending = turned
        else:
            d0 = turned
            d1 = turned
    return d0, d1


@triton.jit
def store_input_gradients(
    d0, d1, point, is_inside, first_ptr, features_weight_ptr, of_points_ptr, of_features_ptr,
    H: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr, CHANNELS: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Store the gradients of points (P, 3) and features (P, C), from the first layer's phases."""
    columns = tl.arange(0, WIDTH)
    store3_back(of_points_ptr, point, is_inside, d0, d1, first_ptr, H, WIDTH, PIECES)
    if CHANNELS > 0:
        channels = tl.arange(0, CHANNELS)
        address = features_weight_ptr + columns[:, None] * CHANNELS + channels[None, :]
        of_features = tl.zeros((d0.shape[0], CHANNELS), tl.float32)
        of_features = dot_add(d0, tl.load(address), of_features, ON_DEVICE)
        if PIECES == 2:
            weight = tl.load(address + WIDTH * CHANNELS)
            of_features = dot_add(d1, weight, of_features, ON_DEVICE)
        address = point[:, None] * CHANNELS + channels[None, :]
        tl.store(of_features_ptr + address, of_features, mask=is_inside[:, None])
