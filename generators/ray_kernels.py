"""Triton kernels of volume rendering: what volumetric_rendering does with the samples of a ray.

Each lane of a program owns a ray and walks along its samples, so nothing but the results is written
to memory. All numbers are float32.

Arrays, contiguous: depths (N, S) of N rays in ascending order; samples (N, S, 4): colors, raw
densities; noise (N, S), which noise_scale multiplies; end (N,), where a bounded scene ends. An
array whose flag HAS_... is false is not read.
"""

import triton
import triton.language as tl

SMALL = tl.constexpr(0.02)  # up to here a series is more exact than the difference of two numbers
TAIL = tl.constexpr(1e10)  # TAIL_LENGTH of volumetric_rendering
FLOOR = tl.constexpr(1e-5)  # WEIGHT_FLOOR of volumetric_rendering


@triton.jit
def _absorbed(optical_depth):
    """Return 1 - exp(-x), the share of light that a sample absorbs."""
    x = tl.minimum(optical_depth, SMALL)
    series = x * (1 - x * (0.5 - x * (1 / 6 - x / 24)))
    return tl.where(optical_depth < SMALL, series, 1 - tl.exp(-optical_depth))


@triton.jit
def _activated(raw, IS_SOFTPLUS: tl.constexpr):
    """Return densities of raw ones; NaN stays NaN."""
    if IS_SOFTPLUS:
        e = tl.exp(-tl.abs(raw))
        series = e * (1 - e * (0.5 - e * (1 / 3 - e / 4)))
        return tl.where(raw > 0, raw, 0.0) + tl.where(e < SMALL, series, tl.log(1 + e))
    else:
        return tl.where(raw <= 0, 0.0, raw)


@triton.jit
def _length(depth, depths_ptr, end_ptr, ray, i, is_inside, S: tl.constexpr, HAS_END: tl.constexpr):
    """Return the length of the ray's part that sample i stands for, and the next sample's depth."""
    is_last = i == S - 1
    following = tl.load(depths_ptr + ray * S + i + 1, mask=is_inside & (i < S - 1), other=0.0)
    tail = tl.zeros_like(depth) + TAIL
    if HAS_END:
        end = tl.load(end_ptr + ray, mask=is_inside, other=0.0)
        tail = tl.where(end > depth, end - depth, 0.0)
    return tl.where(is_last, tail, following - depth), following


@triton.jit
def _column(
    first_ptr, second_ptr, ray, place, column, is_inside, S1: tl.constexpr, S2: tl.constexpr
):
    """Return a column of the samples at place: of S1 first ones, or else of S2 second ones."""
    value = tl.load(
        first_ptr + (ray * S1 + place) * 4 + column, mask=is_inside & (place < S1), other=0.0
    )
    if S2 > 0:
        address = second_ptr + (ray * S2 + place - S1) * 4 + column
        second = tl.load(address, mask=is_inside & (place >= S1), other=0.0)
        value = tl.where(place < S1, value, second)
    return value


@triton.jit
def _place(order_ptr, ray, i, is_inside, S: tl.constexpr, S2: tl.constexpr):
    """Return where sample i in the order of depths stands among both sets of samples."""
    if S2 > 0:
        return tl.load(order_ptr + ray * S + i, mask=is_inside, other=0)
    else:
        return tl.zeros_like(ray) + i


@triton.jit
def _raw_density(
    first_ptr, second_ptr, noise_ptr, noise_scale, ray, i, place, is_inside,
    S1: tl.constexpr, S2: tl.constexpr, HAS_NOISE: tl.constexpr,
):  # fmt: skip
    """Return the raw density of sample i, with its noise."""
    raw = _column(first_ptr, second_ptr, ray, place, 3, is_inside, S1, S2)
    if HAS_NOISE:
        address = noise_ptr + ray * (S1 + S2) + i
        raw += noise_scale * tl.load(address, mask=is_inside, other=0.0)
    return raw


