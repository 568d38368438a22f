"""Read a photo to fit, and the mask that says where its object is."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from generators.inversion import Photo
from image_io.decoding import Crop, crop_box, read_picture
from system.errors import UsageError

GREY_TOLERANCE = 16  # of 255: what the compression of a jpg can add between channels
HALF = 128  # of 255: a grey mask must be brighter than that somewhere


def open_photo(
    path: Path,
    size: int,
    *,
    crop: Crop,
    mask: Path | None = None,
    background: float | None,
) -> Photo:
    """Read a photo at size x size pixels, upright.

    Its alpha channel, or a mask of the photo's own size (white is the object), says where the
    object is. background is the value in [-1, 1] that the generator renders behind objects: the
    photo is put on it and its alpha is to be matched. Where it is None, pixels outside of the
    object have no weight. Raises UsageError if a file cannot be read, or the mask has another size
    or is no mask.
    """
    image = read_picture(path).convert("RGBA")
    if mask is not None:
        plane = read_mask(mask)
        if plane.size != image.size:
            sizes = [f"{width} x {height}" for width, height in (plane.size, image.size)]
            raise UsageError(f"--mask {mask}: is {sizes[0]}, the photo is {sizes[1]} pixels")
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


def read_mask(path: Path) -> Image.Image:
    """Read a mask as grey, 255 where the object is.

    A picture with transparent parts is a cut-out: its alpha channel is the mask. A picture of black
    and one other color, such as values 0 and 1 or a palette with one class, is the mask of that
    color. Anything else must be grey and reach at least half of white. Raises UsageError if not.
    """
    image = read_picture(path)
    if image.mode == "RGBA" and bool((np.asarray(image)[..., 3] < 255).any()):
        return image.getchannel("A")
    pixels = np.asarray(image.convert("RGB")).astype(np.int16)
    is_object = pixels.any(axis=2)
    others = pixels[is_object]
    if is_object.any() and not is_object.all() and (others == others[0]).all():
        return Image.fromarray(np.where(is_object, 255, 0).astype(np.uint8))
    _refuse_other_masks(path, pixels)
    return image.convert("L")


def _refuse_other_masks(path: Path, pixels: NDArray[Any]) -> None:
    """Refuse a mask that is colored or dark, and say what was found."""
    wanted = "a mask is white (255) where the object is and black (0) elsewhere"
    if int(np.ptp(pixels, axis=2).max()) > GREY_TOLERANCE:
        count = len(np.unique(pixels.reshape(-1, 3), axis=0))
        raise UsageError(f"--mask {path}: holds {count} colors; {wanted}")
    if int(pixels.max()) < HALF:
        values = np.unique(pixels)
        named = f"{values[0]} to {values[-1]}" if len(values) > 1 else f"{values[0]} only"
        raise UsageError(f"--mask {path}: holds values {named}, of 255; {wanted}")
