"""Convert decoded pictures of any mode and color profile to sRGB of 8 bits."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 2**24  # a larger ICC profile is ignored
PROBE = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), -1).reshape(1, -1, 3)


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a decoded picture of any mode to sRGB: RGB, or RGBA where it has transparency."""
    profile = image.info.get("icc_profile")
    if image.mode[0] in "IF":  # integers and floating-point numbers, which Pillow cuts off at 255
        image = _in_eight_bits(image)
    picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return picture
    source = picture if transform.input_mode == "RGB" else image
    colors: Image.Image = transform.apply(source.convert(transform.input_mode))
    if picture.mode == "RGBA":
        colors.putalpha(picture.getchannel("A"))
    return colors


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 bits, or of floating-point numbers from 0 to 1, to 8 bits.

    Integers of 32 bits up to 255 stay as they are. Nothing above 0 becomes 0, so that masks of 0
    and 1 stay masks. The result is L, or LA if the file has a value that is transparent.

    Raises:
        ValueError: it has other values.
    """
    values, clear = np.asarray(image), image.info.get("transparency")
    low, high = values.min(), values.max()
    limit = 1 if image.mode == "F" else 255 if image.mode == "I" and high <= 255 else 65535
    if not 0 <= low <= high <= limit:
        raise ValueError(f"holds grey from {low:g} to {high:g}; 0 to {limit} is understood")
    scaled = (values * (255 / limit) + 0.5).astype(np.uint8)
    grey = Image.fromarray(np.maximum(scaled, values > 0))
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray((values != clear).astype(np.uint8) * 255))
    return grey


@functools.lru_cache(8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the conversion of colors to sRGB that an ICC profile asks for.

    Returns:
        None where the profile is that of sRGB, is damaged, or is not for pictures of this mode;
        the colors are then sRGB as they are, as in browsers.
    """
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    srgb = ImageCms.createProfile("sRGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        kind = source.profile.xcolor_space.strip()
        taken = {"CMYK": ("CMYK",), "GRAY": ("1", "L", "LA")}.get(kind)
        if mode not in taken if taken else (kind != "RGB" or mode == "CMYK"):
            return None
        transform = ImageCms.buildTransform(
            source,
            srgb,
            {"GRAY": "L"}.get(kind, kind),
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE,  # shared by threads
        )
    except (ImageCms.PyCMSError, OSError):
        return None
    if kind == "RGB":
        colors = Image.fromarray(PROBE)
        found = np.asarray(transform.apply(colors)).astype(int)
        if np.abs(found - PROBE).max() <= 1:
            return None
    return transform
