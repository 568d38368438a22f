"""BOUNDARY: a training run before its first step: networks, what it goes on from, real images."""

import json
import platform
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import datasets
from config.curriculum import Curriculum
from config.stage import Precision
from datasets import ImageSet
from distributed import collectives
from distributed.processes import Place
from system.errors import UsageError
from system.files import remove_drafts, replaced
from system.flags import Screen
from training import changes, state
from training.adversarial import AdversarialGame
from training.fid import FidOptions
from training.state import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What was typed, resolved; the same in every process."""

    curriculum: Curriculum
    names_pictures: bool  # a person did; else they are those of the run that is gone on with
    output_dir: Path
    load_dir: Path | None
    is_resumed: bool
    cache_dir: Path
    seed: int | None  # None is that of the run that is gone on with, else 0
    n_epochs: int | None
    max_steps: int | None
    set_step: int | None
    sample_interval: int
    model_save_interval: int
    state_seconds: float
    keep: int
    fid: FidOptions
    command: list[str]


def dataset_options(curriculum: Curriculum) -> datasets.DatasetOptions:
    """The data set of a curriculum."""
    settings = curriculum.settings
    return datasets.dataset_options(
        settings.dataset,
        settings.dataset_path,
        crop=settings.crop,
        flip=settings.flip,
        resize=settings.resize,
        num_images=settings.num_images,
    )


def choose_precision(
    wanted: Literal["auto", "fp32", "fp16", "bf16"], device: torch.device, *, is_scaled: bool
) -> Precision:
    """Half precision with loss scaling on CUDA, float32 elsewhere, unless asked otherwise."""
    if wanted == "auto":
        wanted = "fp16" if device.type == "cuda" else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a CUDA device; on the CPU choose fp32 or bf16")
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[wanted]
    return Precision(
        autocast_dtype=dtype, is_scaled=is_scaled and wanted == "fp16" and device.type == "cuda"
    )


def build_game(place: Place, options: TrainOptions, seed: int) -> AdversarialGame:
    """Networks and optimizers at the start, equal on all ranks."""
    settings = options.curriculum.settings
    torch.manual_seed(seed)
    generator = options.curriculum.build_generator().to(place.device)
    discriminator = options.curriculum.build_discriminator().to(place.device)
    return AdversarialGame(
        generator,
        discriminator,
        options.curriculum.optimizer_options(),
        choose_precision(settings.precision, place.device, is_scaled=not settings.disable_scaler),
        seed=seed,
        rank=place.rank,
        synchronize=collectives.average if place.world_size > 1 else None,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Setup:
    """A run before its next step: networks and optimizers, progress, and images by size.

    curriculum: that of the options, with the pictures of the run that is gone on with.
    """

    curriculum: Curriculum
    game: AdversarialGame
    progress: Progress
    images: dict[int, ImageSet]


def set_up(place: Place, options: TrainOptions) -> Setup:
    """Everything that a process needs before the first step; equal on all ranks.

    The main process must have the output folder for itself.

    Raises:
        UsageError: there is nothing to go on from, or nothing to learn from, or no room.
    """
    _require_same_start(options)
    start = _find_start(place, options)
    content = state.agree_on_start(place, start, options.curriculum)
    before = None if content is None else state.curriculum_of(content)
    if before is not None and not options.names_pictures:
        curriculum = changes.with_pictures_of(options.curriculum, before)
        options = replace(options, curriculum=curriculum)
    seed = options.seed
    if seed is None:
        seed = 0 if content is None else state.seed_of(content)
    game = build_game(place, options, seed)
    progress = Progress()
    if content is not None:
        progress = state.load_state(content, game)
    if options.set_step is not None:
        progress.step = options.set_step
    # Equal already, unless machines differ in how they draw the first parameters.
    collectives.broadcast_state(game.tensors())
    images = _open_all(place, options, progress)
    _require_same_images(images)
    if place.is_main:
        for note in _notes(place, options.curriculum, progress, images):
            print(f"note: {note}", file=Screen())
        if before is not None and content is not None:
            _tell_changes(start, before, state.seed_of(content), seed, options, images)
        try:
            remove_drafts(options.output_dir)
            own = options.output_dir / state.STATE_FILE
            if start is not None and start.resolve() == own.resolve():
                # A kill may have come between the state and what is exported from it.
                state.export(options.output_dir, game, options.curriculum, progress)
            _write_options(place, options, game, start, progress, images)
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            raise UsageError(f"--output_dir {options.output_dir}: {reason}") from error
    return Setup(curriculum=options.curriculum, game=game, progress=progress, images=images)


def _notes(
    place: Place, curriculum: Curriculum, progress: Progress, images: dict[int, ImageSet]
) -> list[str]:
    """What a person may not have meant about the pictures, and is no mistake."""
    notes = []
    size, largest = max(images.items())
    if largest.num_small:
        crop = curriculum.settings.crop
        least = f"{size} px and are enlarged"
        if isinstance(crop, int) and crop > size:
            least = f"the crop of {crop} px; of each the largest square is taken"
        notes.append(f"{largest.num_small} of {len(largest)} pictures are smaller than {least}")
    current = curriculum.stage_settings(progress.step)
    coming = [stage for start, stage in curriculum.stages if start > progress.step]
    batch = place.world_size * max(stage.batch_size for stage in [current, *coming])
    if len(largest) < batch:
        notes.append(f"{len(largest)} pictures are fewer than a batch of {batch}, which repeats "
                     "some of them")  # fmt: skip
    return notes


def _tell_changes(
    start: Path | None,
    before: Curriculum,
    seed_before: int,
    seed: int,
    options: TrainOptions,
    images: dict[int, ImageSet],
) -> None:
    """Say on the screen what the run does otherwise than before, if anything."""
    found = changes.changes(before, options.curriculum)
    if start is not None and start.is_file():
        found += changes.data_changes(start.parent, changes.data_record(images))
    found += [] if seed == seed_before else [f"seed {seed_before} -> {seed}"]
    if found:
        print(f"changed since the last save: {', '.join(found)}", file=Screen())


def _find_start(place: Place, options: TrainOptions) -> Path | None:
    """The state that this rank may offer: rank 0, or the first rank of a machine that resumes."""
    if place.is_main:
        return state.find_start(options.output_dir, options.load_dir, is_resumed=options.is_resumed)
    own = options.output_dir / state.STATE_FILE
    is_offered = options.is_resumed and place.local_rank == 0 and own.is_file()
    return own if is_offered else None


def _require_same_start(options: TrainOptions) -> None:
    """Machines must have been given the same command; paths may differ.

    Raises:
        UsageError: names what differs, on all ranks.
    """
    source = {str(k): v for k, v in options.curriculum.source.items() if k != "dataset_path"}
    given = {
        "--curriculum, --set or published --load_dir": [options.curriculum.name, source],
        "--seed": options.seed,
        "--n_epochs": options.n_epochs,
        "--max_steps": options.max_steps,
        "--set_step": options.set_step,
        "--eval_freq": options.fid.interval,
        "--eval_images": options.fid.num_images,
    }
    for flag, value in given.items():
        text = json.dumps(value, sort_keys=True, default=str)
        found = collectives.values_of_all(zlib.crc32(text.encode()))
        rank = _first_other(found)
        if rank is not None:
            raise UsageError(
                f"rank {rank} was started with another {flag} than rank 0; give all machines the "
                "same command"
            )


def _require_same_images(images: dict[int, ImageSet]) -> None:
    """Machines with disks of their own must hold the same pictures.

    Raises:
        UsageError: says which ranks differ, on all ranks.
    """
    for size, image_set in images.items():
        counts = collectives.values_of_all(len(image_set))
        checksums = collectives.values_of_all(image_set.checksum)
        rank = _first_other(list(zip(counts, checksums, strict=True)))
        if rank is None:
            continue
        numbers = f"{counts[rank]} pictures and rank 0 {counts[0]}"
        if counts[rank] == counts[0]:
            numbers = f"{counts[0]} pictures as rank 0, but not the same ones"
        raise UsageError(
            f"rank {rank} has {numbers}, at {size} px; copy the data set to all machines"
        )


def _first_other(values: Sequence[object]) -> int | None:
    """The first rank whose value is not that of rank 0."""
    return next((rank for rank, value in enumerate(values) if value != values[0]), None)


def _open_all(place: Place, options: TrainOptions, progress: Progress) -> dict[int, ImageSet]:
    """The real images at every size that is still to come."""
    curriculum = options.curriculum
    sizes = {curriculum.stage_settings(progress.step).img_size}
    sizes |= {stage.img_size for start, stage in curriculum.stages if start >= progress.step}
    if not place.is_main:
        collectives.wait_for_all()  # the main process decodes, with a progress bar
    images = {
        size: datasets.open_images(
            dataset_options(curriculum),
            size,
            cache_dir=options.cache_dir,
            skipped_file=options.output_dir / "skipped.txt" if place.is_main else None,
            show_progress=place.is_main,
        )
        for size in sorted(sizes)
    }
    if place.is_main:
        collectives.wait_for_all()
    return images


def _write_options(
    place: Place,
    options: TrainOptions,
    game: AdversarialGame,
    start: Path | None,
    progress: Progress,
    images: dict[int, ImageSet],
) -> None:
    content = {
        "command": options.command,
        "curriculum_name": options.curriculum.name,
        "curriculum": {str(key): value for key, value in options.curriculum.source.items()},
        "images": changes.data_record(images),
        "seed": game.seed,
        "first_step": progress.step,
        "start_from": str(start) if start else None,
        "processes": place.world_size,
        "device": str(place.device),
        "field": game.field_path(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    with replaced(options.output_dir / changes.OPTIONS_FILE) as file:
        file.write(json.dumps(content, indent=2).encode())
