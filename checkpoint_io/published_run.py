"""Resume from a published run, which is a folder of seven files.

The optimizers' numbers are positions among the parameters of their network, in the published
order. Rates, betas and the implementation of Adam are never taken from the files.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from checkpoint_io import published, safe_load
from checkpoint_io.checkpoints import complaints
from checkpoint_io.network_state import (
    StateError,
    build_discriminator,
    build_generator,
    checked_moments,
    checked_scaler,
    entry,
)
from checkpoint_io.published import PublishedAverage, PublishedDiscriminator, PublishedGenerator
from checkpoint_io.safe_load import Record
from config.curriculum import Curriculum
from config.stage import EMA_DECAYS, generator_groups
from generators.generators import ImplicitGenerator3d
from system.errors import UsageError

GENERATOR_FILE, DISCRIMINATOR_FILE = "generator.pth", "discriminator.pth"
AVERAGE_FILES = ("ema.pth", "ema2.pth")  # of EMA_DECAYS, in runs of ours too
OPTIMIZER_FILES = ("optimizer_G.pth", "optimizer_D.pth", "scaler.pth")
FILES = (GENERATOR_FILE, DISCRIMINATOR_FILE, *AVERAGE_FILES, *OPTIMIZER_FILES)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedRun:
    """The content of the seven files; averages and optimizers have not been checked yet."""

    folder: Path
    generator: PublishedGenerator
    discriminator: PublishedDiscriminator
    averages: Sequence[PublishedAverage]
    generator_optimizer: Mapping[str, Any]
    discriminator_optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Return the updates done, from the averages' count: the generator's step lags behind."""
        counted = self.averages[0].num_updates
        return self.generator.step if counted is None else counted

    def adapt(self, curriculum: Curriculum, *, keeps_classes: bool = True) -> Curriculum:
        """Return the curriculum with the widths and box of this run's networks.

        keeps_classes: the networks' classes must be the curriculum's; otherwise they are the run's
        too. Raises UsageError if they are not, or a file fits none of the networks that we know.
        """
        settings = curriculum.settings
        classes = self.generator.model, self.discriminator.kind
        for own, wanted in zip(classes, (settings.model, settings.discriminator), strict=True):
            if own != wanted and keeps_classes:
                raise UsageError(
                    f"{self.folder}: was trained with {own}, curriculum {curriculum.name} has "
                    f"{wanted}; give the curriculum of the run"
                )
        with complaints(self.folder / GENERATOR_FILE):
            curriculum = self.generator.adapt(curriculum)
        with complaints(self.folder / DISCRIMINATOR_FILE):
            return self.discriminator.adapt(curriculum)

    def state(self, curriculum: Curriculum) -> dict[str, Any]:
        """Return this run as the content of a training_state.pth, without its curriculum.

        Published files do not say the number of images seen; it starts at 0. curriculum is the
        result of adapt. Raises UsageError if a file does not fit the networks.
        """
        with complaints(self.folder / GENERATOR_FILE):
            generator = build_generator(curriculum, self.generator.parameters)
        with complaints(self.folder / DISCRIMINATOR_FILE):
            discriminator = build_discriminator(curriculum, self.discriminator.parameters)
        groups = generator_groups(generator, has_slow_mapping=curriculum.settings.unique_lr)
        with complaints(self.folder / "optimizer_G.pth"):
            order = [parameter for group, _ in groups for parameter in group]
            names: Iterable[str] = self.generator.parameters
            of_generator = _moments(self.generator_optimizer, generator, names, order)
        with complaints(self.folder / "optimizer_D.pth"):
            order, names = list(discriminator.parameters()), self.discriminator.parameters
            of_discriminator = _moments(self.discriminator_optimizer, discriminator, names, order)
        with complaints(self.folder / "scaler.pth"):
            scaler = checked_scaler(self.scaler)
        return {
            "images_seen": 0,
            "seed": 0,
            "generator": generator.state_dict(),
            "discriminator": discriminator.state_dict(),
            "averages": [self._average(index, generator) for index in range(len(EMA_DECAYS))],
            "generator_optimizer": of_generator,
            "discriminator_optimizer": of_discriminator,
            "scaler": scaler,
            "skipped": 0,
        }

    def _average(self, index: int, generator: ImplicitGenerator3d) -> dict[str, Any]:
        average = self.averages[index]
        with complaints(self.folder / AVERAGE_FILES[index]):
            by_name = self.generator.averaged(average)
        return {
            "decay": EMA_DECAYS[index],
            "num_updates": self.step if average.num_updates is None else average.num_updates,
            "shadow": [by_name[name] for name, _ in generator.named_parameters()],
        }


def _moments(
    optimizer: Mapping[str, Any],
    network: nn.Module,
    names: Iterable[str],
    order: Sequence[nn.Parameter],
) -> dict[str, Any]:
    """Return the state dict of an optimizer of names, with parameters in the given order."""
    groups = entry(optimizer, "param_groups", list)  # the second one of unique_lr is empty
    count = sum(len(entry(group, "params", list)) for group in groups if isinstance(group, dict))
    own = dict(network.named_parameters())
    published_order = [own[name] for name in names]
    if count != len(published_order):
        raise StateError(f"is of {count} parameters, the network has {len(published_order)}")
    moments = checked_moments(optimizer, published_order)
    position = {id(parameter): index for index, parameter in enumerate(order)}
    state = {position[id(published_order[index])]: m for index, m in moments.items()}
    return {"state": state, "param_groups": []}


def is_one(folder: Path) -> bool:
    """Return whether a folder holds (parts of) a published run; UsageError if it cannot be read."""
    if any((folder / name).is_file() for name in OPTIMIZER_FILES):  # ours has none
        return True
    path = folder / GENERATOR_FILE
    return path.is_file() and isinstance(safe_load.read(path), Record)


def open_run(folder: Path) -> PublishedRun:
    """Read the seven files in folder; UsageError if some are missing or hold something else."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder}: to resume a published run all seven files are needed; missing: "
            f"{', '.join(missing)}. --transfer {folder} begins a new run with the generator alone"
        )
    found = []
    for name in FILES:
        with complaints(folder / name):
            found.append(_content(name, safe_load.read(folder / name)))
    generator, discriminator, *averages, of_generator, of_discriminator, scaler = found
    return PublishedRun(
        folder=folder,
        generator=generator,
        discriminator=discriminator,
        averages=averages,
        generator_optimizer=of_generator,
        discriminator_optimizer=of_discriminator,
        scaler=scaler,
    )


def note_changes(source: Path, curriculum: Curriculum, own: Curriculum) -> None:
    """Print on stderr how the networks of the files differ from those of the curriculum."""
    changes = [
        f"{key} {value} (not {getattr(curriculum.settings, key)})"
        for key, value in own.source.items()
        if value != curriculum.source.get(key)
    ]
    if changes:
        print(f"{source}: its networks differ from those of curriculum {curriculum.name}; "
              f"taken from the files: {', '.join(changes)}", file=sys.stderr)  # fmt: skip


def _content(name: str, root: Any) -> Any:
    """Return the content of a file of that name; StateError if it holds something else."""
    if name in OPTIMIZER_FILES:
        if not isinstance(root, dict):
            what = "a scaler" if name == "scaler.pth" else "an optimizer"
            raise StateError(f"holds {published.describe(root)}, not the state dict of {what}")
        return root
    readers = {
        GENERATOR_FILE: published.generator_of,
        DISCRIMINATOR_FILE: published.discriminator_of,
    }
    content = readers.get(name, published.average_of)(root)
    if content is None:
        raise StateError(f"holds {published.describe(root)}")
    return content
