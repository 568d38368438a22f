"""Show whether a run learned its pictures by heart: python -m benchmarks.neighbours runs/mine.

Writes a sheet with generated pictures in the first row and, below each, the pictures of the dataset
that are nearest to it (root mean square of the color difference, in 0..255). Prints how far these
are, and how far pictures of the dataset are from each other: a generator that copies comes closer.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import datasets
from checkpoint_io import checkpoints
from image_io import png
from metrics.samples import SampleOptions, sample_image
from system import flags
from training.options import dataset_options

SHOWN, NEAREST = 12, 2  # generated pictures of the sheet, and neighbours of each


def distances(some: Tensor, others: Tensor) -> Tensor:
    """Return the root mean squares of the differences (N, M) of images (N, ...) and (M, ...)."""
    flat = (some.flatten(1).float(), others.flatten(1).float())
    return torch.cdist(*flat) / flat[0].shape[1] ** 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Compare generated pictures with those of the dataset; write the sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--num_images", type=int, default=500, help="generated pictures")
    args = parser.parse_args(argv)
    saved = checkpoints.load_generator(args.run / "generator.pth")
    curriculum = saved.curriculum
    size = curriculum.stage_settings(saved.last_step).img_size
    real = datasets.open_images(
        dataset_options(curriculum), size, cache_dir=args.run / "cache", show_progress=False
    )
    options = SampleOptions.of(curriculum, curriculum.preview_render(saved.last_step, size), seed=0)
    generated = png.to_uint8(
        torch.stack([sample_image(saved.generator, i, options) for i in range(args.num_images)])
    )
    pictures = real.batch(torch.arange(len(real)))
    found = distances(generated, pictures).topk(NEAREST, largest=False)
    rows = [generated[:SHOWN], *pictures[found.indices[:SHOWN]].unbind(1)]
    path = args.run / "neighbours.png"
    png.save_png(path, png.grid(torch.cat(rows), len(rows[0])))
    others = distances(pictures[: args.num_images], pictures).topk(2, largest=False).values[:, 1]
    for name, nearest in (("generated", found.values[:, 0]), ("of the dataset", others)):
        low, middle = nearest.quantile(torch.tensor([0.05, 0.5])).tolist()
        print(f"pictures {name}: {middle:.1f} from the nearest other (a twentieth: {low:.1f})")
    print(path)


if __name__ == "__main__":
    sys.exit(flags.run(main))
