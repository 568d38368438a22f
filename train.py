"""Train a 3D-aware generator from a folder of photos.

    python train.py --curriculum CelebA --output_dir out

Runs one process per visible CUDA device, or one on the CPU. On Ctrl-C, SIGTERM, SIGHUP and SIGUSR1
it saves and ends; the same command with `--resume` continues the run.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import own_modules  # noqa: F401
import curriculums
from config.curriculum import Curriculum
from distributed import processes
from metrics import inception
from system import flags
from system.errors import UsageError
from system.files import offer_for_temporary_files
from training import dry_run
from training.loop import train
from training.memory import require_memory
from training.options import FidOptions, TrainOptions
from training.start import resolve


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(
        description="Train a 3D-aware generator from a folder of photos.",
        owners={
            "": "--curriculum",
            "--resume": "--output_dir",
            "--dry_run": "--output_dir",
            "--list_curricula": "--curriculum_file",
        },
    )
    add = parser.add_argument
    add("--curriculum", help="name of a curriculum (required); see --list_curricula")
    add("--curriculum_file", type=Path, help="Python file with curriculum dicts of your own")
    add("--list_curricula", action="store_true", help="print the curricula and stop")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a curriculum key; "
        "STEP.KEY=VALUE for a stage; repeatable")  # fmt: skip
    add("--dataset_path", help="folder, glob or .zip of pictures")
    add("--cache_dir", type=Path, help="folder of decoded pictures; default: OUTPUT_DIR/cache")
    add("--drop_unused_caches", action="store_true", help="remove decoded pictures of the same "
        "--dataset_path that no run uses")  # fmt: skip
    add("--output_dir", type=Path, default=Path("out"), help="folder of the run")
    add("--load_dir", type=lambda text: Path(text) if text else None, help="continue the run in "
        "this folder, ours or a published one, in --output_dir; '' is none")  # fmt: skip
    add("--resume", action="store_true", help="resume the run in --output_dir if there is one")
    add("--transfer", type=Path, metavar="RUN", help="begin a new run with the networks of another "
        "one: its folder, or a generator.pth")  # fmt: skip
    add("--set_step", type=flags.non_negative_int, help="set the number of completed steps")
    add("--seed", type=flags.non_negative_int, help="of all random numbers; default: that of the "
        "resumed run, else 0")  # fmt: skip
    add("--n_epochs", type=flags.positive_int, help="stop after so many passes over the data, "
        "counted from the start or resume; default: no limit")  # fmt: skip
    add("--max_steps", type=flags.positive_int, help="stop at this step; default: the "
        "end of the curriculum")  # fmt: skip
    add("--sample_interval", type=flags.positive_int, default=200, help="steps between previews")
    add("--model_save_interval", type=flags.positive_int, default=5000, help="steps between "
        "snapshots")  # fmt: skip
    add("--state_seconds", type=flags.positive_float, default=600, help="seconds between saved "
        "states: the most that a power cut can lose")  # fmt: skip
    add("--keep", type=flags.positive_int, default=3, help="keep this many newest "
        "snapshots, and previews of ten times as many steps")  # fmt: skip
    add("--eval_freq", type=flags.non_negative_int, default=5000, help="steps between FID "
        "measurements; 0 turns them off")  # fmt: skip
    add("--eval_images", type=flags.whole(1, 1_000_000), default=2048,
        help="images generated per measurement")  # fmt: skip
    add("--inception_weights", type=Path, help="FID's network, if it cannot be downloaded")
    add("--any_inception_weights", action="store_true", help="accept weights other than the "
        "published ones; their figures cannot be compared")  # fmt: skip
    flags.add_device(parser)
    add("--num_processes", type=flags.positive_int, help="default: one per visible CUDA device")
    add("--port", type=flags.port_number, default=processes.ANY_PORT, help="rendezvous port "
        "of the processes; 0 is any free one")  # fmt: skip
    add("--dry_run", action="store_true", help="start as training does, show settings and "
        "pictures, and stop before the first step")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags, check all inputs, then train in one or several processes."""
    args = build_parser().parse_args(argv)
    if args.list_curricula:
        print(dry_run.curricula_table(args.curriculum_file))
        return 0
    typed = _curriculum(args)
    places = processes.plan(args.device, args.num_processes, os.environ)
    if args.eval_freq > 0 and args.inception_weights is not None:  # not hours later
        inception.find_weights(args.inception_weights, takes_any=args.any_inception_weights)
    options = _options(args, ["train.py", *(sys.argv[1:] if argv is None else argv)])
    start = resolve(typed, options, places[0])
    if not args.dry_run:
        require_memory(start.curriculum, places)
    elif places[0].is_main:
        end = start.curriculum.ending(
            first_step=start.step,
            num_images=start.listing.count,
            world_size=places[0].world_size,
            max_steps=args.max_steps,
            n_epochs=args.n_epochs,
        )
        print(dry_run.report(start.curriculum, places, start.listing, end), flush=True)
    offer_for_temporary_files(args.output_dir)
    code = processes.launch(train, (options, start), places, port=args.port)
    if args.dry_run:  # after all else, so that the pictures are shown in any case
        require_memory(start.curriculum, places)
    return code


def _curriculum(args: argparse.Namespace) -> Curriculum:
    """Return the curriculum that the flags name, with the changes of --set."""
    if args.curriculum is None:
        names = ", ".join(curriculums.PRESETS)
        raise UsageError(f"--curriculum is missing; choose one of {names}")
    curriculum = curriculums.load(
        args.curriculum, file=args.curriculum_file, overrides=list(args.set)
    )
    if args.dataset_path is None:
        return curriculum
    return curriculum.with_dataset_path(args.dataset_path)


def _options(args: argparse.Namespace, command: list[str]) -> TrainOptions:
    changed = [text.partition("=")[0].strip() for text in args.set]
    return TrainOptions(
        names_pictures=args.dataset_path is not None or "dataset_path" in changed,
        output_dir=args.output_dir,
        load_dir=args.load_dir,
        transfer=args.transfer,
        is_resumed=args.resume,
        cache_dir=args.cache_dir or args.output_dir / "cache",
        drops_caches=args.drop_unused_caches,
        seed=args.seed,
        n_epochs=args.n_epochs,
        max_steps=args.max_steps,
        set_step=args.set_step,
        sample_interval=args.sample_interval,
        model_save_interval=args.model_save_interval,
        state_seconds=args.state_seconds,
        keep=args.keep,
        fid=FidOptions(
            interval=args.eval_freq,
            num_images=args.eval_images,
            weights=args.inception_weights,
            takes_any_weights=args.any_inception_weights,
        ),
        is_dry_run=args.dry_run,
        command=command,
    )


if __name__ == "__main__":
    sys.exit(flags.run(main))
