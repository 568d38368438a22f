"""Decode picture files: the one place where bytes of a file become pixels.

Legend: H = W = image_size.
"""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from image_io.color import to_srgb
from image_io.files import Skipped, printable
from image_io.formats import formats
from system import machine
from system.errors import UsageError, nearest_path

VERSION = 4  # part of the keys of caches; raise it when the same files come to give other pixels
JPEG_FORMATS = ("JPEG", "MPO")  # MPO: a jpg of a phone with a second picture behind the first
MAX_PIXELS = 2**26  # a picture that claims more is refused before memory is spent on it
MAX_JPEG_PIXELS = 2**28  # of a jpg that is not progressive: it is decoded at half its size
LARGE_PIXELS = 2**24  # pictures above this are decoded one at a time, to bound the memory
CELEBA_RESIZE, CELEBA_CROP = 320, 256  # shorter side, then centred square (published transform)
PICTURES_PER_TASK = 16
MAX_REASON = 200  # characters of an error's text that are kept

Crop = Literal["none", "center", "celeba"] | int
Resize = Literal["antialias", "points", "nearest"]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Pixels = NDArray[np.uint8]
OpenFile = Callable[[str], IO[bytes]]  # name to the file's bytes; called from many threads

_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
POINTS_FROM = 4  # "points" are taken from a picture of so many times the size
_large_picture = threading.Lock()
Image.MAX_IMAGE_PIXELS = MAX_JPEG_PIXELS  # of all kinds, which Pillow applies
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB of text or ICC profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """Crop and resize filter that turn a picture into image_size x image_size pixels.

    crop "none" squeezes the whole picture into the square; "center" takes the largest centred
    square; a number takes a centred square of that many source pixels (fewer where the picture is
    smaller); "celeba" takes 0.8 of the shorter side. resize "antialias" averages over the source
    pixels. "points" takes the colors at the points that rays through image_size x image_size pixels
    meet, the outermost in the middle of the outermost source pixels: like a render, which has one
    ray per pixel, the image has jagged edges. "nearest" picks pixels as the published code does for
    each crop. from_right counts the columns of crop "celeba" and resize "nearest" from the right,
    for a picture that is mirrored afterwards: the published code mirrors it before.
    """

    image_size: int
    crop: Crop
    resize: Resize
    from_right: bool = False


def decode_all(
    open_file: OpenFile,
    names: Sequence[str],
    framing: Framing,
    *,
    small: list[str] | None = None,
) -> Iterator[list[Pixels | Skipped]]:
    """Decode pictures in order, a few at a time, on all cores; transparent parts become white.

    Threads, not processes: Pillow decodes without the interpreter's lock, and a thread needs
    neither a fresh import of torch nor a guarded main module.

    small takes the names of pictures that have fewer pixels than the framing asks for.
    """
    starts = range(0, len(names), PICTURES_PER_TASK)
    tasks = (names[start : start + PICTURES_PER_TASK] for start in starts)
    work = functools.partial(_decode_some, open_file, framing=framing, small=small)
    with _quiet_pillow():
        yield from machine.map_on_cores(work, tasks)


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, as damaged files are reported here; oversized ones are errors."""
    with warnings.catch_warnings():  # acts on all threads
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decode_some(
    open_file: OpenFile, names: Sequence[str], framing: Framing, small: list[str] | None
) -> list[Pixels | Skipped]:
    results: list[Pixels | Skipped] = []
    for name in names:
        try:
            with open_file(name) as stream:
                image, is_small = _decode(stream, framing)
            results.append(_pixels(image))
            if is_small and small is not None:
                small.append(name)
        except Exception as error:  # damaged files make Pillow raise almost anything
            results.append(Skipped(printable(name), _reason(error)))
    return results


def _reason(error: Exception) -> str:
    """Say in one line why a picture cannot be read."""
    if isinstance(error, UnidentifiedImageError):  # its own text holds a memory address
        return "not a picture of a known format"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return str(error).partition(", could be")[0]  # it is only a large picture
    return printable(str(error) or type(error).__name__)[:MAX_REASON]


def decode_picture(stream: IO[bytes], framing: Framing | None = None) -> Pixels:
    """Decode a picture to pixels (3, H, W): upright, sRGB, transparent parts white.

    stream is at the start of the file; animations give their first frame. framing None returns the
    whole picture.

    Raises:
        Exception: whatever Pillow says of a damaged file, or that the picture is too large.
    """
    return _pixels(over_white(_decode(stream, framing)[0]))


def read_picture(path: Path) -> Image.Image:
    """Decode a whole picture file: upright, sRGB, RGBA where it has transparency.

    Raises:
        UsageError: the file is missing, empty, damaged, too large or no such picture.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such picture.{nearest_path(path)}")
    try:
        with path.open("rb") as stream, _quiet_pillow():
            return _decode(stream, None)[0]
    except Exception as error:  # damaged files make Pillow raise almost anything
        reason = _reason(error) if path.stat().st_size else "empty file"
        raise UsageError(f"{path}: cannot be read: {reason}") from error


