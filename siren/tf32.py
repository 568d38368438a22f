"""Choose how CUDA's matrix units multiply float32 numbers.

TF32 rounds the operands of products and convolutions to the 10 bits of float16. PyTorch allows it
in convolutions unless told otherwise.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def float32_products(*, in_tf32: bool) -> Iterator[None]:
    """Let products and convolutions of float32 use TF32 on CUDA, or forbid it; also decorates.

    PyTorch has one setting for all threads; it is restored at the end.
    """
    settings: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = in_tf32
        yield
    finally:
        for setting, was_allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = was_allowed
