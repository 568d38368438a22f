"""Cut photos to fit out of pictures, read their masks, and put a fit back into its picture."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from generators.inversion import Photo
from image_io import photo_checks, placing, preparing
from image_io.decoding import Crop, crop_box, over_white, read_picture
from image_io.placing import NotFound, Square
from system.errors import UsageError

SMALLEST = 4  # pixels per side of a photo to fit
GREY_TOLERANCE = 16  # of 255: what the compression of a jpg can add between channels
HALF = 128  # of 255: a grey mask must be brighter than that somewhere


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A photo to fit, and where it is in the picture that it was cut from.

    Attributes:
        name: of the photo, for messages.
        photo: the pixels to fit.
        ground: the whole upright picture without the object, RGB or RGBA; None unless it was
            prepared. A face stays in it.
        square: the part of it that photo shows; None unless it was prepared.
        note: a line about what else was found; empty if there is nothing else.
        fault: a line about what is poor in the prepared photo; empty if nothing is.
    """

    name: str
    photo: Photo
    ground: Image.Image | None = None
    square: Square | None = None
    note: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How the square to fit is found in a photo; kind and find are those of preparing.finder."""

    kind: preparing.Kind
    find: preparing.Finder


def open_photo(
    image: Image.Image,
    name: str,
    size: int,
    *,
    crop: Crop | Preparation,
    mask: Path | None = None,
    background: float | None,
) -> Opened:
    """Cut a photo out of a picture, at size x size pixels.

    The picture's alpha channel, or a mask of its own size (white is the object), says where the
    object is. background is the value in [-1, 1] that the generator renders behind objects: the
    photo is put on it and its alpha is to be matched. Where it is None, pixels outside of the
    object have no weight. Raises UsageError if there is nothing to fit, or the mask has another
    size or is no mask.
    """
    if min(image.size) < SMALLEST:
        raise UsageError(f"{name}: is {image.width} x {image.height} pixels; a photo has at least "
                         f"{SMALLEST} per side")  # fmt: skip
    image = image.convert("RGBA")
    if mask is not None:
        plane = read_mask(mask)
        if plane.size != image.size:
            sizes = [f"{width} x {height}" for width, height in (plane.size, image.size)]
            raise UsageError(f"--mask {mask}: is {sizes[0]}, the photo is {sizes[1]} pixels")
        image.putalpha(plane)
    if isinstance(crop, Preparation):
        return _prepared(image, name, size, crop, background)
    box = crop_box(*image.size, crop)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return Opened(name=name, photo=_photo(square, name, background))


def _prepared(
    image: Image.Image, name: str, size: int, how: Preparation, background: float | None
) -> Opened:
    """Cut the largest square that is found, and remember its place."""
    image = image.convert("RGB") if placing.is_opaque(image) else image
    try:
        source, squares = how.find(image)
    except NotFound as error:
        raise UsageError(f"{name}: {error}") from error
    square = max(squares, key=lambda one: one.side)
    picture = placing.cut(source, square, size)
    blur = photo_checks.blur(over_white(picture))
    return Opened(
        name=name,
        photo=_photo(picture.convert("RGBA"), name, background),
        ground=_without(image, source) if how.kind == "object" else image,
        square=square,
        note=f"{len(squares)} {how.kind}s; takes the largest" if len(squares) > 1 else "",
        fault=preparing.fault(how.kind, image, square, picture, blur),
    )


def _without(image: Image.Image, cutout: Image.Image) -> Image.Image:
    """Return a picture without its object, which cutout shows: its ground, or nothing (RGBA)."""
    alpha = cutout.getchannel("A")
    if image.mode == "RGBA":
        return Image.new("RGBA", image.size)
    colors = np.asarray(image)[np.asarray(alpha) == 0]
    ground = tuple(int(value) for value in np.median(colors, axis=0))
    return Image.composite(Image.new("RGB", image.size, ground), image, alpha)


def _photo(square: Image.Image, name: str, background: float | None) -> Photo:
    """Convert a square RGBA picture."""
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    rgb, alpha = pixels[:3] * 2 - 1, pixels[3]
    everywhere = torch.ones_like(alpha)
    if bool((alpha == 1).all()):
        return Photo(rgb, everywhere)
    if background is None:
        return Photo(rgb, _not_empty(alpha, name))
    return Photo(rgb * alpha + background * (1 - alpha), everywhere, _not_empty(alpha, name))


def put_back(
    opened: Opened, image: Tensor, opacity: Tensor, background: float | None
) -> Image.Image:
    """Return a prepared photo's picture with a render of its fit at the place of the square.

    image (3, H, H) in [-1, 1] and opacity (H, H) are the render. The light of background (see
    open_photo) is taken off, so that the picture's ground shows through; where background is None
    the render fills its square.
    """
    assert opened.ground is not None
    assert opened.square is not None
    if background is not None:
        image = (image - background * (1 - opacity)) / opacity.clamp(min=1e-3)
    else:
        opacity = torch.ones_like(opacity)
    planes = torch.cat([image, 2 * opacity[None] - 1]).clamp(-1, 1)
    render = Image.fromarray(((planes + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())
    # The outermost pixels' centers lie on the edges of the angle of view: a finer render shows a
    # little less around them.
    size, fitted = render.width, opened.photo.image.shape[-1]
    share = size * max(1, fitted - 1) / (fitted * max(1, size - 1))
    square = replace(opened.square, side=share * opened.square.side)
    layer = placing.placed(render, square, opened.ground.size)
    return Image.alpha_composite(opened.ground.convert("RGBA"), layer).convert(opened.ground.mode)


def _not_empty(alpha: Tensor, name: str) -> Tensor:
    if float(alpha.max()) == 0:
        raise UsageError(f"{name}: its alpha or mask is empty, there is nothing to fit")
    return alpha


def read_mask(path: Path) -> Image.Image:
    """Read a mask as grey, 255 where the object is.

    A picture with transparent parts is a cut-out: its alpha channel is the mask. A picture of black
    and one other color, such as values 0 and 1 or a palette with one class, is the mask of that
    color. Anything else must be grey and reach at least half of white. Raises UsageError if not.
    """
    image = read_picture(path)
    if not placing.is_opaque(image):
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
