"""Choose how CUDA's matrix units multiply float32 numbers.

TF32 rounds the operands of products and convolutions to the 10 bits of float16. PyTorch allows it
in convolutions unless told otherwise.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


@contextlib.contextmanager
def float32_products(*, in_tf32: bool) -> Iterator[None]:
    """Let products and convolutions of float32 use TF32 on CUDA, or forbid it; also decorates.

    PyTorch has one setting for all threads; it is restored at the end.
    """
    before = [kind.fp32_precision for kind in _kinds()]
    try:
        _set(["tf32" if in_tf32 else "ieee"] * len(before))
        yield
    finally:
        _set(before)


def _kinds() -> tuple[Any, Any, Any]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _set(precisions: Sequence[str]) -> None:
    """Set the precision of each of _kinds, by its old name (allow_tf32) and by its new one.

    Where they differ, reading the old one fails.
    """
    settings: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for setting, precision in zip(settings, precisions[:2], strict=True):
        setting.allow_tf32 = precision == "tf32"
    for kind, precision in zip(_kinds(), precisions, strict=True):
        kind.fp32_precision = precision
