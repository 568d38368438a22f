"""Which pictures are blurred, and which are nearly the same."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.measure import blur_effect

MAX_BLUR = 0.6  # sharp pictures have 0.3 to 0.45; blurred by a Gaussian of 2 of 128 pixels: 0.7
SIDE = 12  # pixels of the small pictures that are compared
NEAR = 0.05  # of the sum of both deviations; other views and other people: 0.08 and more


def blur(image: Image.Image) -> float:
    """Return how blurred a picture is, from 0 (sharp) to 1 (Crete et al. 2007)."""
    return float(blur_effect(np.asarray(image.convert("L"))))


class Seen:
    """Small copies of the pictures so far, to find near-duplicates among them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._colors = np.empty((64, 3 * SIDE**2), np.float32)
        self._deviations = np.empty(64, np.float32)

    def twin(self, name: str, image: Image.Image) -> str | None:
        """Return the name of an earlier picture that is nearly the same, or None; then keep it.

        Two pictures are nearly the same if the root mean square of the difference of their small
        copies is less than NEAR times the sum of their standard deviations.
        """
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
        colors: NDArray[np.float32] = np.asarray(small, np.float32).ravel()
        count = len(self._names)
        difference = np.sqrt(np.square(self._colors[:count] - colors).mean(axis=1))
        near = difference < NEAR * (self._deviations[:count] + colors.std())
        if near.any():
            return self._names[int(np.argmax(near))]
        if count == len(self._deviations):
            self._colors = np.concatenate([self._colors, np.empty_like(self._colors)])
            self._deviations = np.concatenate([self._deviations, np.empty_like(self._deviations)])
        self._colors[count], self._deviations[count] = colors, colors.std()
        self._names.append(name)
        return None
