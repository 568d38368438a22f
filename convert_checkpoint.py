"""Rewrite a published checkpoint in this project's format.

    python convert_checkpoint.py published/ converted/ --curriculum CelebA
    python convert_checkpoint.py published/generator.pth converted/

A folder of seven files becomes a run: its four networks, and training_state.pth, from which
train.py resumes. A generator becomes generator.pth, with the averages and the discriminator that
lie beside it. The classes and widths of the networks come from the published files; cameras and all
other settings, which these files lack, come from the curriculum.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

import curriculums
from checkpoint_io import checkpoints, published_run
from checkpoint_io.checkpoints import Average
from checkpoint_io.published_run import DISCRIMINATOR_FILE, GENERATOR_FILE
from config.curriculum import Curriculum
from system import flags
from system.errors import UsageError
from system.files import output_folder
from training import state as run_state
from training.state import STATE_FILE, Progress

FILE_NAMES: dict[Average, str] = {"none": GENERATOR_FILE, "ema": "ema.pth", "ema2": "ema2.pth"}
# {file name: (kind, content)}
Files = dict[str, tuple[str, dict[str, Any]]]


def build_parser() -> flags.ArgumentParser:
    """Define all flags of this command."""
    parser = flags.ArgumentParser(description="Rewrite a published checkpoint in our format.")
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="a published generator.pth, or the folder of a "
        "published run")  # fmt: skip
    add("target", type=Path, metavar="OUT", help="folder for the new files")
    add("--curriculum", default="CelebA", help="curriculum of its training: the files lack it")
    add("--curriculum_file", type=Path, help="Python file with curriculum dicts of your own")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read and check all files, then write the converted ones."""
    args = build_parser().parse_args(argv)
    curriculum = curriculums.load(args.curriculum, file=args.curriculum_file)
    if not args.source.is_dir():
        own, files = _of_generator(args.source, curriculum)
    elif all((args.source / name).is_file() for name in published_run.FILES):
        own, files = _of_run(args.source, curriculum)
    else:
        own, files = _of_generator(args.source / GENERATOR_FILE, curriculum)
    there = [name for name in files if (args.target / name).exists()]
    if there:  # even if another command wrote it
        raise UsageError(f"{args.target}: holds {there[0]} already; give a new folder")
    folder = output_folder(args.target, flag="OUT")
    _write(folder, files)
    published_run.note_changes(args.source, curriculum, own)
    print(f"in {folder}: {' '.join(files)}")
    return 0


def _write(folder: Path, files: Files) -> None:
    """Write all files, or none if the disk fails; none of them exists before."""
    try:
        for name, (kind, content) in files.items():
            checkpoints.save(folder / name, kind, content)
    except OSError:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        raise


def _of_run(source: Path, curriculum: Curriculum) -> tuple[Curriculum, Files]:
    """Return the curriculum of a whole run, its training state and its networks."""
    run = published_run.open_run(source)
    curriculum = run.adapt(curriculum, keeps_classes=False)
    state = run_state.published_content(run, curriculum)
    return curriculum, {STATE_FILE: ("training_state", state), **run_state.exports(state)}


def _of_generator(source: Path, curriculum: Curriculum) -> tuple[Curriculum, Files]:
    """Return the curriculum of a generator, its network and the networks beside it."""
    networks: dict[str, tuple[str, nn.Module]] = {}
    for average, name in FILE_NAMES.items():
        saved = checkpoints.load_generator(source, ema=average, published_curriculum=curriculum)
        if not saved.is_published:
            raise UsageError(f"{source}: is in our format already")
        if saved.average == average:
            networks[name] = ("generator", saved.generator)
            own, step = saved.curriculum, saved.step
    critic = checkpoints.beside(source, DISCRIMINATOR_FILE)
    if critic.is_file():
        own, judge = checkpoints.load_discriminator(critic, own)
        networks[DISCRIMINATOR_FILE] = ("discriminator", judge)
    about = run_state.about_run(own, Progress(step=step))
    return own, {
        name: (kind, {**about, "state": network.state_dict()})
        for name, (kind, network) in networks.items()
    }


if __name__ == "__main__":
    sys.exit(flags.run(main))
