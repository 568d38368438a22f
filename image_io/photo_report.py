"""What became of photos that were prepared: a csv, and a sheet of photos and pictures."""

import csv
import io
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from image_io import png, preparing
from image_io.decoding import over_white
from image_io.placing import Square
from system.files import write_file

ROWS, DROPPED_ROWS, PAIRS_PER_ROW, SIDE = 8, 3, 3, 160  # of the sheet; SIDE in pixels
GREY = (128, 128, 128)
SMALLEST_SIZE = 32  # pixels per side of a picture that is worth training with
COLUMNS = ("photo", "result", "reason", "picture", "x", "y", "side", "angle", "blur")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one face or object of a photo, or of a photo as a whole.

    Attributes:
        photo: its name.
        reason: why it is dropped; empty if it is used.
        square: the part of the photo, if one was found.
        blur: of the picture, as photo_checks.blur measures it.
        picture: the part of the photo that was cut out.
        before: the photo, small, with the square drawn on it.
    """

    photo: str
    reason: str = ""
    square: Square | None = None
    blur: float | None = None
    picture: Image.Image | None = None
    before: Image.Image | None = None


@dataclass
class Report:
    """Rows of the csv, reasons, and a random choice of pairs for the sheet."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    pairs: list[tuple[Image.Image, Image.Image]] = field(default_factory=list)
    dropped: list[Image.Image] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    used: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, outcome: Outcome, name: str) -> None:
        """Add an outcome; name is that of its picture in the .zip, empty if it is dropped."""
        square = outcome.square
        place = ("",) * 4 if square is None else (square.x, square.y, square.side, square.angle)
        figures = [f"{value:.2f}" if value != "" else "" for value in place]
        figures.append("" if outcome.blur is None else f"{outcome.blur:.2f}")
        result = "used" if name else "dropped"
        self.rows.append((outcome.photo, result, outcome.reason, name, *figures))
        if not name:
            reason = outcome.reason.partition(":")[0]
            self.reasons[reason] += 1
            if reason == "small" and square is not None:
                self.small.append(square.side)
            if outcome.before is not None:
                shown = _with_text(outcome.before, reason)
                self._keep(
                    self.dropped, shown, self.reasons.total(), DROPPED_ROWS * 2 * PAIRS_PER_ROW
                )
            return
        self.used += 1
        assert outcome.before is not None
        assert outcome.picture is not None
        pair = outcome.before, outcome.picture
        self._keep(self.pairs, pair, self.used, ROWS * PAIRS_PER_ROW)

    def _keep(self, kept: list[T], new: T, count: int, room: int) -> None:
        """Put new, the last of count, among those that are kept: each is as likely to be there."""
        slot = self.rng.randrange(count)
        if len(kept) < room:
            kept.append(new)
        elif slot < room:
            kept[slot] = new

    def summary(self) -> str:
        """Say how many pictures there are, and what was dropped for which reason."""
        dropped = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.most_common())
        return f"{self.used} pictures; dropped: {dropped or 'none'}"

    def advice(self, size: int) -> str:
        """Say with which smaller size most of what is too small for this one is used, or ""."""
        while (size := size // 2) >= SMALLEST_SIZE:
            count = sum(side >= preparing.MIN_SHARE * size for side in self.small)
            if count > len(self.small) / 2:
                return f"with --size {size}, {count} of the small ones are used"
        return ""


def outlined(photo: Image.Image, square: Square | None) -> Image.Image:
    """Return a small photo on grey with the square, if there is one, drawn on it."""
    few = photo.reduce(max(1, max(photo.size) // (3 * SIDE)))  # pixels: it is only looked at
    small = ImageOps.contain(over_white(few), (SIDE, SIDE))
    if square is None:
        return ImageOps.pad(small, (SIDE, SIDE), color=GREY)
    scale = small.width / photo.width
    turn, half = np.radians(square.angle), square.side / 2
    corners = []
    for right, down in ((-half, -half), (half, -half), (half, half), (-half, half)):
        x = square.x + np.cos(turn) * right - np.sin(turn) * down
        y = square.y + np.sin(turn) * right + np.cos(turn) * down
        corners.append((float(x * scale), float(y * scale)))
    ImageDraw.Draw(small).line([*corners, corners[0], corners[1]], fill=(255, 0, 120), width=2)
    return ImageOps.pad(small, (SIDE, SIDE), color=GREY)


def _with_text(picture: Image.Image, text: str) -> Image.Image:
    """Return a picture of side SIDE with a text at its lower border."""
    shown = picture.copy()
    draw = ImageDraw.Draw(shown)
    draw.rectangle((0, SIDE - 16, SIDE, SIDE), fill=(255, 255, 255))
    draw.text((SIDE / 2, SIDE - 8), text[:28], (0, 0, 0), ImageFont.load_default(11), anchor="mm")
    return shown


def sheet(report: Report) -> torch.Tensor:
    """Arrange pairs of photo and picture, then dropped photos; returns uint8 (3, H, W)."""
    side = (SIDE, SIDE)
    pairs = [(before, over_white(after).resize(side)) for before, after in report.pairs]
    count = min(PAIRS_PER_ROW, len(pairs))
    pictures, rows = [], []
    for label, part in (("used", list(chain(*pairs))), ("dropped", report.dropped)):
        full = -(-len(part) // (2 * count))
        rows += [label] * full
        pictures += [np.asarray(picture) for picture in part]
        pictures += [np.full((SIDE, SIDE, 3), 255, np.uint8)] * (2 * count * full - len(part))
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return png.contact_sheet(stacked, rows, ["photo", "picture"] * count)


def write_csv(path: Path, report: Report) -> None:
    """Write a row for each face or object that was found, and for each photo without one."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([COLUMNS, *report.rows])
    write_file(path, text.getvalue().encode())


def is_own_csv(path: Path) -> bool:
    """Return whether write_csv has written a file."""
    return path.read_bytes().startswith(",".join(COLUMNS).encode())
