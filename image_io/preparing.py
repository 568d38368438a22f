"""Find the squares of photos that show a face or an object, and say what is wrong with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from PIL import Image

from image_io import faces, photo_checks, placing
from image_io.placing import NotFound, Square

Kind = Literal["face", "object", "crop"]
Finder = Callable[[Image.Image], tuple[Image.Image, list[Square]]]

OBJECT_SHARE = 0.8  # of the picture's side that the longer side of an object takes
MAX_OUTSIDE = 0.15  # share of a face's square that may lie outside of the photo
MIN_SHARE = 0.5  # of the picture's size: a square of fewer pixels is small


def finder(kind: Kind, *, cascade: Path | None = None, share: float = OBJECT_SHARE) -> Finder:
    """Return a function that finds the squares of a photo, and the photo to cut them from.

    Args:
        kind: face takes all faces; object the things on a plain or transparent ground, cut out;
            crop the largest centred square.
        cascade: file of faces of another kind than people's; unused for other kinds.
        share: of the square's side that the longer side of an object takes, in (0, 1].

    Raises:
        UsageError: the cascade cannot be read. The function raises NotFound where a photo does not
            show what is looked for.
    """
    if kind == "crop":
        return lambda photo: (photo, [placing.centred(photo)])
    if kind == "object":

        def find_object(photo: Image.Image) -> tuple[Image.Image, list[Square]]:
            cutout, square = placing.find_object(photo, share)
            return cutout, [square]

        return find_object
    opened = faces.open_cascade(cascade)

    def find_faces(photo: Image.Image) -> tuple[Image.Image, list[Square]]:
        found = faces.find_faces(photo, opened)
        if not found:
            raise NotFound("no face found")
        return photo, found

    return find_faces


def fault(kind: Kind, photo: Image.Image, square: Square, picture: Image.Image, blur: float) -> str:
    """Say why what a square of a photo shows is poor to learn from; empty where it is good.

    picture is the square at the size that is wanted, and blur what photo_checks.blur says of it.
    """
    outside = placing.share_outside(photo, square)
    if square.side < MIN_SHARE * picture.width:
        return f"small: {square.side:.0f} pixels for {picture.width}"
    if kind == "face" and outside > MAX_OUTSIDE:
        return f"cut off: {outside:.0%} of the face's square is outside of the photo"
    if blur > photo_checks.MAX_BLUR:
        return f"blurred: {blur:.2f} (at most {photo_checks.MAX_BLUR:g})"
    return ""
