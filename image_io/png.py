"""BOUNDARY: image tensors to picture files."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from system.files import replaced


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8, values outside cut; the colors are not stretched."""
    return ((images.detach() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Images (N, 3, H, W) as one of (3, rows * H, columns * W), rows first; missing ones black."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_zeros(rows * columns, channels, height, width)
    sheet[:count] = images
    sheet = sheet.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return sheet.reshape(channels, rows * height, columns * width)


def save_png(path: Path, image: Tensor) -> None:
    """Write a uint8 image (3, H, W) under path, whole or not at all; replaces an earlier one.

    Raises:
        OSError: it cannot be written; filename is path where the system says why.
    """
    with replaced(path) as file:
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
