"""BOUNDARY: one photo of a person's, with what is known of where the object is in it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from generators.inversion import Photo
from image_io.decoding import FORMATS, MAX_PIXELS, Crop, crop_box
from system.errors import UsageError, nearest_path


def open_photo(
    path: Path,
    size: int,
    *,
    crop: Crop,
    mask: Path | None = None,
    background: float | None,
) -> Photo:
    """A photo at size x size pixels, upright.

    Its alpha channel, or a grey picture mask (white is the object), says where the object is.

    Args:
        path: jpg, png or webp.
        size: pixels per side.
        crop: which part of it.
        mask: picture of the photo's own size; takes the place of its alpha channel.
        background: what the generator renders behind objects, in [-1, 1]: the photo is put on it
            and its alpha is to be matched. None where there is none: what is not the object then
            does not count.

    Raises:
        UsageError: a file cannot be read, or the mask has another size.
    """
    image = _opened(path).convert("RGBA")
    if mask is not None:
        plane = _opened(mask).convert("L")
        if plane.size != image.size:
            raise UsageError(f"--mask {mask}: is {plane.size}, the photo is {image.size} pixels")
        image.putalpha(plane)
    box = crop_box(*image.size, crop)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    rgb, alpha = pixels[:3] * 2 - 1, pixels[3]
    everywhere = torch.ones_like(alpha)
    if bool((alpha == 1).all()):
        return Photo(rgb, everywhere)
    if background is None:
        return Photo(rgb, _not_empty(alpha, path))
    return Photo(rgb * alpha + background * (1 - alpha), everywhere, _not_empty(alpha, path))


def _not_empty(alpha: Tensor, path: Path) -> Tensor:
    if float(alpha.max()) == 0:
        raise UsageError(f"{path}: its alpha or mask is empty, there is nothing to fit")
    return alpha


def _opened(path: Path) -> Image.Image:
    """A whole picture, turned upright."""
    if not path.is_file():
        raise UsageError(f"{path}: no such picture.{nearest_path(path)}")
    try:
        image = Image.open(path, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise UsageError(f"{path}: {image.width} x {image.height} pixels are too many")
        return ImageOps.exif_transpose(image)
    except UsageError:
        raise
    except Exception as error:  # Pillow raises almost anything on damaged files
        raise UsageError(f"{path}: is no readable jpg, png or webp ({error})") from error
