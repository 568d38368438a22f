"""BOUNDARY: many pictures on one labelled sheet."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FONT_SIZE, GAP = 13, 6  # pixels
INK, PAPER = (0, 0, 0), (255, 255, 255)
MAX_LABEL = 24  # letters; a longer label keeps its beginning


def contact_sheet(pictures: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """A uint8 sheet (3, H', W') of uint8 pictures (rows * columns, 3, H, W), rows first.

    The labels stand to the left of the rows and above the columns.
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
            picture = pictures[i * len(columns) + j].permute(1, 2, 0).contiguous().numpy()
            sheet.paste(Image.fromarray(picture), (left + j * (width + GAP), y))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)
