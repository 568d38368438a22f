"""Train a 3D-aware generator from a folder of photos.

    python train.py --curriculum CelebA --output_dir out

One process per visible CUDA device, or one on the CPU. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save and
end the run; `--resume` resumes it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import curriculums
import datasets
from checkpoint_io import checkpoints, published_run
from checkpoint_io.network_state import count_entry
from config import run_length
from config.curriculum import Curriculum
from distributed import processes
from distributed.processes import Place
from image_io.files import Listing
from metrics import inception
from rendering import viewing
from system import flags, machine
from system.errors import UsageError
from training import changes, dry_run, setup, state
from training.fid import FidOptions
from training.loop import train
from training.setup import TrainOptions


def build_parser() -> flags.ArgumentParser:
    """All flags of this command."""
    parser = flags.ArgumentParser(description="Train a 3D-aware generator from a folder of photos.")
    add = parser.add_argument
    add("--curriculum", help="name of a curriculum; see --list_curricula")
    add("--curriculum_file", type=Path, help="Python file with curriculum dicts of your own")
    add("--list_curricula", action="store_true", help="print the curricula and stop")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a curriculum key; "
        "STEP.KEY=VALUE for a stage; repeatable")  # fmt: skip
    add("--dataset_path", help="folder, glob or .zip of pictures")
    add("--cache_dir", type=Path, help="where decoded pictures are kept; default OUTPUT_DIR/cache")
    add("--output_dir", type=Path, default=Path("out"), help="folder of the run")
    add("--load_dir", type=Path, help="go on from the run in this folder, ours or a "
        "published one")  # fmt: skip
    add("--resume", action="store_true", help="go on from --output_dir if it holds a run")
    add("--set_step", type=flags.non_negative_int, help="take this as the number of steps done")
    add("--seed", type=flags.non_negative_int, help="of all random numbers; default: that of the "
        "run that is gone on with, else 0")  # fmt: skip
    add("--n_epochs", type=flags.positive_int, help="stop after so many passes over the data, "
        "after loading further ones; default: no limit")  # fmt: skip
    add("--max_steps", type=flags.positive_int, help="stop at this step")
    add("--sample_interval", type=flags.positive_int, default=200, help="steps between previews")
    add("--model_save_interval", type=flags.positive_int, default=5000, help="steps between "
        "snapshots")  # fmt: skip
    add("--state_seconds", type=flags.positive_float, default=600, help="seconds between saved "
        "states: what a power cut costs at most")  # fmt: skip
    add("--keep", type=flags.positive_int, default=3, help="snapshots kept, the newest ones; "
        "previews of ten times as many steps")  # fmt: skip
    add("--eval_freq", type=flags.positive_int, default=5000, help="steps between FID measurements")
    add("--eval_images", type=flags.positive_int, default=2048, help="images generated for each")
    add("--inception_weights", type=Path, help="FID's network, where it cannot be downloaded")
    add("--any_inception_weights", action="store_true", help="take another file than the "
        "published one; its figures cannot be compared")  # fmt: skip
    flags.add_device(parser)
    add("--num_processes", type=flags.positive_int, help="default: one per visible CUDA device")
    add("--port", type=flags.port_number, default=processes.ANY_PORT, help="rendezvous port "
        "of the processes; 0 is any free one")  # fmt: skip
    add("--dry_run", action="store_true", help="print what would be trained and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check everything that can be checked, then train in one or several processes."""
    args = build_parser().parse_args(argv)
    if args.list_curricula:
        print(dry_run.curricula_table())
        return 0
    typed = _curriculum(args)
    places = processes.plan(args.device, args.num_processes, os.environ)
    _check_fid(places[0], args)
    start = _start(places[0], args)
    curriculum, step = (typed, 0) if start is None else _going_on(start, typed, args)
    listing = _pictures(curriculum, typed)  # before any process or folder is made
    if args.dry_run:
        end = run_length.ending(
            curriculum,
            first_step=step if args.set_step is None else args.set_step,
            num_images=listing.count,
            world_size=places[0].world_size,
            max_steps=args.max_steps,
            n_epochs=args.n_epochs,
        )
        data = setup.dataset_options(curriculum)
        print(dry_run.report(curriculum, places, data, listing, end))
        return 0
    dry_run.require_memory(curriculum, places)
    command = ["train.py", *(sys.argv[1:] if argv is None else argv)]
    options = _options(args, curriculum, command)
    return processes.launch(train, options, places, port=args.port)


def _curriculum(args: argparse.Namespace) -> Curriculum:
    """The curriculum as it was typed, with its changes."""
    if args.curriculum is None:
        names = ", ".join(curriculums.PRESETS)
        raise UsageError(f"--curriculum is missing; choose one of {names}")
    curriculum = curriculums.load(
        args.curriculum, file=args.curriculum_file, overrides=list(args.set)
    )
    if args.dataset_path is None:
        return curriculum
    return curriculum.with_dataset_path(args.dataset_path)


def _names_pictures(args: argparse.Namespace) -> bool:
    """Whether a person said which pictures."""
    keys = [text.partition("=")[0].strip() for text in args.set]
    return args.dataset_path is not None or "dataset_path" in keys


def _options(args: argparse.Namespace, curriculum: Curriculum, command: list[str]) -> TrainOptions:
    return TrainOptions(
        curriculum=curriculum,
        names_pictures=_names_pictures(args),
        output_dir=args.output_dir,
        load_dir=args.load_dir,
        is_resumed=args.resume,
        cache_dir=args.cache_dir or args.output_dir / "cache",
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
        command=command,
    )


def _check_fid(place: Place, args: argparse.Namespace) -> None:
    """Refuse what measuring FID, hours later, would stumble over."""
    needed = viewing.IMAGE_BYTES * args.eval_images
    machine.require_memory(f"--eval_images {args.eval_images}", needed, place.device)
    if args.inception_weights is not None:
        inception.find_weights(args.inception_weights, takes_any=args.any_inception_weights)


def _start(place: Place, args: argparse.Namespace) -> Path | None:
    """What is gone on from, as far as it can be told before the folder is locked.

    Machines without the main process need not have it. A dry run is of a fresh run unless it is
    asked to go on.
    """
    if args.dry_run and not args.resume and args.load_dir is None:
        return None
    try:
        return state.find_start(args.output_dir, args.load_dir, is_resumed=args.resume)
    except UsageError:
        if place.is_main:
            raise
        return None


def _going_on(start: Path, typed: Curriculum, args: argparse.Namespace) -> tuple[Curriculum, int]:
    """The curriculum as it goes on with a run, and the steps that the run has done."""
    if start.is_dir():
        run = published_run.open_run(start)
        return run.adapt(typed), run.step
    content = state.read_state(start, typed)
    with checkpoints.complaints(start):
        step = count_entry(content, "step")
    if _names_pictures(args):
        return typed, step
    before = checkpoints.curriculum_of(start, content)
    return changes.with_pictures_of(typed, before), step


def _pictures(curriculum: Curriculum, typed: Curriculum) -> Listing:
    """What there is to learn from; whose pictures they are if they are gone."""
    try:
        return datasets.find_images(setup.dataset_options(curriculum))
    except UsageError as error:
        if curriculum.settings.dataset_path == typed.settings.dataset_path:
            raise
        raise UsageError(f"the pictures that the run learned from before: {error}") from error


if __name__ == "__main__":
    sys.exit(flags.run(main))
