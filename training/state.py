"""Training state on disk for exact resume, and the networks exported for other commands.

`training_state.pth` holds everything that a resumed run needs. `generator.pth`, `ema.pth`,
`ema2.pth` and `discriminator.pth` are exported from it; each carries its curriculum.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from checkpoint_io import checkpoints
from checkpoint_io.network_state import (
    StateError,
    checked_state,
    checked_tensor,
    count_entry,
    entry,
    load_moments,
    load_scaler,
)
from checkpoint_io.pickle_scan import shown
from checkpoint_io.published_run import AVERAGE_FILES, PublishedRun
from config.curriculum import Curriculum
from system.errors import UsageError
from system.files import replaced_folder
from training.adversarial import AdversarialGame
from training.ema import ExponentialMovingAverage

STATE_FILE = "training_state.pth"
SNAPSHOT_PREFIX = "snapshot_"


class NotFinite(Exception):
    """A state holds an infinity or NaN, and must not be saved."""


@dataclass(slots=True)
class Progress:
    """Steps done, and real images seen by all processes together."""

    step: int = 0
    images_seen: int = 0


def about_run(curriculum: Curriculum, progress: Progress) -> dict[str, Any]:
    """Return the entries that every file of a run has: curriculum, step, versions."""
    return {
        "curriculum_name": curriculum.name,
        "curriculum": dict(curriculum.source),
        "step": progress.step,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }


def content_of(game: AdversarialGame, curriculum: Curriculum, progress: Progress) -> dict[str, Any]:
    """Return the whole state of training, tensors not copied; NotFinite if it is not finite."""
    require_finite(game)
    return {
        **about_run(curriculum, progress),
        "images_seen": progress.images_seen,
        "seed": game.seed,
        "generator": game.generator.state_dict(),
        "discriminator": game.discriminator.state_dict(),
        "averages": [average.state_dict() for average in game.averages],
        "generator_optimizer": game.generator_optimizer.state_dict(),
        "discriminator_optimizer": game.discriminator_optimizer.state_dict(),
        # A scale that stays 1 would be too small for a run that goes on in float16.
        "scaler": game.scaler.state_dict() if game.precision.is_scaled else {},
        "skipped": int(game.health.skipped),
        "augment_probability": _probability_of(game),
    }


def _probability_of(game: AdversarialGame) -> float:
    return 0.0 if game.augmentation is None else float(game.augmentation.probability)


def copied(content: Any) -> Any:
    """Return a copy of nested dicts and lists whose tensors are in the memory of the CPU."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return {key: copied(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(copied(value) for value in content)
    return content


