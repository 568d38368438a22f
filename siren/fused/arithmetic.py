"""Matrix products and sines, almost all of the field's work, by the fastest library of a CPU.

PyTorch contains two libraries for products. Measured on one core, 2,048 points of 256 features in
float32: on an AMD processor with AVX-512 MKL does 106 GFLOP/s and oneDNN 220; on an Intel one with
AMX they do 159 and 144, and MKL is faster still if an operand is transposed: on an Intel one with
hidden AMX they do 136 and 62 in gradients of 64 x 64 weights. On an AMD processor with no more than
AVX2 these gradients are 1.8 times as fast by MKL, and the field's backward pass 1.2 times.
PyTorch's sine takes 1.0 ns on the AMD processor with AVX-512, NumPy's 0.4 (with an error of 7e-8,
not 4e-8); on the Intel ones they take 0.5 and 0.6, and with AVX2 alone both take 1.8. Products in
bfloat16 use oneDNN on every processor. They are fast only on processors with instructions for them:
on others a 32 px render takes five times as long as with float32 products.
"""

import platform

import numpy as np
import torch
from torch import Tensor


def _has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _has_onednn_bfloat16() -> bool:
    is_there = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return HAS_ONEDNN_LINEAR and is_there is not None and bool(is_there())


def _has_bfloat16_instructions() -> bool:
    """Return whether the CPU has them: x86's newer AVX-512 and AMX, or ARM's.

    On x86 oneDNN itself also supports processors that have no more than AVX-512.
    """
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    in_x86 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return HAS_ONEDNN_BFLOAT16 and (in_x86 or not is_x86)


def _is_mkl_faster() -> bool:
    """Return whether MKL, PyTorch's default, is the faster one: on CPUs with no more than AVX2.

    And on Intel Xeons since 2023. They have AMX, which a virtual machine may hide, and float16
    arithmetic, which AMD's do not have.
    """
    find = getattr(torch.cpu, "get_capabilities", None)  # older versions lack it
    has_float16 = find is not None and bool(find().get("avx512_fp16"))
    is_newer_xeon = torch.cpu._is_amx_tile_supported() or has_float16
    is_narrow = not torch.cpu._is_avx512_supported()
    return torch.backends.mkl.is_available() and (is_newer_xeon or is_narrow)


HAS_ONEDNN_LINEAR = _has_onednn_linear()
HAS_ONEDNN_BFLOAT16 = _has_onednn_bfloat16()  # else PyTorch has one of its own
HAS_BFLOAT16_INSTRUCTIONS = _has_bfloat16_instructions()
PREFERS_MKL = _is_mkl_faster()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x weight^T + bias (n, out): x (n, in), weight (out, in), bias (out,) or (n, out).

    Products of bfloat16 are summed in float32. A float32 bias (out,) is added before the sum is
    rounded to bfloat16, a bias (n, out) after it. Otherwise all tensors are float32 or all float64.
    """
    if bias is not None and bias.ndim == 2:
        return product(x, weight).add_(bias)
    if _is_onednn_faster(x) and min(*x.shape, len(weight)) > 0:
        return onednn_product(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t())
    # With a bias PyTorch would first write it into every row of the result.
    return torch.mm(x, weight.t()).add_(bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the product computed by oneDNN, which supports no float64 and no empty matrices."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(
        _dense(x), _dense(weight), bias, "none", [], ""
    )
    return result


def product_times(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """Return x weight^T, multiplied element by element by factor (n, out)."""
    if _is_onednn_faster(x) and min(*x.shape, len(weight)) > 0:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            _dense(x), factor, _dense(weight), None, "mul"
        )
        return result
    return torch.mm(x, weight.t()).mul_(factor)


def outer_product(x: Tensor, y: Tensor) -> Tensor:
    """Return x^T y (a, b) of x (n, a) and y (n, b): the sum of the outer products of rows."""
    if x.dtype != torch.bfloat16 and _is_onednn_faster(x) and min(*x.shape, *y.shape) > 0:
        return onednn_product(x.t(), y.t(), None)
    return torch.mm(x.t(), y)


def _is_onednn_faster(x: Tensor) -> bool:
    if x.dtype == torch.float32:
        return HAS_ONEDNN_LINEAR and not PREFERS_MKL
    return HAS_ONEDNN_BFLOAT16 and x.dtype == torch.bfloat16


def _dense(matrix: Tensor) -> Tensor:
    """Return a copy if the matrix has gaps in memory: they make oneDNN a thousand times slower."""
    is_dense = matrix.is_contiguous() or matrix.t().is_contiguous()
    return matrix if is_dense else matrix.contiguous()


def sine_(x: Tensor) -> Tensor:
    """Replace x by its sine and return it."""
    if not _is_numpy_faster(x):
        return x.sin_()
    np.sin(x.numpy(), out=x.numpy())
    return x


def sine_and_cosine(x: Tensor, sine: Tensor, cosine: Tensor) -> None:
    """Write the sine and cosine of x into sine and cosine, which may have a lower precision."""
    if not _is_numpy_faster(x):
        torch.sin(x, out=sine)
        torch.cos(x, out=cosine)
    elif sine.dtype == x.dtype:
        np.sin(x.numpy(), out=sine.numpy())
        np.cos(x.numpy(), out=cosine.numpy())
    else:  # must equal the result of sine_
        sine.copy_(torch.from_numpy(np.sin(x.numpy())))
        cosine.copy_(torch.from_numpy(np.cos(x.numpy())))


def _is_numpy_faster(x: Tensor) -> bool:
    """Return whether NumPy's sine is faster: it uses one thread and supports no bfloat16."""
    return not PREFERS_MKL and x.dtype != torch.bfloat16 and torch.get_num_threads() <= 2
