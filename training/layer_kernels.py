"""Triton kernels of what follows a convolution of the discriminator: constant, LeakyReLU, shortcut.

Legend: B images, N numbers of an image: pixels times channels, channels last. All arrays but the
sums are in the precision of the features; the arithmetic is float32.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_known"])
def rectify_kernel(
    x_ptr, constant_ptr, shares_ptr, known_ptr, shortcut_ptr, beside_ptr, out_ptr, signs_ptr,
    numbers, channels, num_known,
    SLOPE: tl.constexpr, SCALE: tl.constexpr, IS_MAP: tl.constexpr, HAS_SHARES: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr, BLOCK: tl.constexpr, ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write the LeakyReLU of x plus a constant to out (B, N), which may be x; 1 to signs where > 0.

    constant is (N,) if IS_MAP, else (channels,); shares (B,) multiply it. known (B', N) are the
    signs of the first B' = num_known images, which replace their own. A shortcut (B, N), plus its
    constant beside (channels,), is added, and the sum multiplied by SCALE. Grid: (blocks of
    numbers, B).
    """
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = place < numbers
    offset = image * numbers + place
    index = place if IS_MAP else place % channels
    share = 1.0
    if HAS_SHARES:
        share = tl.load(shares_ptr + image).to(tl.float32)
    value = tl.load(x_ptr + offset, mask=is_inside, other=0.0).to(tl.float32)
    value += share * tl.load(constant_ptr + index, mask=is_inside, other=0.0).to(tl.float32)
    is_known = tl.zeros((BLOCK,), tl.int64) + image < num_known
    known = tl.load(known_ptr + offset, mask=is_inside & is_known, other=0)
    is_positive = tl.where(is_known, known != 0, value > 0)
    value = tl.where(is_positive, value, SLOPE * value)
    if HAS_SHORTCUT:
        value += tl.load(shortcut_ptr + offset, mask=is_inside, other=0.0).to(tl.float32)
        constant = tl.load(beside_ptr + place % channels, mask=is_inside, other=0.0)
        value = SCALE * (value + share * constant.to(tl.float32))
    tl.store(out_ptr + offset, value, mask=is_inside)
    tl.store(signs_ptr + offset, is_positive, mask=is_inside)


@triton.jit(do_not_specialize=["num_images"])
def rectify_back_kernel(
    gradient_ptr, signs_ptr, shares_ptr, of_x_ptr, of_shortcut_ptr, sums_ptr,
    numbers, num_images,
    SLOPE: tl.constexpr, SCALE: tl.constexpr, HAS_SHARES: tl.constexpr,
    HAS_SHORTCUT: tl.constexpr, OF_CONSTANTS: tl.constexpr, BLOCK: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of rectify_kernel's inputs from that of its output, gradient (B, N).

    sums (2, S, N), float32, are those of the constants, summed over each of S parts of the images
    in a fixed order: the convolution's, then the shortcut's. Grid: (blocks of numbers, S).
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_inside = place < numbers
    size = tl.cdiv(num_images, tl.num_programs(1))
    first = tl.program_id(1) * size
    start = first.to(tl.int64) * numbers
    gradient_ptr += start
    signs_ptr += start
    of_x_ptr += start
    of_shortcut_ptr += start
    total = tl.zeros((BLOCK,), tl.float32)
    beside = tl.zeros((BLOCK,), tl.float32)
    for image in tl.range(first, tl.minimum(first + size, num_images), loop_unroll_factor=2):
        gradient = tl.load(gradient_ptr + place, mask=is_inside, other=0.0).to(tl.float32)
        share = 1.0
        if HAS_SHARES:
            share = tl.load(shares_ptr + image).to(tl.float32)
        if HAS_SHORTCUT:
            gradient *= SCALE
            tl.store(of_shortcut_ptr + place, gradient, mask=is_inside)
            beside += share * gradient
            of_shortcut_ptr += numbers
        is_positive = tl.load(signs_ptr + place, mask=is_inside, other=0) != 0
        gradient = tl.where(is_positive, gradient, SLOPE * gradient)
        tl.store(of_x_ptr + place, gradient, mask=is_inside)
        total += share * gradient
        gradient_ptr += numbers
        signs_ptr += numbers
        of_x_ptr += numbers
    if OF_CONSTANTS:
        sums_ptr += tl.program_id(1).to(tl.int64) * numbers
        tl.store(sums_ptr + place, total, mask=is_inside)
        if HAS_SHORTCUT:
            sums_ptr += tl.num_programs(1).to(tl.int64) * numbers
            tl.store(sums_ptr + place, beside, mask=is_inside)
