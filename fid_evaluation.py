"""Write real images of a dataset for evaluation.

    python fid_evaluation.py --dataset CelebA --img_size 128 --num_imgs 8000

Writes EvalImages/CelebA_real_images_128/, for eval_metrics.py --real_image_dir. The same command
continues where an interrupted one stopped.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import own_modules  # noqa: F401
import curriculums
import datasets
from datasets import DatasetOptions
from image_io.decoding import Resize
from image_io.files import Listing, Skipped
from metrics import real_images
from metrics.real_images import Choice
from system import flags
from system.errors import UsageError
from system.files import output_folder
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
    folder = output_folder(args.output_dir or default)
    real_images.write_manifest(folder, real_images.manifest(choice, listing, args.protocol))
    written, skipped = _write(folder, choice, listing, args)
    if listing.count < args.num_imgs:
        print(f"there are only {listing.count} pictures in {listing.source}", file=sys.stderr)
    if skipped:
        name, reason = skipped[0]
        print(f"left out: {len(skipped)} unreadable pictures, first '{name}' ({reason})",
              file=sys.stderr)  # fmt: skip
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
    folder: Path, choice: Choice, listing: Listing, args: argparse.Namespace
) -> tuple[int, list[Skipped]]:
    """Write the missing images; return the number of images, and the pictures left out."""
    total = len(choice.indices(listing.count))
    paths = [real_images.file_path(folder, number, args.protocol) for number in range(total)]
    done = 0
    while done < total and paths[done].is_file():
        done += 1
    skipped: list[Skipped] = []
    number = done
    with progress_bar(total, "image", initial=done) as bar:
        for block in real_images.chosen_images(choice, listing, skip=done):
            for item in block:
                if isinstance(item, Skipped):
                    skipped.append(item)
                elif not paths[number].is_file():
                    real_images.put(paths[number], real_images.encoded(item, args.protocol))
                number += 1
            bar.update(len(block))
    if len(skipped) == total:
        raise UsageError(f"no picture in {listing.source} can be read: {skipped[0].reason}")
    return total - len(skipped), skipped


if __name__ == "__main__":
    sys.exit(flags.run(main))
