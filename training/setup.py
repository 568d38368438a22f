"""Setup of a training run before its first step: networks, state, real images, options.json."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import datasets
from config.curriculum import Curriculum
from config.stage import Precision
from datasets import ImageSet
from distributed import collectives
from distributed.processes import Place
from image_io import png, survey
from system import machine
from system.errors import UsageError
from system.files import json_bytes, remove_drafts, write_file
from training import notes, state
from training.adversarial import AdversarialGame
from training.augmentation import Augmentation, augmentation_of
from training.options import TrainOptions, dataset_options
from training.penalty import require_affine
from training.start import (
    OPTIONS_FILE,
    Start,
    agree,
    changes,
    data_changes,
    data_record,
    first_other,
    require_unchanged,
)
from training.state import Progress
from training.transfer import load_networks

DATASET_PICTURE = "dataset.png"


def choose_precision(
    wanted: Literal["auto", "fp32", "fp16", "bf16"], device: torch.device, *, is_scaled: bool
) -> Precision:
    """Return the precision of training; "auto" is fp16 on CUDA and fp32 elsewhere.

    Raises:
        UsageError: fp16 is wanted on the CPU.
    """
    if wanted == "auto":
        wanted = "fp16" if device.type == "cuda" else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a CUDA device; on the CPU choose fp32 or bf16")
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[wanted]
    return Precision(
        autocast_dtype=dtype, is_scaled=is_scaled and wanted == "fp16" and device.type == "cuda"
    )


def build_game(place: Place, curriculum: Curriculum, seed: int) -> AdversarialGame:
    """Return networks and optimizers at the start, equal on all ranks."""
    settings = curriculum.settings
    torch.manual_seed(seed)
    generator = curriculum.build_generator().to(place.device)
    discriminator = curriculum.build_discriminator().to(place.device)
    return AdversarialGame(
        generator,
        discriminator,
        curriculum.optimizer_options(),
        choose_precision(settings.precision, place.device, is_scaled=not settings.disable_scaler),
        seed=seed,
        rank=place.rank,
        synchronize=collectives.average if place.world_size > 1 else None,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Setup:
    """A run before its next step: networks and optimizers, progress, and images by size."""

    curriculum: Curriculum
    game: AdversarialGame
    progress: Progress
    images: dict[int, ImageSet]


def set_up(place: Place, options: TrainOptions, start: Start) -> Setup:
    """Prepare everything that a process needs before the first step; equal on all ranks.

    The main process must hold the lock of the output folder.

    Raises:
        UsageError: the state or the pictures cannot be used, differ between machines, or the
            output folder cannot be written.
    """
    if place.is_main:
        require_unchanged(start, options.output_dir)
    start = agree(place, start, options)
    game = build_game(place, start.curriculum, start.seed)
    stages = [start.curriculum.at(first) for first, _ in start.curriculum.stages]
    if any(stage.r1_lambda + stage.r2_lambda > 0 for stage in stages):
        require_affine(game.discriminator)
    game.augmentation, about = _augmentation(place, start)
    progress = Progress()
    if start.content is not None:
        progress = state.load_state(start.content, game)
        start.content = None  # frees its memory
    elif start.networks is not None:
        load_networks(start.networks, game)
        start.networks = None
    progress.step = start.step
    # Already equal, unless machines draw different initial parameters.
    collectives.broadcast_state(game.tensors())
    images = _open_all(place, options, start)
    _require_same_images(images)
    if place.is_main:
        for note in notes.of_start(place, start, images):
            print(f"note: {note}", file=sys.stderr)
        for line in filter(None, (start.transfer, about)):
            print(line, file=sys.stderr)
        _print_changes(start, images)
        try:
            _show_pictures(options.output_dir / DATASET_PICTURE, start, images)
            if not options.is_dry_run:
                _begin_folder(place, options, start, game, progress, images)
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UsageError(f"--output_dir {options.output_dir}: {reason}") from error
    return Setup(curriculum=start.curriculum, game=game, progress=progress, images=images)


def _augmentation(place: Place, start: Start) -> tuple[Augmentation | None, str]:
    """Return the augmentation of the run, if any, and a line about it."""
    return augmentation_of(
        start.curriculum.settings,
        start.listing.count,
        is_built_in=dataset_options(start.curriculum).kind == "ToyCars",
        device=place.device,
    )


def _begin_folder(
    place: Place,
    options: TrainOptions,
    start: Start,
    game: AdversarialGame,
    progress: Progress,
    images: dict[int, ImageSet],
) -> None:
    """Bring the output folder up to date and write options.json."""
    remove_drafts(options.output_dir)
    own = options.output_dir / state.STATE_FILE
    if start.path is not None and start.path.resolve() == own.resolve():
        # The run may have been killed between saving the state and exporting the networks.
        content = state.content_of(game, start.curriculum, progress)
        state.export(options.output_dir, content)
    _write_options(place, options, start, game, images)


def _show_pictures(path: Path, start: Start, images: dict[int, ImageSet]) -> None:
    """Print and draw which pictures the discriminator will see, at the size that comes first."""
    curriculum, listing = start.curriculum, start.listing
    found = images[curriculum.stage_settings(start.step).img_size]
    total = listing.count + len(listing.skipped)
    size, options = found.image_size, found.options
    shown = min(len(found), survey.NUM_SHOWN)
    lines = [
        f"{len(found)} of {total} pictures are used; the first {shown} at {size} x {size} pixels, "
        f"crop {options.crop}, flip {options.flip}, resize {options.resize}",
        *survey.survey(listing),
    ]
    png.save_png(path, survey.sheet(found.pixels, lines))
    for line in [*lines, f"the first {shown} are shown in {path}"]:
        print(f"dataset: {line}", file=sys.stderr)


def _print_changes(start: Start, images: dict[int, ImageSet]) -> None:
    """Print the differences between the run and the checkpoint that it resumes from, if any."""
    if start.before is None:
        return
    found = changes(start.before, start.curriculum)
    if start.path is not None and start.path.is_file():
        found += data_changes(start.path.parent, data_record(images))
    if start.seed != start.seed_before:
        found.append(f"seed {start.seed_before} -> {start.seed}")
    if found:
        print(f"changed since the last save: {', '.join(found)}", file=sys.stderr)


def _require_same_images(images: dict[int, ImageSet]) -> None:
    """Refuse machines whose disks hold different pictures.

    Raises:
        UsageError: says which ranks differ, on all ranks.
    """
    for size, image_set in images.items():
        counts = collectives.values_of_all(len(image_set))
        checksums = collectives.values_of_all(image_set.checksum)
        rank = first_other(list(zip(counts, checksums, strict=True)))
        if rank is None:
            continue
        numbers = f"{counts[rank]} pictures and rank 0 {counts[0]}"
        if counts[rank] == counts[0]:
            numbers = f"{counts[0]} pictures as rank 0, but not the same ones"
        raise UsageError(
            f"rank {rank} has {numbers}, at {size} px; copy the data set to all machines"
        )


def _open_all(place: Place, options: TrainOptions, start: Start) -> dict[int, ImageSet]:
    """Return the real images at every size that is still to come."""
    curriculum = start.curriculum
    sizes = {curriculum.stage_settings(start.step).img_size}
    sizes |= {stage.img_size for first, stage in curriculum.stages if first >= start.step}
    if not place.is_main:
        collectives.wait_for_all()  # the main process decodes, with a progress bar
    elif options.drops_caches:
        data, cache_dir = dataset_options(curriculum), options.cache_dir
        found = datasets.drop_unused_caches(data, sizes, listing=start.listing, cache_dir=cache_dir)
        print(found, file=sys.stderr)
    images = {
        size: datasets.open_images(
            dataset_options(curriculum),
            size,
            listing=start.listing,
            cache_dir=options.cache_dir,
            skipped_file=options.output_dir / "skipped.txt" if place.is_main else None,
            show_progress=place.is_main,
            names_skipped=size == min(sizes),  # it is the same line for all sizes
        )
        for size in sorted(sizes)
    }
    if place.is_main:
        collectives.wait_for_all()
    return images


def _write_options(
    place: Place,
    options: TrainOptions,
    start: Start,
    game: AdversarialGame,
    images: dict[int, ImageSet],
) -> None:
    content = {
        "command": options.command,
        "curriculum_name": start.curriculum.name,
        "curriculum": {str(key): value for key, value in start.curriculum.source.items()},
        "images": data_record(images),
        "seed": start.seed,
        "first_step": start.step,
        "start_from": str(start.path) if start.path else None,
        "processes": place.world_size,
        "device": str(place.device),
        "field": game.field_path(),
        "versions": machine.versions(),
    }
    write_file(options.output_dir / OPTIONS_FILE, json_bytes(content, indent=2))
