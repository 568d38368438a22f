"""Text of --list_curricula and --dry_run, and the estimate of a training step's memory."""

import math
from collections.abc import Iterable, Sequence

from torch import nn

import curriculums
from checkpoint_io.network_state import unfilled
from config.curriculum import Curriculum, Ending
from config.schema import StageSettings
from distributed.processes import Place
from image_io.files import Listing
from system import machine
from system.errors import UsageError
from system.machine import GIB
from training import previews
from training.options import dataset_options

BYTES = 4  # of a float32 number
RENDER_ARRAYS = 60  # numbers per point that the renderer keeps for its backward pass
FIELD_ARRAYS = 4  # numbers per point, layer and feature, where the layers are kept
CRITIC_ARRAYS = 30  # numbers per pixel and channel of the discriminator, the R1 penalty's included
ESTIMATE_FACTOR = 2  # how far the estimate may be off
PREVIEW_BYTES = 3 * BYTES * previews.COUNT  # per pixel: as many as are shown at once
PROCESS_BYTES = 400 * 2**20  # Python, PyTorch and its libraries


def _table(rows: Iterable[Iterable[object]]) -> str:
    """Rows as text with aligned columns."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )


def curricula_table() -> str:
    """The presets: name, data, networks, sizes and length."""
    rows: list[list[object]] = [["name", "data", "field", "discriminator", "sizes", "steps"]]
    for name in curriculums.PRESETS:
        curriculum = curriculums.load(name)
        settings = curriculum.settings
        sizes = dict.fromkeys(stage.img_size for _, stage in curriculum.stages)
        rows.append(
            [
                name,
                settings.dataset,
                settings.model,
                settings.discriminator,
                " -> ".join(map(str, sizes)),
                curriculum.end or "no end",
            ]
        )
    return _table(rows)


def samples_per_ray(curriculum: Curriculum, stage: StageSettings) -> int:
    """Evaluations of the field per ray, coarse and fine."""
    return stage.num_steps * (2 if curriculum.settings.hierarchical_sample else 1)


def estimated_memory_bytes(curriculum: Curriculum, stage: StageSettings, *, is_cuda: bool) -> int:
    """Roughly the peak of one process at a stage: parameters and their copies, and activations.

    Counted are arrays that live at once, in float32: six copies of the parameters (gradient, two
    moments, averages), the arrays of the renderer per point, those of the field per point and
    layer where its layers are kept for the backward pass (CUDA), and those of the discriminator
    per pixel and channel. Fitted to a few measured runs; meant to be within a factor of two.
    """
    generator = unfilled(curriculum.build_generator)
    discriminator = unfilled(curriculum.build_discriminator)
    parameters = sum(p.numel() for p in [*generator.parameters(), *discriminator.parameters()])
    images = -(-stage.batch_size // stage.batch_split)
    points = images * stage.img_size**2 * samples_per_ray(curriculum, stage)
    siren = generator.siren
    per_point = RENDER_ARRAYS
    if is_cuda:
        per_point += FIELD_ARRAYS * siren.hidden_dim * (len(siren.network) + 1)
    widths = discriminator.level_widths
    sizes = reversed(discriminator.image_sizes())
    pixels = sum(
        width * size**2 for width, size in zip(widths, sizes, strict=True) if size <= stage.img_size
    )
    numbers = 6 * parameters + points * per_point + stage.batch_size * pixels * CRITIC_ARRAYS
    return BYTES * numbers + (PROCESS_BYTES if not is_cuda else 0)


def require_memory(curriculum: Curriculum, places: Sequence[Place]) -> None:
    """Refuse what cannot possibly fit; the estimate is trusted within a factor of two.

    Raises:
        UsageError: the largest stage, or a preview, needs far more memory than there is.
    """
    device = places[0].device
    if device.type == "mps":  # shares its memory with the machine by rules of its own
        return
    processes = 1 if device.type == "cuda" else places[0].local_world_size
    there = machine.memory_bytes(device)
    for start, stage in curriculum.stages:
        needed = processes * estimated_memory_bytes(
            curriculum, stage, is_cuda=device.type == "cuda"
        )
        if needed > ESTIMATE_FACTOR * there:
            split = min(stage.batch_size, math.ceil(stage.batch_split * needed / there))
            raise UsageError(
                f"curriculum {curriculum.name}, stage {start}: needs about {needed / GIB:.0f} GiB, "
                f"and there are {there / GIB:.0f}; try --set {start}.batch_split={split}, a "
                "smaller batch_size, or fewer num_steps"
            )
    size = curriculum.settings.preview_size
    what = f"curriculum {curriculum.name}: preview_size {size}"
    machine.require_memory(what, PREVIEW_BYTES * size**2, device)


def report(
    curriculum: Curriculum,
    places: Sequence[Place],
    listing: Listing,
    ending: Ending,
) -> str:
    """The resolved curriculum as --dry_run prints it, on the pictures that were found."""
    settings, data = curriculum.settings, dataset_options(curriculum)
    generator, discriminator = curriculum.build_generator(), curriculum.build_discriminator()
    device = places[0].device
    world_size = places[0].world_size
    lines = [
        f"curriculum {curriculum.name}, on {world_size} x {device.type}",
        f"images: {listing.count} in {listing.source} (not yet decoded), {data.kind}, "
        f"crop {data.crop}, flip {data.flip}, resize {data.resize}",
        f"generator: {settings.model}, {_count(generator)} parameters",
        f"discriminator: {settings.discriminator}, {_count(discriminator)} parameters",
        "",
    ]
    rows: list[list[object]] = [
        ["from step", "size", "batch", "split", "samples", "points/step", "lr G", "lr D", "r1",
         "memory"]
    ]  # fmt: skip
    for start, stage in curriculum.stages:
        samples = samples_per_ray(curriculum, stage)
        points = stage.batch_size * stage.img_size**2 * samples
        memory = estimated_memory_bytes(curriculum, stage, is_cuda=device.type == "cuda")
        rows.append(
            [
                start,
                stage.img_size,
                f"{stage.batch_size} x {world_size}",
                stage.batch_split,
                samples,
                f"{points * world_size:,}",
                f"{stage.gen_lr:g}",
                f"{stage.disc_lr:g}",
                f"{curriculum.at(start).r1_lambda:g}",
                f"{memory / GIB:.1f} GiB",
            ]
        )
    lines.append(_table(rows))
    lines.append(str(ending))
    lines.append("points/step: samples that the field is asked for, once per rendering of a batch;")
    lines.append("memory: a rough estimate for each process")
    return "\n".join(lines)


def _count(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"
