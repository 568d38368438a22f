"""The picture formats that Pillow decodes on this machine, by the endings of their files."""

import contextlib
import functools
import importlib

from PIL import Image, ImageFile

COMMON = ("JPEG", "PNG", "WEBP")  # tried first
NOT_DECODED = ("EPS", "MPEG")  # EPS would run Ghostscript; Pillow reads only the head of a video
READ_AS = {"MPO": "JPEG"}  # formats that another one's reader opens


@functools.cache
def formats_by_ending() -> dict[str, str]:
    """Return Pillow's name of the format by ending, such as {".jpg": "JPEG"}.

    The package pillow-heif adds .heic where it is installed.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    read_as = ((ending, READ_AS.get(name, name)) for ending, name in Image.EXTENSION.items())
    return {ending: name for ending, name in read_as if _is_decoded(name)}


@functools.cache
def formats() -> tuple[str, ...]:
    """Return Pillow's names of all formats that are decoded, in the order of trying."""
    return tuple(dict.fromkeys((*COMMON, *formats_by_ending().values())))


def _is_decoded(name: str) -> bool:
    """Return whether Pillow can decode the format, not only recognize it or write it."""
    if name not in Image.OPEN or name in NOT_DECODED:
        return False
    opener = Image.OPEN[name][0]
    return not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))
