"""BOUNDARY: a run on disk: exact resume, and the networks that are exported for other commands.

`training_state.pth` is the one source of truth of a run. `generator.pth`, `ema.pth`, `ema2.pth` and
`discriminator.pth` are exported from it; each carries its curriculum.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import checkpoints
from curriculum import Curriculum
from flags import UsageError
from training.adversarial import AdversarialGame

STATE_FILE = "training_state.pth"
AVERAGE_FILES = ("ema.pth", "ema2.pth")  # in the order of the game's averages
SNAPSHOT_PREFIX = "snapshot_"


@dataclass(slots=True)
class Progress:
    """How far a run is. images_seen: real images, over all processes."""

    step: int = 0
    images_seen: int = 0


def _about(curriculum: Curriculum, progress: Progress) -> dict[str, Any]:
    return {
        "curriculum_name": curriculum.name,
        "curriculum": dict(curriculum.source),
        "step": progress.step,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }


def save_state(
    folder: Path, game: AdversarialGame, curriculum: Curriculum, progress: Progress
) -> None:
    """Write the whole state of training into folder, then the networks exported from it."""
    checkpoints.save(
        folder / STATE_FILE,
        "training_state",
        {
            **_about(curriculum, progress),
            "images_seen": progress.images_seen,
            "seed": game.seed,
            "generator": game.generator.state_dict(),
            "discriminator": game.discriminator.state_dict(),
            "averages": [average.state_dict() for average in game.averages],
            "generator_optimizer": game.generator_optimizer.state_dict(),
            "discriminator_optimizer": game.discriminator_optimizer.state_dict(),
            "scaler": game.scaler.state_dict(),
            "skipped": int(game.health.skipped),
        },
    )
    export(folder, game, curriculum, progress)


def export(folder: Path, game: AdversarialGame, curriculum: Curriculum, progress: Progress) -> None:
    """Write generator.pth, ema.pth, ema2.pth and discriminator.pth into folder."""
    about = _about(curriculum, progress)
    raw = game.generator.state_dict()
    names = [name for name, _ in game.generator.named_parameters()]
    exports: list[tuple[str, str, Mapping[str, Any]]] = [("generator.pth", "generator", raw)]
    for file, average in zip(AVERAGE_FILES, game.averages, strict=True):
        averaged = {**raw, **dict(zip(names, average.shadow, strict=True))}
        exports.append((file, "generator", averaged))
    exports.append(("discriminator.pth", "discriminator", game.discriminator.state_dict()))
    for file, kind, state in exports:
        checkpoints.save(folder / file, kind, {**about, "state": state})


def save_snapshot(
    folder: Path, game: AdversarialGame, curriculum: Curriculum, progress: Progress, *, keep: int
) -> Path:
    """Write the state once more, into a folder of its own, and drop the oldest beyond keep."""
    snapshot = folder / f"{SNAPSHOT_PREFIX}{progress.step:08d}"
    save_state(snapshot, game, curriculum, progress)
    ours = sorted(folder.glob(f"{SNAPSHOT_PREFIX}" + "[0-9]" * 8))
    for old in ours[: max(0, len(ours) - keep)]:
        if old != snapshot:
            shutil.rmtree(old, ignore_errors=True)
    return snapshot


def seed_of(path: Path) -> int:
    """The seed of the run whose state is in path.

    Raises:
        UsageError: the file cannot be read.
    """
    return int(checkpoints.read(path, "training_state")["seed"])


def load_state(path: Path, game: AdversarialGame) -> Progress:
    """Take over the state of training from path; the game's own options stay.

    Raises:
        UsageError: the file cannot be read, or belongs to other networks than the curriculum's.
    """
    content = checkpoints.read(path, "training_state")
    try:
        game.generator.load_state_dict(content["generator"])
        game.discriminator.load_state_dict(content["discriminator"])
        for average, state in zip(game.averages, content["averages"], strict=True):
            average.load_state_dict(state)
        for name in ("generator_optimizer", "discriminator_optimizer"):
            _load_optimizer(getattr(game, name), content[name])
        if content["scaler"]:
            game.scaler.load_state_dict(content["scaler"])
        game.health.skipped.fill_(content["skipped"])
        return Progress(step=content["step"], images_seen=content["images_seen"])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        other = content.get("curriculum_name")
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{path}: was trained with curriculum {other}, whose networks do not fit this one "
            f"({first})"
        ) from error


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments; rates, betas and the implementation stay those of this run."""
    own = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)
