"""Images per second out of the cache, and by decoding and resizing with PIL as published."""

import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import datasets

NUM_IMAGES, WIDTH, HEIGHT, SIZE, BATCH = 256, 178, 218, 64, 32  # CelebA's pictures


def _write_pictures(folder: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    for index in range(NUM_IMAGES):
        coarse = rng.integers(0, 256, (14, 12, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:03d}.jpg", quality=90)


def _by_pil(paths: list[Path]) -> torch.Tensor:
    """As published: decode, resize to 320, crop 256 in the middle, resize again."""
    images = []
    for path in paths:
        picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        picture = picture.resize((320, 320 * HEIGHT // WIDTH), Image.Resampling.BILINEAR)
        left, top = (picture.width - 256) // 2, (picture.height - 256) // 2
        picture = picture.crop((left, top, left + 256, top + 256))
        picture = picture.resize((SIZE, SIZE), Image.Resampling.NEAREST)
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(images).float() / 127.5 - 1


def measure() -> dict[str, float]:
    """Images per second of one process, ready as a batch in [-1, 1]."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        _write_pictures(folder)
        paths = sorted(folder.iterdir())
        options = datasets.dataset_options("CelebA", str(folder))
        images = datasets.open_images(
            options, SIZE, cache_dir=Path(name) / "cache", show_progress=False
        )
        rng = torch.Generator().manual_seed(0)

        def from_cache(start: int) -> None:
            batch = images.batch(np.arange(start, start + BATCH))
            datasets.training_images(batch, flip=True, rng=rng)

        def by_pil(start: int) -> None:
            _by_pil(paths[start : start + BATCH])

        rates = {}
        for title, work, passes in (("cache", from_cache, 20), ("PIL", by_pil, 1)):
            work(0)
            begin = time.process_time()
            for start in list(range(0, NUM_IMAGES, BATCH)) * passes:
                work(start)
            rates[title] = NUM_IMAGES * passes / (time.process_time() - begin)
    return rates
