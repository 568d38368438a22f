"""Describe the pictures of a dataset: sizes and kinds of the files, and a sheet of the first."""

import contextlib
import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from image_io import png
from image_io.decoding import Pixels, picture_head
from image_io.files import Listing, opened

MAX_OPENED = 256  # files whose heads are read
MAX_NAMED = 6  # sizes, and kinds, that a line names
NUM_SHOWN, COLUMNS = 64, 8  # pictures on the sheet
MIN_WIDTH = 512  # pixels of the sheet; small pictures are enlarged, pixel by pixel
LETTER = 7  # pixels, the mean width of a letter


def survey(listing: Listing) -> list[str]:
    """Return lines about the stored sizes and the kinds of the pictures' files.

    At most MAX_OPENED files are looked at, evenly spread.
    """
    if not listing.stamps:  # built-in pictures
        return []
    names = listing.names[:: -(-listing.count // MAX_OPENED)]
    sizes, kinds = Counter[str](), Counter[str]()
    with opened(listing) as open_file:
        for name in names:
            with contextlib.suppress(Exception), open_file(name) as file:  # reported elsewhere
                size, kind = picture_head(file)
                sizes[size] += 1
                kinds[kind] += 1
    looked_at = f"{len(names)} files" if len(names) < listing.count else "files"
    counted = (("sizes", sizes), ("kinds", kinds))
    return [f"{what} of {looked_at}: {_counts(found)}" for what, found in counted if found]


def _counts(found: Counter[str]) -> str:
    named = ", ".join(f"{name} ({count})" for name, count in found.most_common(MAX_NAMED))
    return named + (f" and {len(found) - MAX_NAMED} others" if len(found) > MAX_NAMED else "")


def sheet(pixels: Pixels, lines: Sequence[str]) -> Tensor:
    """Return a sheet (3, H', W') of the first pictures of (N, 3, H, W), with text below them."""
    shown = png.grid(torch.from_numpy(np.array(pixels[:NUM_SHOWN])), COLUMNS)
    times = max(1, MIN_WIDTH // shown.shape[2])
    shown = shown.repeat_interleave(times, 1).repeat_interleave(times, 2)
    width = max(shown.shape[2], MIN_WIDTH)
    text = "\n".join(part for line in lines for part in textwrap.wrap(line, width // LETTER))
    font = ImageFont.load_default(png.FONT_SIZE)
    top = shown.shape[1] + png.GAP
    bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, top), text, font)[3]
    paper = Image.new("RGB", (width, int(bottom) + png.GAP), png.PAPER)
    paper.paste(Image.fromarray(png.to_array(shown)), (0, 0))
    ImageDraw.Draw(paper).multiline_text((png.GAP, top), text, png.INK, font)
    return torch.from_numpy(np.array(paper)).permute(2, 0, 1)
