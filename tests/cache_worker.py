"""Fill an image cache slowly: python tests/cache_worker.py FOLDER NAME NUM_BLOCKS."""

import sys
import time
from pathlib import Path

import numpy as np

from image_io.cache import cached


def main(folder, name, num_blocks):
    def blocks():
        (folder / f"{name}.started").touch()
        for index in range(num_blocks):
            yield [np.full((3, 4, 4), index, np.uint8)]
            time.sleep(0.1)

    (folder / f"{name}.ready").touch()
    options = dict(num_images=num_blocks, image_size=4, show_progress=True)
    entry = cached(folder / "cache", "key", blocks, **options)
    assert entry.pixels[:, 0, 0, 0].tolist() == list(range(num_blocks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
