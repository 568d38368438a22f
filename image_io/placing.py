"""Squares of photos: where a face or an object is, and what a square shows."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

BORDER = 0.02  # of a photo's sides, whose median color is the ground's
PLAIN = 30  # grey levels: less different from the ground's color is ground
MATTE = (12, 36)  # grey levels of difference from the ground: transparent up to, opaque from
MAX_UNLIKE = 0.1  # share of the border that may differ from a plain ground
MIN_OBJECT = 0.005  # share of the photo that an object has at least
PART = 0.1  # of the largest part: a smaller part is not of the object


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """A square of a photo, in pixels of the upright photo.

    Attributes:
        x: of its centre, from the left.
        y: of its centre, from the top.
        side: its length.
        angle: degrees by which it is turned clockwise.
    """

    x: float
    y: float
    side: float
    angle: float = 0.0


class NotFound(ValueError):
    """A photo does not show what is looked for; the text says why."""


def centred(image: Image.Image) -> Square:
    """Return the largest centred square of a photo."""
    return Square(x=image.width / 2, y=image.height / 2, side=min(image.size))


def find_object(image: Image.Image, share: float) -> tuple[Image.Image, Square]:
    """Find the object on a plain or transparent ground.

    Args:
        image: RGB or RGBA.
        share: of the square's side that the object's longer side takes, in (0, 1].

    Returns:
        The photo with a transparent ground (RGBA), and the square around the object.

    Raises:
        NotFound: the ground is not plain, or there is no object on it or only a part of one.
    """
    cutout = _on_transparent(image.convert("RGB")) if is_opaque(image) else image
    parts, count = ndimage.label(np.asarray(cutout.getchannel("A")) > 127)
    sizes = ndimage.sum_labels(parts > 0, parts, range(1, count + 1))
    if count == 0 or max(sizes) < MIN_OBJECT * parts.size:
        raise NotFound("no object on the ground")
    boxes = ndimage.find_objects(parts)
    large = [box for box, size in zip(boxes, sizes, strict=True) if size >= PART * max(sizes)]
    (top, bottom), (left, right) = (
        (min(box[axis].start for box in large), max(box[axis].stop for box in large))
        for axis in (0, 1)
    )
    if left == 0 or top == 0 or right == image.width or bottom == image.height:
        raise NotFound("the object reaches the photo's border")
    side = max(right - left, bottom - top) / share
    return cutout, Square(x=(left + right) / 2, y=(top + bottom) / 2, side=side)


def is_opaque(image: Image.Image) -> bool:
    """Return whether a picture, RGB or RGBA, has no transparent part."""
    return image.mode != "RGBA" or image.getchannel("A").getextrema()[0] == 255


def _on_transparent(image: Image.Image) -> Image.Image:
    """Return an RGB photo of an object on a plain ground as RGBA; holes of the object stay."""
    colors = np.asarray(image).astype(np.int16)
    height, width = colors.shape[:2]
    rows, columns = (max(1, round(BORDER * side)) for side in (height, width))
    is_border = np.ones((height, width), bool)
    is_border[rows:-rows, columns:-columns] = False
    difference = np.abs(colors - np.median(colors[is_border], axis=0)).max(axis=-1)
    unlike = (difference[is_border] > PLAIN).mean()
    if unlike > MAX_UNLIKE:
        raise NotFound(f"the ground is not plain: {unlike:.0%} of the border has other colors")
    low, high = MATTE
    alpha = np.clip((difference - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    alpha[ndimage.binary_fill_holes(difference > PLAIN)] = 255
    cutout = image.copy()
    cutout.putalpha(Image.fromarray(alpha))
    return cutout


def cut(image: Image.Image, square: Square, size: int) -> Image.Image:
    """Return what a square shows at size x size pixels, antialiased.

    Outside of the photo an RGB picture repeats its border, and an RGBA one is transparent.
    """
    factor = max(1, int(square.side / (2 * size)))
    box = _around(image, square, factor)
    small = image.reduce(factor, box)
    x, y = (square.x - box[0]) / factor, (square.y - box[1]) / factor
    side = square.side / factor
    if image.mode == "RGB":
        left, top, right, bottom = _beyond(small, x, y, side)
        padding = ((top, bottom), (left, right), (0, 0))
        small = Image.fromarray(np.pad(np.asarray(small), padding, mode="edge"))
        x, y = x + left, y + top
    step = side / (2 * size)  # pixels of the photo per pixel of twice the size
    cos, sin = (step * f(math.radians(square.angle)) for f in (math.cos, math.sin))
    matrix = (cos, -sin, x - size * (cos - sin), sin, cos, y - size * (sin + cos))
    double = (2 * size, 2 * size)
    turned = small.transform(double, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return turned.reduce(2)


def placed(picture: Image.Image, square: Square, size: tuple[int, int]) -> Image.Image:
    """Return a transparent picture of size (W, H) with an RGBA one in a square of it.

    The inverse of cut. A picture with more pixels than its square is antialiased.
    """
    picture = picture.reduce(max(1, int(picture.width / square.side)))
    step = picture.width / square.side  # pixels of the picture per pixel of the result
    cos, sin = (step * f(math.radians(square.angle)) for f in (math.cos, math.sin))
    half = picture.width / 2
    matrix = (
        *(cos, sin, half - cos * square.x - sin * square.y),
        *(-sin, cos, half + sin * square.x - cos * square.y),
    )
    return picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _around(image: Image.Image, square: Square, factor: int) -> tuple[int, int, int, int]:
    """Return the part of a photo around a square, as a box that starts at multiples of factor."""
    half = square.side * math.sqrt(0.5) + 4 * factor  # of a square turned by 45 degrees, and more
    spans = []
    for at, length in ((square.x, image.width), (square.y, image.height)):
        first = min(max(0, int((at - half) // factor)), (length - 1) // factor) * factor
        spans.append((first, min(length, max(first + factor, math.ceil(at + half)))))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _beyond(image: Image.Image, x: float, y: float, side: float) -> tuple[int, int, int, int]:
    """How many pixels a square may reach beyond a photo: left, top, right, bottom."""
    half = math.ceil(side * math.sqrt(0.5)) + 2  # of a square turned by 45 degrees
    reaches = (half - x, half - y, x + half - image.width, y + half - image.height)
    left, top, right, bottom = (max(0, math.ceil(reach)) for reach in reaches)
    return left, top, right, bottom


def share_outside(image: Image.Image, square: Square) -> float:
    """Return the share of a square's area that lies outside of a photo, in [0, 1]."""
    turn = math.radians(square.angle)
    steps = (np.arange(64) + 0.5) / 64 - 0.5
    right, down = np.meshgrid(steps * square.side, steps * square.side)
    x = square.x + math.cos(turn) * right - math.sin(turn) * down
    y = square.y + math.sin(turn) * right + math.cos(turn) * down
    is_inside: NDArray[np.bool_] = (x >= 0) & (x < image.width) & (y >= 0) & (y < image.height)
    return 1 - float(is_inside.mean())
