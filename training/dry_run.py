"""Text of --list_curricula and --dry_run."""

from collections.abc import Iterable, Sequence

from torch import nn

import curriculums
from config.curriculum import Curriculum, Ending
from config.schema import StageSettings
from distributed.processes import Place
from image_io.files import Listing
from system.machine import GIB
from training.memory import Way, estimated_bytes
from training.options import dataset_options


def _table(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as text with aligned columns."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    )


def curricula_table() -> str:
    """Return a table of the presets: name, data, networks, sizes and length."""
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


def samples_per_ray(stage: StageSettings) -> int:
    """Return the number of evaluations of the field per ray, coarse and fine."""
    return stage.num_steps * (2 if stage.settings.hierarchical_sample else 1)


def report(
    curriculum: Curriculum,
    places: Sequence[Place],
    listing: Listing,
    ending: Ending,
) -> str:
    """Return what --dry_run prints: the resolved curriculum, its pictures and its end."""
    settings, data = curriculum.settings, dataset_options(curriculum)
    generator, discriminator = curriculum.build_generator(), curriculum.build_discriminator()
    device, world_size = places[0].device, places[0].world_size
    way = Way.at(places[0], curriculum)
    lines = [
        f"curriculum {curriculum.name}, on {world_size} x {device.type}",
        f"images: {listing.count} in {listing.source}, {data.kind}, "
        f"crop {data.crop}, flip {data.flip}, resize {data.resize}",
        f"generator: {settings.model}, {_count(generator)} parameters",
        f"discriminator: {settings.discriminator}, {_count(discriminator)} parameters",
        "",
    ]
    rows: list[list[object]] = [
        ["from step", "size", "batch", "split", "samples", "points/step", "lr G", "lr D", "r1",
         "memory"]
    ]  # fmt: skip
    rows += [_row(curriculum, start, way, world_size) for start, _ in curriculum.stages]
    lines.append(_table(rows))
    lines.append(str(ending))
    lines.append("points/step: samples that the field is asked for, once per rendering of a batch;")
    lines.append("memory: a rough estimate for each process")
    return "\n".join(lines)


def _count(network: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,}"


def _row(curriculum: Curriculum, start: int, way: Way, world_size: int) -> list[object]:
    """Return the row of the stage that begins at start."""
    stage = curriculum.stage_settings(start)
    samples = samples_per_ray(stage)
    points = stage.batch_size * stage.img_size**2 * samples * world_size
    return [
        start,
        stage.img_size,
        f"{stage.batch_size} x {world_size}",
        stage.batch_split,
        samples,
        f"{points:,}",
        f"{stage.gen_lr:g}",
        f"{stage.disc_lr:g}",
        f"{stage.settings.r1_lambda:g}",
        f"{estimated_bytes(curriculum, start, way) / GIB:.1f} GiB",
    ]
