"""Find the cameras of a run's photos with its generator, and print how to train with them.

    python estimate_cameras.py runs/demo

Prints the distribution of pitch and yaw that the photos have, and the flags for train.py. Writes
nothing but the cache of decoded images.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import own_modules  # noqa: F401
import datasets
from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import SavedGenerator
from config.curriculum import keys_of_poses
from generators.cameras import PoseDistribution
from generators.sampling import stream
from metrics import camera_search, found_cameras
from metrics.found_cameras import Found
from metrics.pose_response import LEAST_SHARE
from system import flags, machine
from system.errors import UsageError
from system.screen import progress_bar
from training.options import dataset_options

STREAM = 0x43414D00  # keeps its stream apart from those of other purposes with the same seed
MAX_SIZE = 64  # pixels; the covariance of larger renders does not fit into memory


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Find the cameras of a run's photos.")
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a run")
    add("--dataset_path", help="folder, glob or .zip of the photos; default: that of the run")
    add("--image_size", type=flags.whole(4, MAX_SIZE), default=16,
        help="pixels per side of photos and renders")  # fmt: skip
    add("--num_photos", type=flags.positive_int, default=camera_search.NUM_PHOTOS, help="at most")
    add("--ema", choices=["ema", "ema2", "none"], default="ema", help="which averaged parameters "
        "to use; none takes the raw ones")  # fmt: skip
    add("--seed", type=flags.non_negative_int, default=0, help="of the objects")
    add("--cache_dir", type=Path, help="folder of decoded pictures; default: RUN/cache")
    flags.add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Search the cameras and print them."""
    args = build_parser().parse_args(argv)
    if args.run.is_file():
        raise UsageError(f"{args.run}: is a file; give the folder of a run")
    device = flags.resolve_device(args.device)
    saved = checkpoints.load_generator(args.run / "generator.pth", ema=args.ema, device=device)
    if device.type == "cpu":
        machine.use_one_thread_for(saved.generator.siren.hidden_dim)
    photos = open_photos(saved, args)
    poses = saved.curriculum.at(saved.last_step).poses
    with progress_bar(camera_search.WHOLE.renders, "render", "cameras") as bar:
        found = camera_search.search(
            saved.generator,
            photos,
            poses,
            saved.curriculum.preview_render(saved.last_step, args.image_size),
            saved.curriculum.settings.z_dist,
            rng=stream(STREAM, args.seed),
            report=bar.update,
        )
    print(f"{len(photos)} photos at {args.image_size} px, generator at step {saved.step}")
    return show(found, poses)


def open_photos(saved: SavedGenerator, args: argparse.Namespace) -> Tensor:
    """Return photos (N, 3, H, W) in [-1, 1], spread evenly over the run's dataset."""
    curriculum = saved.curriculum
    if args.dataset_path is not None:
        curriculum = curriculum.with_dataset_path(args.dataset_path)
    options = dataset_options(curriculum)
    images = datasets.open_images(
        options, args.image_size, cache_dir=args.cache_dir or args.run / "cache"
    )
    photos = images.spread(args.num_photos, rng=stream(STREAM, args.seed, 1))
    return datasets.training_images(photos)


def show(found: tuple[Found, Found], before: PoseDistribution) -> int:
    """Print what was found, and the flags that train with it.

    Raises:
        UsageError: neither pitch nor yaw was found.
    """
    lines = []
    for axis, each, own in zip(("pitch", "yaw"), found, before.moments(), strict=True):
        if not each.is_clear:
            reason = (
                "guesses for the photos are mostly noise: they look like none of this generator's "
                f"renders, or all have the same {axis}"
            )
            if each.share < LEAST_SHARE:
                reason = ("renders of this generator look too much alike from different sides "
                          f"(R^2 {each.share:.2f}, {LEAST_SHARE} is needed)")  # fmt: skip
            lines.append(f"{axis}: cannot be found; {reason}")
        elif math.isinf(each.spread):
            lines.append(f"{axis}: all around")
        else:
            lines.append(f"{axis}: mean {each.mean:.3f}, standard deviation {each.spread:.3f} "
                         f"(trained with {own[0]:.3f}, {own[1]:.3f})")  # fmt: skip
    if not any(each.is_clear for each in found):
        raise UsageError("; ".join(lines))
    after = found_cameras.distribution(*found, before)
    words = " ".join(
        f"--set {key}={value if isinstance(value, str) else format(value, '.4g')}"
        for key, value in keys_of_poses(after).items()
    )
    print("\n".join([*lines, f"kind: {after.kind}", f"train with: {words}"]))
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