def read_photo(stream: IO[bytes], longer_side: int | None = None) -> Image.Image:
    """Decode a whole photo: upright, sRGB, RGBA where it has transparency.

    Args:
        stream: the file's bytes, at the start. Animations give their first frame.
        longer_side: a larger jpg may be decoded at a half, a quarter or an eighth of its size, as
            long as its longer side keeps this many pixels; None keeps its size.

    Raises:
        ValueError: the file is damaged, too large or no picture; the text fits one line.
    """
    try:
        with _quiet_pillow():
            return _decode(stream, None, longer_side)[0]
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise ValueError(_reason(error)) from error


def picture_head(stream: IO[bytes]) -> tuple[str, str]:
    """Return size and kind of a picture, such as ("178 x 218", "JPEG RGB"), without decoding it."""
    image = Image.open(stream, formats=formats())
    return f"{image.width} x {image.height}", f"{image.format} {image.mode}"


def _decode(
    stream: IO[bytes], framing: Framing | None, longer_side: int | None = None
) -> tuple[Image.Image, bool]:
    """Decode an upright sRGB picture; return whether framing asks for more pixels than it has.

    Without a framing: RGB or RGBA of the file's own size, or half of it for a jpg of more than
    MAX_PIXELS. With one: its square, in RGB over white.
    """
    image = _opened(stream)
    is_small, box = False, (0.0, 0.0, float(image.width), float(image.height))
    if framing is not None:
        box = left, top, right, bottom = crop_box(*image.size, framing.crop)
        wanted = max(framing.image_size, framing.crop if isinstance(framing.crop, int) else 0)
        is_small = min(right - left, bottom - top) < wanted
    scale = _shrink_while_decoding(image, framing, longer_side)
    is_large = image.width * image.height > LARGE_PIXELS
    with _large_picture if is_large else contextlib.nullcontext():
        image.load()
        picture = to_srgb(image)
        if framing is not None:
            left, top, right, bottom = (side * scale for side in box)
            picture = _resized(over_white(picture), (left, top, right, bottom), framing)
    orientation = _orientation(image)
    if orientation in _TURNS:  # last, where it costs least; centred crops do not mind
        picture = picture.transpose(_TURNS[orientation])
    return picture, is_small


def _opened(stream: IO[bytes]) -> Image.Image:
    """Read the head of a picture and check its size; a PNG's checksums too.

    Raises:
        ValueError: it has too many pixels.
    """
    image = Image.open(stream, formats=formats())
    is_reducible = image.format in JPEG_FORMATS and not image.info.get("progressive")
    limit = MAX_JPEG_PIXELS if is_reducible else MAX_PIXELS
    if image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {limit} in all")
    if image.format == "PNG":  # decoding alone would not check the sums of the pixel data
        image.verify()
        stream.seek(0)
        image = Image.open(stream, formats=formats())
    return image


