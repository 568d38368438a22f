"""Write real images of a dataset for evaluation.

    python fid_evaluation.py --dataset CelebA --img_size 128 --num_imgs 8000

Writes EvalImages/CelebA_real_images_128/, for eval_metrics.py --real_image_dir. The same command
continues where an interrupted one stopped.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import own_modules  # noqa: F401
import curriculums
import datasets
from datasets import DatasetOptions
from image_io.decoding import Resize
from image_io.files import Listing, Skipped, describe_skipped
from metrics import real_images
from metrics.real_images import Choice, Protocol
from system import flags
from system.errors import UsageError
from system.files import filled_folder, write_file
from system.screen import progress_bar


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Write real images of a dataset for evaluation.")
    add = parser.add_argument
    add("--dataset", default="CelebA", help=f"one of {', '.join(datasets.KINDS)}")
    add("--dataset_path", help="folder, glob or .zip of pictures; default: that of the curriculum "
        "of that dataset")  # fmt: skip
    add("--img_size", type=flags.pixels, default=128, help="pixels per side")
    add("--num_imgs", type=flags.positive_int, default=8000, help="number of images, at most all")
    add("--protocol", choices=real_images.PROTOCOLS, default="clean", help="clean: antialiased "
        "png files; published: nearest-neighbour, mirrored at random, jpg files")  # fmt: skip
    add("--output_dir", type=Path, help="default: EvalImages/DATASET_real_images_SIZE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Choose the images and write those that are missing."""
    args = build_parser().parse_args(argv)
    options = _options(args)
    listing = datasets.find_images(options)
    choice = Choice(
        options=options,
        image_size=args.img_size,
        count=args.num_imgs,
        is_flipped=args.protocol == "published",
    )
    default = Path("EvalImages") / f"{options.kind}_real_images_{args.img_size}"
    folder = args.output_dir or default
    with filled_folder(folder):
        made = real_images.manifest(choice, listing, args.protocol)
        real_images.require_same(folder, made)
        written, skipped = _write(folder, choice, listing, args.protocol, made)
    if listing.left_out:
        print(listing.left_out, file=sys.stderr)
    if listing.count < args.num_imgs:
        print(f"there are only {listing.count} pictures in {listing.source}", file=sys.stderr)
    if skipped:
        total = listing.count + len(listing.skipped)
        text = describe_skipped(skipped, total, listing.source)
        print(f"left out: {text}", file=sys.stderr)
    print(f"{written} real images of {args.img_size} x {args.img_size} pixels in {folder}")
    return 0


def _options(args: argparse.Namespace) -> DatasetOptions:
    kinds = {kind.casefold(): kind for kind in datasets.KINDS}
    kind = kinds.get(args.dataset.casefold(), args.dataset)
    resize: Resize = "nearest" if args.protocol == "published" else "antialias"
    path = args.dataset_path or _published_path(kind)
    return datasets.dataset_options(kind, path, resize=resize)


def _published_path(kind: str) -> str | None:
    """Return the path of a dataset in the presets."""
    settings = [curriculums.load(name).settings for name in curriculums.PRESETS]
    return next((own.dataset_path for own in settings if own.dataset == kind), None)


def _write(
    folder: Path, choice: Choice, listing: Listing, protocol: Protocol, made: dict[str, Any]
) -> tuple[int, list[Skipped]]:
    """Write the missing images; return the number of images, and the pictures left out.

    Nothing is written before a picture could be read.
    """
    total = len(choice.indices(listing.count))
    paths = [real_images.file_path(folder, number, protocol) for number in range(total)]
    done = 0
    while done < total and paths[done].is_file():
        done += 1
    skipped, count = list(listing.skipped), done
    with progress_bar(total, "image", initial=done) as bar:
        blocks = real_images.chosen_images(choice, listing, skip=done)
        for path, item in zip(paths[done:], itertools.chain.from_iterable(blocks), strict=True):
            bar.update()
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            if count == 0:
                real_images.begin(folder, made, paths)
            count += 1
            if not path.is_file():
                content = real_images.encoded(item, protocol)
                write_file(path, content, is_synced=False)  # there are thousands
    if count == 0:
        raise UsageError(describe_skipped(skipped, len(skipped), listing.source))
    return count, skipped


if __name__ == "__main__":
    sys.exit(flags.run(main))