def write_state(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a whole state of training into folder, then the networks exported from it."""
    checkpoints.save(folder / STATE_FILE, "training_state", content)
    export(folder, content)


def save_state(
    folder: Path, game: AdversarialGame, curriculum: Curriculum, progress: Progress
) -> None:
    """Write state and exported networks into folder, or raise NotFinite and write nothing."""
    write_state(folder, content_of(game, curriculum, progress))


def require_finite(game: AdversarialGame) -> None:
    """Raise NotFinite, with the tensor's name, unless networks, averages and moments are finite."""
    named: dict[str, object] = {
        "generator": game.generator.state_dict(),
        "generator's optimizer": game.generator_optimizer.state_dict()["state"],
        "discriminator": game.discriminator.state_dict(),
        "discriminator's optimizer": game.discriminator_optimizer.state_dict()["state"],
        "average": [average.shadow for average in game.averages],
    }
    for name, tensors in named.items():
        for where, tensor in _tensors(tensors, ""):
            if not tensor.isfinite().all():
                raise NotFinite(f"{name}: {where.strip('.')} is not finite")


def _tensors(value: object, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the path and value of every tensor in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(item, f"{where}.{key}")


def export(folder: Path, content: Mapping[str, Any]) -> None:
    """Write generator.pth, ema.pth, ema2.pth and discriminator.pth of a state into folder."""
    for file, (kind, network) in exports(content).items():
        checkpoints.save(folder / file, kind, network)


def exports(content: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return kind and content of each of the files with networks of a state, by name."""
    about = {key: content[key] for key in ("curriculum_name", "curriculum", "step", "versions")}
    raw = content["generator"]
    found = {
        "generator.pth": ("generator", {**about, "state": raw}),
        "discriminator.pth": ("discriminator", {**about, "state": content["discriminator"]}),
    }
    for file, average in zip(AVERAGE_FILES, content["averages"], strict=True):
        averaged = dict(zip(raw, average["shadow"], strict=True))  # a generator has no buffers
        found[file] = ("generator", {**about, "state": averaged})
    return found


def save_snapshot(
    folder: Path, game: AdversarialGame, curriculum: Curriculum, progress: Progress, *, keep: int
) -> Path:
    """Write the state into snapshot_STEP, and remove the oldest snapshots beyond keep."""
    snapshot = folder / f"{SNAPSHOT_PREFIX}{progress.step:08d}"
    with replaced_folder(snapshot) as draft:
        save_state(draft, game, curriculum, progress)
    ours = sorted(folder.glob(f"{SNAPSHOT_PREFIX}" + "[0-9]" * 8))
    for old in ours[: max(0, len(ours) - keep)]:
        if old != snapshot:
            shutil.rmtree(old, ignore_errors=True)
    return snapshot


def step_of(folder: Path) -> int:
    """Return the step of the state in folder, 0 if there is none that can be read."""
    path = folder / STATE_FILE
    try:
        with checkpoints.complaints(path):
            return count_entry(checkpoints.read(path, "training_state"), "step")
    except UsageError:
        return 0


def seed_of(content: Mapping[str, Any]) -> int:
    """Return a training state's seed, 0 for a published run; UsageError if the entry is no seed."""
    with checkpoints.complaints(Path(STATE_FILE)):
        return count_entry({"seed": 0, **content}, "seed")


def read_state(path: Path, curriculum: Curriculum) -> dict[str, Any]:
    """Read a state of ours, of networks with the scales of the curriculum's."""
    content = checkpoints.read(path, "training_state")
    _refuse_other_scales(path, checkpoints.curriculum_of(path, content), curriculum)
    return content


def published_content(run: PublishedRun, curriculum: Curriculum) -> dict[str, Any]:
    """Return a published run as a training state; curriculum is the result of run.adapt."""
    return {**about_run(curriculum, Progress(step=run.step)), **run.state(curriculum)}


def _refuse_other_scales(path: Path, trained: Curriculum, wanted: Curriculum) -> None:
    """Refuse changed values of keys that change a network's output but not its shapes."""
    keys = ("model", "box_side", "density_scale", "surface_width")
    before, now = ({key: getattr(part.settings, key) for key in keys} for part in (trained, wanted))
    changed = [key for key in keys if before[key] != now[key]]
    if not changed:
        return
    how = " ".join(f"--set {key}={before[key]}" for key in changed)
    if before["surface_width"] is None:
        how += _without_slopes(wanted.source)
    if trained.name != wanted.name:
        how = f"--curriculum {trained.name}, with which it was trained"
    raise UsageError(
        f"{path}: was trained with {', '.join(f'{key} {before[key]}' for key in changed)}, "
        f"curriculum {wanted.name} has {', '.join(str(now[key]) for key in changed)}; "
        f"resume with {how}"
    )


def _without_slopes(source: Mapping[Any, Any]) -> str:
    """Return the flags that turn the terms on slopes off, which need a surface."""
    parts = {"": source} | {f"{k}.": v for k, v in source.items() if isinstance(k, int)}
    return "".join(
        f" --set {where}{key}=0"
        for where, part in parts.items()
        for key in ("eikonal_lambda", "smoothness_lambda")
        if part.get(key, 0) > 0
    )


def load_state(content: Mapping[str, Any], game: AdversarialGame) -> Progress:
    """Validate a state, then load it; UsageError if it is damaged or of other networks."""
    try:
        progress = _checked_and_loaded(content, game)
        require_finite(game)
        return progress
    except NotFinite as error:
        raise UsageError(f"{STATE_FILE} cannot be resumed: {error}") from error
    except StateError as error:
        other = shown(str(content.get("curriculum_name")))
        raise UsageError(
            f"{STATE_FILE}: {error}; it was trained with curriculum {other}, whose networks must "
            "be those of the curriculum that is asked for"
        ) from error


def _checked_and_loaded(content: Mapping[str, Any], game: AdversarialGame) -> Progress:
    step, images_seen, skipped = (
        count_entry(content, key) for key in ("step", "images_seen", "skipped")
    )
    for name in ("generator", "discriminator"):
        network: nn.Module = getattr(game, name)
        network.load_state_dict(checked_state(network, content.get(name)))
    averages = entry(content, "averages", list)
    if len(averages) != len(game.averages) or not all(isinstance(a, dict) for a in averages):
        raise StateError(f"has {len(averages)} averages, not {len(game.averages)}")
    for own, state in zip(game.averages, averages, strict=True):
        load_average(own, entry(state, "shadow", list), count_entry(state, "num_updates"))
    for name in ("generator_optimizer", "discriminator_optimizer"):
        optimizer: torch.optim.Optimizer = getattr(game, name)
        load_moments(optimizer, content.get(name))
    load_scaler(game.scaler, content.get("scaler"))
    game.health.skipped.fill_(skipped)
    _load_probability(content, game)
    return Progress(step, images_seen)


def _load_probability(content: Mapping[str, Any], game: AdversarialGame) -> None:
    """Load the adaptive probability of augmentation; states of earlier versions have none."""
    probability = entry({"augment_probability": 0.0, **content}, "augment_probability", float)
    if not 0 <= probability <= 1:
        raise StateError(f"has {probability} as 'augment_probability'")
    if game.augmentation is not None and game.augmentation.is_adaptive:
        game.augmentation.probability.fill_(probability)


def load_average(
    average: ExponentialMovingAverage, values: Sequence[object], num_updates: int
) -> None:
    """Check averages in the parameters' order, then load them; StateError if they do not fit."""
    if len(values) != len(average.shadow):
        raise StateError(f"has {len(values)} averages for {len(average.shadow)} parameters")
    pairs = zip(values, average.shadow, strict=True)
    shadow = [
        checked_tensor(f"average {index}", value, own.shape)
        for index, (value, own) in enumerate(pairs)
    ]
    average.load_state_dict({"shadow": shadow, "num_updates": num_updates})
