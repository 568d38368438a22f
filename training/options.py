"""Options of a training run, as typed, and the dataset options of a curriculum."""

from dataclasses import dataclass
from pathlib import Path

import datasets
from config.curriculum import Curriculum


@dataclass(frozen=True, slots=True, kw_only=True)
class FidOptions:
    """Options of the FID measurements while training.

    interval: steps between measurements; 0 turns FID off.
    num_images: images generated for each measurement.
    weights: file of Inception's weights; None downloads the published ones.
    takes_any_weights: accept a file with other weights than the published ones.
    """

    interval: int
    num_images: int
    weights: Path | None
    takes_any_weights: bool

    def is_due(self, step: int) -> bool:
        """Return whether FID is measured after so many steps."""
        return self.interval > 0 and step % self.interval == 0

    def is_ever_due(self, first: int, last: int | None) -> bool:
        """Return whether FID is measured after any step in first + 1 .. last; None is no end."""
        if self.interval == 0:
            return False
        return last is None or last // self.interval > first // self.interval


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of the command line apart from the curriculum; the same in every process.

    names_pictures: the command names a dataset path; otherwise a resumed run keeps its own.
    load_dir: folder of the run to continue in output_dir; None if there is none.
    transfer: run folder or generator whose networks a new run begins with; None for fresh ones.
    is_resumed: continue the run in output_dir if there is one.
    drops_caches: remove what cache_dir holds of the same pictures and no run uses.
    seed: None takes the seed of the resumed run, or 0.
    n_epochs, max_steps: None for no limit.
    set_step: number of steps to count as done; None takes the resumed run's.
    sample_interval, model_save_interval: steps between previews, and between snapshots.
    state_seconds: seconds between saved states.
    keep: number of snapshots that stay; previews of ten times as many steps stay.
    is_dry_run: stop before the first step, and write only what shows and caches the pictures.
    command: the words of the command line, for options.json.
    """

    names_pictures: bool
    output_dir: Path
    load_dir: Path | None
    transfer: Path | None
    is_resumed: bool
    cache_dir: Path
    drops_caches: bool
    seed: int | None
    n_epochs: int | None
    max_steps: int | None
    set_step: int | None
    sample_interval: int
    model_save_interval: int
    state_seconds: float
    keep: int
    fid: FidOptions
    is_dry_run: bool
    command: list[str]


def dataset_options(curriculum: Curriculum) -> datasets.DatasetOptions:
    """Return the options of the curriculum's dataset."""
    settings = curriculum.settings
    return datasets.dataset_options(
        settings.dataset,
        settings.dataset_path,
        crop=settings.crop,
        flip=settings.flip,
        resize=settings.resize,
        num_images=settings.num_images,
    )