@triton.jit
def _optical_depth(
    samples_ptr, depths_ptr, noise_ptr, end_ptr, noise_scale, ray, i, depth, is_inside,
    S: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_END: tl.constexpr, IS_SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Return the optical depth of sample i of the only set, at depth, and the next one's depth."""
    raw = _raw_density(
        samples_ptr, samples_ptr, noise_ptr, noise_scale, ray, i, i, is_inside, S, 0, HAS_NOISE
    )
    length, following = _length(depth, depths_ptr, end_ptr, ray, i, is_inside, S, HAS_END)
    return _activated(raw, IS_SOFTPLUS) * length, following


@triton.jit(do_not_specialize=["num_rays", "noise_scale"])
def importance_kernel(
    samples_ptr, depths_ptr, noise_ptr, quantiles_ptr, end_ptr, out_ptr, num_rays, noise_scale,
    S: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, HAS_NOISE: tl.constexpr,
    HAS_QUANTILES: tl.constexpr, HAS_END: tl.constexpr, IS_SOFTPLUS: tl.constexpr,
    LAG: tl.constexpr, BLOCK: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write COUNT depths a ray to out (N, COUNT), drawn from the distribution of coarse weights.

    quantiles (N, COUNT) are in [0, 1); without them they are evenly spaced. WIDTH is a power of
    two, at least COUNT. LAG 1 spreads the weights: a bin then waits for the sample behind it.
    Grid: (blocks of rays,).
    """
    ray = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    is_inside = ray < num_rays
    columns = tl.arange(0, WIDTH)
    is_wanted = is_inside[:, None] & (columns < COUNT)[None, :]
    target = ray[:, None] * COUNT + columns[None, :]
    if HAS_QUANTILES:
        u = tl.load(quantiles_ptr + target, mask=is_wanted, other=0.0)
    else:
        u = tl.zeros((BLOCK, WIDTH), tl.float32) + ((columns + 0.5) / COUNT)[None, :]

    total = tl.zeros((BLOCK,), tl.float32)
    cdf = tl.zeros((BLOCK,), tl.float32)
    cdf_below = tl.zeros((BLOCK, WIDTH), tl.float32)
    cdf_above = tl.zeros((BLOCK, WIDTH), tl.float32)
    edge_below = tl.zeros((BLOCK, WIDTH), tl.float32)
    edge_above = tl.zeros((BLOCK, WIDTH), tl.float32)
    is_open = u >= 0
    for turn in tl.static_range(2):  # the sum of all weights, then the distribution function
        depth = tl.load(depths_ptr + ray * S, mask=is_inside, other=0.0)
        # Its start is not depth: the compiler takes two names of one value for one variable.
        last_depth = tl.zeros((BLOCK,), tl.float32)
        before = tl.zeros((BLOCK,), tl.float32)
        own = tl.zeros((BLOCK,), tl.float32)  # weight of the last sample, and of the one before it
        earlier = tl.zeros((BLOCK,), tl.float32)
        for i in tl.range(0, S - 1 + LAG):
            optical_depth, following = _optical_depth(
                samples_ptr, depths_ptr, noise_ptr, end_ptr, noise_scale, ray, i, depth, is_inside,
                S, HAS_NOISE, HAS_END, IS_SOFTPLUS,
            )  # fmt: skip
            weight = tl.exp(-before) * _absorbed(optical_depth)
            before += optical_depth
            edge = (depth + following) / 2
            if LAG == 1:
                spread = earlier / 2 + own + weight
                earlier = own
                own = weight
                weight = spread
                edge = (last_depth + depth) / 2
                last_depth = depth
            number = i - LAG  # of the bin, which lies between the middles of the depths
            mass = tl.where(number > 0, weight + 2 * FLOOR, 0.0)
            if turn == 0:
                total += mass
            else:
                cdf += mass / total
                cdf_above = tl.where(is_open, cdf[:, None], cdf_above)
                edge_above = tl.where(is_open, edge[:, None], edge_above)
                is_open = is_open & ((cdf[:, None] < u) | (number < 0))
                is_below = is_open | (number <= 0)
                cdf_below = tl.where(is_below, cdf[:, None], cdf_below)
                edge_below = tl.where(is_below, edge[:, None], edge_below)
            depth = following

    bin_mass = cdf_above - cdf_below
    bin_mass = tl.where(bin_mass < FLOOR, 1.0, bin_mass)
    found = edge_below + (u - cdf_below) / bin_mass * (edge_above - edge_below)
    tl.store(out_ptr + target, found, mask=is_wanted)


@triton.jit(do_not_specialize=["num_rays", "noise_scale"])
def composite_kernel(
    first_ptr, second_ptr, order_ptr, depths_ptr, noise_ptr, end_ptr,
    rgb_ptr, depth_ptr, opacity_ptr, num_rays, noise_scale,
    S1: tl.constexpr, S2: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_END: tl.constexpr,
    IS_SOFTPLUS: tl.constexpr, BACKGROUND: tl.constexpr, BLOCK: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write colors (N, 3), depths (N,) and opacities (N,) of rays.

    Sample i in the order of depths (N, S1 + S2) is number order (N, S1 + S2) of the first samples
    (N, S1, 4) and then the second ones (N, S2, 4); if S2 is 0, order is not read. BACKGROUND is
    0 for black, 1 for white, 2 for the farthest sample. Grid: (blocks of rays,).
    """
    S: tl.constexpr = S1 + S2
    ray = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    is_inside = ray < num_rays
    red = tl.zeros((BLOCK,), tl.float32)
    green = tl.zeros((BLOCK,), tl.float32)
    blue = tl.zeros((BLOCK,), tl.float32)
    far = tl.zeros((BLOCK,), tl.float32)
    opacity = tl.zeros((BLOCK,), tl.float32)
    before = tl.zeros((BLOCK,), tl.float32)
    depth = tl.load(depths_ptr + ray * S, mask=is_inside, other=0.0)
    for i in tl.range(0, S):
        place = _place(order_ptr, ray, i, is_inside, S, S2)
        raw = _raw_density(
            first_ptr, second_ptr, noise_ptr, noise_scale, ray, i, place, is_inside,
            S1, S2, HAS_NOISE,
        )  # fmt: skip
        length, following = _length(depth, depths_ptr, end_ptr, ray, i, is_inside, S, HAS_END)
        optical_depth = _activated(raw, IS_SOFTPLUS) * length
        weight = tl.exp(-before) * _absorbed(optical_depth)
        before += optical_depth
        opacity += weight
        if BACKGROUND == 2:
            weight += tl.where(i == S - 1, 1 - opacity, 0.0)
        red += weight * _column(first_ptr, second_ptr, ray, place, 0, is_inside, S1, S2)
        green += weight * _column(first_ptr, second_ptr, ray, place, 1, is_inside, S1, S2)
        blue += weight * _column(first_ptr, second_ptr, ray, place, 2, is_inside, S1, S2)
        far += weight * depth
        depth = following
    if BACKGROUND == 1:
        red += 1 - opacity
        green += 1 - opacity
        blue += 1 - opacity
    tl.store(rgb_ptr + ray * 3, red, mask=is_inside)
    tl.store(rgb_ptr + ray * 3 + 1, green, mask=is_inside)
    tl.store(rgb_ptr + ray * 3 + 2, blue, mask=is_inside)
    tl.store(depth_ptr + ray, far, mask=is_inside)
    tl.store(opacity_ptr + ray, opacity, mask=is_inside)


@triton.jit(do_not_specialize=["num_rays", "noise_scale"])
def composite_back_kernel(
    first_ptr, second_ptr, order_ptr, depths_ptr, noise_ptr, end_ptr,
    of_rgb_ptr, of_depth_ptr, of_opacity_ptr, of_first_ptr, of_second_ptr, num_rays, noise_scale,
    S1: tl.constexpr, S2: tl.constexpr, HAS_NOISE: tl.constexpr, HAS_END: tl.constexpr,
    IS_SOFTPLUS: tl.constexpr, BACKGROUND: tl.constexpr, HAS_DEPTH: tl.constexpr,
    HAS_OPACITY: tl.constexpr, BLOCK: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of both sets of samples from those of colors, depths and opacities.

    With weights w_i, their gradients g_i and T_i, the light that reaches sample i, a density's
    gradient is length_i (T_(i + 1) g_i - sum_(j > i) w_j g_j). Arrays and grid as in
    composite_kernel.
    """
    S: tl.constexpr = S1 + S2
    ray = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    is_inside = ray < num_rays
    red = tl.load(of_rgb_ptr + ray * 3, mask=is_inside, other=0.0)
    green = tl.load(of_rgb_ptr + ray * 3 + 1, mask=is_inside, other=0.0)
    blue = tl.load(of_rgb_ptr + ray * 3 + 2, mask=is_inside, other=0.0)
    far = tl.zeros((BLOCK,), tl.float32)
    if HAS_DEPTH:
        far += tl.load(of_depth_ptr + ray, mask=is_inside, other=0.0)
    of_all = tl.zeros((BLOCK,), tl.float32)  # the part of g_i that is the same for all samples
    if HAS_OPACITY:
        of_all += tl.load(of_opacity_ptr + ray, mask=is_inside, other=0.0)
    if BACKGROUND == 1:
        of_all -= red + green + blue
    if BACKGROUND == 2:
        place = _place(order_ptr, ray, S - 1, is_inside, S, S2)
        of_all -= red * _column(first_ptr, second_ptr, ray, place, 0, is_inside, S1, S2)
        of_all -= green * _column(first_ptr, second_ptr, ray, place, 1, is_inside, S1, S2)
        of_all -= blue * _column(first_ptr, second_ptr, ray, place, 2, is_inside, S1, S2)
        of_all -= far * tl.load(depths_ptr + ray * S + S - 1, mask=is_inside, other=0.0)

    rest = tl.zeros((BLOCK,), tl.float32)  # the sum of w_j g_j over the samples behind sample i
    for turn in tl.static_range(2):
        before = tl.zeros((BLOCK,), tl.float32)
        depth = tl.load(depths_ptr + ray * S, mask=is_inside, other=0.0)
        for i in tl.range(0, S):
            place = _place(order_ptr, ray, i, is_inside, S, S2)
            raw = _raw_density(
                first_ptr, second_ptr, noise_ptr, noise_scale, ray, i, place, is_inside,
                S1, S2, HAS_NOISE,
            )  # fmt: skip
            length, following = _length(depth, depths_ptr, end_ptr, ray, i, is_inside, S, HAS_END)
            optical_depth = _activated(raw, IS_SOFTPLUS) * length
            weight = tl.exp(-before) * _absorbed(optical_depth)
            before += optical_depth
            of_weight = of_all + far * depth
            of_weight += red * _column(first_ptr, second_ptr, ray, place, 0, is_inside, S1, S2)
            of_weight += green * _column(first_ptr, second_ptr, ray, place, 1, is_inside, S1, S2)
            of_weight += blue * _column(first_ptr, second_ptr, ray, place, 2, is_inside, S1, S2)
            if turn == 0:
                rest += weight * of_weight
            else:
                # Exactly 0 behind the last sample, whose length may be 1e10.
                rest = tl.where(i == S - 1, 0.0, rest - weight * of_weight)
                passing = tl.exp(-before)
                of_raw = length * (passing * of_weight - rest)
                if IS_SOFTPLUS:
                    e = tl.exp(-tl.abs(raw))
                    of_raw *= tl.where(raw > 0, 1.0, e) / (1 + e)
                else:
                    of_raw = tl.where(raw <= 0, 0.0, of_raw)
                if BACKGROUND == 2:
                    weight += tl.where(i == S - 1, passing, 0.0)
                _store_gradient(
                    of_first_ptr + (ray * S1 + place) * 4, is_inside & (place < S1),
                    weight * red, weight * green, weight * blue, of_raw,
                )  # fmt: skip
                if S2 > 0:
                    _store_gradient(
                        of_second_ptr + (ray * S2 + place - S1) * 4, is_inside & (place >= S1),
                        weight * red, weight * green, weight * blue, of_raw,
                    )  # fmt: skip
            depth = following


@triton.jit
def _store_gradient(address, mask, red, green, blue, density):
    """Store four numbers of a sample."""
    tl.store(address, red, mask=mask)
    tl.store(address + 1, green, mask=mask)
    tl.store(address + 2, blue, mask=mask)
    tl.store(address + 3, density, mask=mask)