def _shrink_while_decoding(
    image: Image.Image, framing: Framing | None, longer_side: int | None
) -> float:
    """Have a jpg decoded at 1/2, 1/4 or 1/8 of its size, where that loses nothing that is needed.

    It takes a fraction of the time. It is done where the antialiasing filter still has to shrink
    the result by 2 or more, so that the filter decides the look, and above MAX_PIXELS.

    Returns:
        Decoded pixels per source pixel, 1 where nothing is shrunk.
    """
    width, height = image.size
    if image.format not in JPEG_FORMATS:
        return 1.0
    least_width, least_height = width, height
    if longer_side is not None:
        share = min(1.0, longer_side / max(width, height))
        least_width, least_height = int(share * width), int(share * height)
    if framing is not None and framing.resize != "nearest":
        left, top, right, bottom = crop_box(width, height, framing.crop)
        enough = 2 * framing.image_size * (POINTS_FROM if framing.resize == "points" else 1)
        least_width = int(enough * width / (right - left)) + 1
        least_height = int(enough * height / (bottom - top)) + 1
    if width * height > MAX_PIXELS:
        least_width, least_height = min(least_width, width // 2), min(least_height, height // 2)
    drafted = image.draft(image.mode, (least_width, least_height))
    return 1.0 if drafted is None else drafted[1][2] / width


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a decoded picture, 1 to 8; 1 where it says nothing sensible."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # Pillow's EXIF reader fails in many ways; the pixels are still good
        return 1


def over_white(image: Image.Image) -> Image.Image:
    """Put an RGBA picture on white; an RGB one stays."""
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _pixels(image: Image.Image) -> Pixels:
    """Return the pixels (3, H, W) of an RGB picture."""
    return np.asarray(image).transpose(2, 0, 1)


def crop_box(width: int, height: int, crop: Crop) -> Box:
    """Return the part of a picture that crop keeps, in source pixels."""
    if crop == "none":
        return 0, 0, width, height
    if crop == "celeba":
        side = min(width, height) * CELEBA_CROP / CELEBA_RESIZE
        left, top = (width - side) / 2, (height - side) / 2
    else:
        side = min(width, height, crop) if isinstance(crop, int) else min(width, height)
        left, top = round((width - side) / 2), round((height - side) / 2)  # no resampling at 1:1
    return left, top, left + side, top + side


def _resized(image: Image.Image, box: Box, framing: Framing) -> Image.Image:
    """Resize the part of an image inside box to the size and with the filter of framing."""
    size = (framing.image_size, framing.image_size)
    if framing.resize == "antialias":
        return image.resize(size, Image.Resampling.BICUBIC, box=box)
    if framing.resize == "points":
        large = image.resize((POINTS_FROM * framing.image_size,) * 2, Image.Resampling.BICUBIC, box)
        taken = np.linspace(0, large.width - 1, framing.image_size).round().astype(np.int64)
        return Image.fromarray(np.asarray(large)[taken[:, None], taken])
    if framing.crop == "celeba":
        return _published_celeba(image, framing)
    return image.resize(size, Image.Resampling.NEAREST, box=box)


def _published_celeba(image: Image.Image, framing: Framing) -> Image.Image:
    """Enlarge and crop an image as published, then take pixels of the result at even distances.

    The published code shrinks a tensor, so 64 px are the rows and columns 0, 4, 8, ... of 256.
    Pillow's nearest neighbor would take 2, 6, 10, ...
    """
    shorter = min(image.size)
    enlarged = (image.width * CELEBA_RESIZE // shorter, image.height * CELEBA_RESIZE // shorter)
    x, y = image.width / enlarged[0], image.height / enlarged[1]
    left, top, right, bottom = crop_box(*enlarged, CELEBA_CROP)
    part = (left * x, top * y, right * x, bottom * y)
    square = image.resize((CELEBA_CROP,) * 2, Image.Resampling.BILINEAR, box=part)
    rows = rows_taken(framing.image_size)
    columns = CELEBA_CROP - 1 - rows[::-1] if framing.from_right else rows
    return Image.fromarray(np.asarray(square)[rows[:, None], columns])


def rows_taken(image_size: int) -> NDArray[np.int64]:
    """Return which of CELEBA_CROP rows (and columns) remain in an image of image_size."""
    return np.arange(image_size) * CELEBA_CROP // image_size
