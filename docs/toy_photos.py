"""Make photos of toy cars to try the documents with: python -m docs.toy_photos my_photos.

They stand for photos that somebody took: a jpg each, with a plain ground in a color of its own, all
from the same distance, and with the car somewhere in the picture. Two are blurred, and two show
nearly the same as another.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from scenes.toy_car_images import toy_car_images
from system import flags
from system.errors import UsageError
from system.files import output_folder
from system.screen import progress_bar

WIDTH, HEIGHT, CAR = 480, 360, 256  # pixels of a photo, and of the car's picture in it
BLURRED, REPEATED = (1, 5), (3, 7)  # photos of every hundred


def build_parser() -> argparse.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Make photos of toy cars to try the documents with.")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--count", type=flags.whole(8, 10_000), default=500, help="of photos")
    return parser


def photo(index: int) -> Image.Image:
    """Return a photo; the same index is always the same one."""
    rng = np.random.default_rng(index)
    (car,) = toy_car_images([index], CAR, seed=7).images.numpy()  # (3, CAR, CAR), on white
    ground = np.full((HEIGHT, WIDTH, 3), rng.integers(170, 256, 3))
    left, top = rng.integers(0, WIDTH - CAR), rng.integers(0, HEIGHT - CAR)
    ground[top : top + CAR, left : left + CAR] *= car.transpose(1, 2, 0)
    ground[top : top + CAR, left : left + CAR] //= 255
    made = Image.fromarray(ground.astype(np.uint8))
    return made.filter(ImageFilter.GaussianBlur(8)) if index % 100 in BLURRED else made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the photos."""
    args = build_parser().parse_args(argv)
    if args.folder.exists():
        raise UsageError(f"{args.folder}: exists; give a new folder")
    output_folder(args.folder, flag="folder")
    with progress_bar(args.count, "photo") as bar:
        for index in range(args.count):
            shown = index - 1 if index % 100 in REPEATED else index
            photo(shown).save(args.folder / f"IMG_{index:04d}.jpg", quality=92)
            bar.update()
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
