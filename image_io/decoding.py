"""BOUNDARY: picture files become squares of pixels.

Legend: H = W = image_size.
"""

import contextlib
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from image_io.files import Skipped, printable
from system import machine

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 2**26  # a picture that claims more is refused before memory is spent on it
LARGE_PIXELS = 2**24  # pictures above this are decoded one at a time, to bound the memory
CELEBA_RESIZE, CELEBA_CROP = 320, 256  # shorter side, then centred square (published transform)
PICTURES_PER_TASK = 16
MAX_REASON = 200  # characters of an error's text that are kept

Crop = Literal["none", "center", "celeba"] | int
Resize = Literal["antialias", "nearest"]
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
_large_picture = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """Which part of a picture is used, and how it becomes image_size x image_size pixels.

    crop "none" squeezes the whole picture into the square; "center" takes the largest centred
    square; a number takes a centred square of that many source pixels (fewer where the picture is
    smaller); "celeba" takes 0.8 of the shorter side. resize "antialias" averages over the source
    pixels; "nearest" picks one of them, as the published code does.
    """

    image_size: int
    crop: Crop
    resize: Resize


def decode_all(
    open_file: OpenFile,
    names: Sequence[str],
    framing: Framing,
    *,
    small: list[str] | None = None,
) -> Iterator[list[Pixels | Skipped]]:
    """All pictures in order, a few at a time, on all cores.

    small takes the names of those that have fewer pixels than the framing asks for.

    Threads, not processes: Pillow decodes outside of the interpreter's lock, and a thread needs
    neither a fresh import of torch nor a guarded main module.
    """
    starts = range(0, len(names), PICTURES_PER_TASK)
    pending: deque[Future[list[Pixels | Skipped]]] = deque()
    with _quiet_pillow(), ThreadPoolExecutor(machine.num_cores()) as pool:
        for start in starts:
            some = names[start : start + PICTURES_PER_TASK]
            pending.append(pool.submit(_decode_some, open_file, some, framing, small))
            if len(pending) > 4 * machine.num_cores():  # bounds the memory where the disk is slow
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextlib.contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Damaged files, which are reported in one place, cause no warnings; oversized ones fail."""
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
                pixels, is_small = _decode(stream, framing)
            results.append(pixels)
            if is_small and small is not None:
                small.append(name)
        except UnidentifiedImageError:  # its text holds a memory address
            results.append(Skipped(printable(name), "not a jpg, png or webp picture"))
        except Exception as error:  # damaged files make Pillow raise almost anything
            reason = printable(str(error) or type(error).__name__)[:MAX_REASON]
            results.append(Skipped(printable(name), reason))
    return results


def decode_picture(stream: IO[bytes], framing: Framing) -> Pixels:
    """Pixels (3, H, W) of one jpg, png or webp: upright, RGB, transparent parts white.

    Animations give their first frame.

    Args:
        stream: the file's bytes, at the start.
        framing: which part of the picture, and H = W.

    Raises:
        Exception: whatever Pillow says of a damaged file, or that the picture is too large.
    """
    return _decode(stream, framing)[0]


def _decode(stream: IO[bytes], framing: Framing) -> tuple[Pixels, bool]:
    """As decode_picture, and whether the picture has fewer pixels than the framing asks for."""
    image = Image.open(stream, formats=FORMATS)
    num_pixels = image.width * image.height
    if num_pixels > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS} in all")
    if image.format == "PNG":  # decoding alone would not check the sums of the pixel data
        image.verify()
        stream.seek(0)
        image = Image.open(stream, formats=FORMATS)
    left, top, right, bottom = crop_box(*image.size, framing.crop)
    wanted = max(framing.image_size, framing.crop if isinstance(framing.crop, int) else 0)
    is_small = min(right - left, bottom - top) < wanted
    scale = _shrink_while_decoding(image, framing)
    box = (left * scale, top * scale, right * scale, bottom * scale)
    is_large = image.width * image.height > LARGE_PIXELS
    with _large_picture if is_large else contextlib.nullcontext():
        image.load()
        square = _resized(_to_rgb(image), box, framing)
    orientation = _orientation(image)
    if orientation in _TURNS:  # last, where it costs least; centred crops do not mind
        square = square.transpose(_TURNS[orientation])
    pixels: Pixels = np.asarray(square).transpose(2, 0, 1)
    return pixels, is_small


def _shrink_while_decoding(image: Image.Image, framing: Framing) -> float:
    """Decoded pixels per source pixel: 1, or less for a jpg that is far larger than needed.

    A jpg decodes at 1/2, 1/4 or 1/8 size in a fraction of the time. It may where the antialiasing
    filter still has to shrink the result by 2 or more, so that the filter decides the look.
    """
    if framing.resize == "nearest" or image.format not in ("JPEG", "MPO"):
        return 1.0
    width, height = image.size
    left, top, right, bottom = crop_box(width, height, framing.crop)
    least_width = 2 * framing.image_size * width / (right - left)
    least_height = 2 * framing.image_size * height / (bottom - top)
    drafted = image.draft(image.mode, (int(least_width) + 1, int(least_height) + 1))
    return 1.0 if drafted is None else drafted[1][2] / width


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a decoded picture, 1 to 8; 1 where it says nothing sensible."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # Pillow's EXIF reader fails in many ways; the pixels are still good
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB over white."""
    if image.mode.startswith("I"):  # 16 bit grey, which Pillow itself would cut off at 255
        values = np.asarray(image).astype(np.int32).clip(0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def crop_box(width: int, height: int, crop: Crop) -> Box:
    """What crop keeps of a picture, in its pixels."""
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
    """The part of the picture inside box, at the size and with the filter of framing."""
    size = (framing.image_size, framing.image_size)
    if framing.resize == "antialias":
        return image.resize(size, Image.Resampling.BICUBIC, box=box)
    if framing.crop == "celeba":  # published: enlarged first, then every so many-th pixel
        shorter = min(image.size)
        enlarged = (image.width * CELEBA_RESIZE // shorter, image.height * CELEBA_RESIZE // shorter)
        x, y = image.width / enlarged[0], image.height / enlarged[1]
        left, top, right, bottom = crop_box(*enlarged, CELEBA_CROP)
        part = (left * x, top * y, right * x, bottom * y)
        image = image.resize((CELEBA_CROP,) * 2, Image.Resampling.BILINEAR, box=part)
        box = (0, 0, CELEBA_CROP, CELEBA_CROP)
    return image.resize(size, Image.Resampling.NEAREST, box=box)
