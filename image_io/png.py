"""Arrange image tensors in grids and labelled sheets, and write them as png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from system.files import replaced

FONT_SIZE, GAP = 13, 6  # pixels, of labelled sheets
BAR_FULL, BAR_EMPTY = (43, 138, 62), (90, 90, 90)
INK, PAPER = (0, 0, 0), (255, 255, 255)
MAX_LABEL = 24  # letters; a longer label keeps its beginning


def to_uint8(images: Tensor) -> Tensor:
    """Convert images in [-1, 1] to uint8; values outside are cut, the colors are not stretched."""
    return ((images.detach() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def grid(images: Tensor, columns: int) -> Tensor:
    """Join images (N, 3, H, W) to one (3, rows * H, columns * W), rows first; the rest is black."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_zeros(rows * columns, channels, height, width)
    sheet[:count] = images
    sheet = sheet.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return sheet.reshape(channels, rows * height, columns * width)


def contact_sheet(pictures: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Lay uint8 pictures (rows * columns, 3, H, W), rows first, on a labelled sheet (3, H', W').

    Labels stand to the left of the rows and above the columns.
    """
    _, _, height, width = pictures.shape
    font = ImageFont.load_default(FONT_SIZE)
    names = [name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…" for name in rows]
    left = 2 * GAP + round(max(font.getlength(name) for name in names))
    top = 2 * GAP + FONT_SIZE
    size = (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, name in enumerate(columns):
        middle = left + j * (width + GAP) + width / 2
        draw.text((middle, top / 2), name, INK, font, anchor="mm")
    for i, name in enumerate(names):
        y = top + i * (height + GAP)
        draw.text((left - GAP, y + height / 2), name, INK, font, anchor="rm")
        for j in range(len(columns)):
            picture = Image.fromarray(to_array(pictures[i * len(columns) + j]))
            sheet.paste(picture, (left + j * (width + GAP), y))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)


def bar(width: int, share: float, text: str) -> Tensor:
    """Draw a bar (3, H, width), uint8, of which share in [0, 1] is filled from the left.

    text stands in it where it fits.
    """
    height = max(4, width // 14)
    strip = Image.new("RGB", (width, height), BAR_EMPTY)
    strip.paste(BAR_FULL, (0, 0, round(share * width), height))
    font = ImageFont.load_default(0.7 * height)
    if font.getlength(text) < 0.9 * width and height >= FONT_SIZE:
        draw = ImageDraw.Draw(strip)
        draw.text((width / 2, height / 2), text, PAPER, font, anchor="mm")
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1)


def to_array(image: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Convert a uint8 image (3, H, W) to an array (H, W, 3)."""
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).contiguous().numpy()


def save_png(path: Path, image: Tensor) -> None:
    """Write a uint8 image (3, H, W) under path, whole or not at all; replaces an earlier one.

    Raises:
        OSError: it cannot be written; filename is path where the system says why.
    """
    with replaced(path) as file:
        Image.fromarray(to_array(image)).save(file, format="PNG")
