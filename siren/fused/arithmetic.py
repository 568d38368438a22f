"""The operations that are almost all of the field, as fast as the processor gives them.

PyTorch carries two libraries of products. Measured on one core, 2,048 points of 256 features in
float32: on an AMD processor MKL does 106 GFLOP/s and oneDNN 220; on an Intel one with AMX they do
159 and 144, and MKL is faster still where an operand is transposed. Its sine is slow on the AMD one
too, 1.0 ns where NumPy's takes 0.4 (at an error of 7e-8, not 4e-8), and 0.5 on the Intel one where
NumPy's takes 0.6. Products in bfloat16 are oneDNN's everywhere.
"""

import numpy as np
import torch
from torch import Tensor


def _has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _has_onednn_bfloat16() -> bool:
    is_there = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return HAS_ONEDNN_LINEAR and is_there is not None and bool(is_there())


def _is_intel_with_amx() -> bool:
    """Whether MKL, PyTorch's default, is at home here: the processors with AMX are Intel's."""
    return torch.backends.mkl.is_available() and torch.cpu._is_amx_tile_supported()


HAS_ONEDNN_LINEAR = _has_onednn_linear()
HAS_ONEDNN_BFLOAT16 = _has_onednn_bfloat16()  # else PyTorch has one of its own
PREFERS_MKL = _is_intel_with_amx()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Affine map x weight^T + bias: (n, out) of x (n, in), weight (out, in), bias (out,), (n, out).

    Operands in bfloat16 are added up in float32 and, with a bias (out,), which is float32, rounded
    to bfloat16, which is returned; a bias (n, out) is added to what was rounded. Else all are
    float32 or all float64.
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
    """The same by oneDNN, which knows no float64 and no empty matrices."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(
        _dense(x), _dense(weight), bias, "none", [], ""
    )
    return result


def product_times(x: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """Product x weight^T times factor (n, out), element by element."""
    if _is_onednn_faster(x) and min(*x.shape, len(weight)) > 0:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            _dense(x), factor, _dense(weight), None, "mul"
        )
        return result
    return torch.mm(x, weight.t()).mul_(factor)


def outer_product(x: Tensor, y: Tensor) -> Tensor:
    """Product x^T y (a, b) of x (n, a) and y (n, b): outer products of rows, added up."""
    if x.dtype != torch.bfloat16 and _is_onednn_faster(x) and min(*x.shape, *y.shape) > 0:
        return onednn_product(x.t(), y.t(), None)
    return torch.mm(x.t(), y)


def _is_onednn_faster(x: Tensor) -> bool:
    if x.dtype == torch.float32:
        return HAS_ONEDNN_LINEAR and not PREFERS_MKL
    return HAS_ONEDNN_BFLOAT16 and x.dtype == torch.bfloat16


def _dense(matrix: Tensor) -> Tensor:
    """A matrix without holes between rows or columns: oneDNN is a thousand times slower on them."""
    is_dense = matrix.is_contiguous() or matrix.t().is_contiguous()
    return matrix if is_dense else matrix.contiguous()


def sine_(x: Tensor) -> Tensor:
    """Input x, replaced by its sine."""
    if not _is_numpy_faster(x):
        return x.sin_()
    np.sin(x.numpy(), out=x.numpy())
    return x


def sine_and_cosine(x: Tensor, sine: Tensor, cosine: Tensor) -> None:
    """Fill sine and cosine with those of x; they may be of a lesser precision."""
    if not _is_numpy_faster(x):
        torch.sin(x, out=sine)
        torch.cos(x, out=cosine)
    elif sine.dtype == x.dtype:
        np.sin(x.numpy(), out=sine.numpy())
        np.cos(x.numpy(), out=cosine.numpy())
    else:  # the sine that sine_ gives
        sine.copy_(torch.from_numpy(np.sin(x.numpy())))
        cosine.copy_(torch.from_numpy(np.cos(x.numpy())))


def _is_numpy_faster(x: Tensor) -> bool:
    """NumPy knows no bfloat16 and uses one thread: beside three of PyTorch's it is the slower."""
    return not PREFERS_MKL and x.dtype != torch.bfloat16 and torch.get_num_threads() <= 2
