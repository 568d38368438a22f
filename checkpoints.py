"""BOUNDARY: a run on disk. Atomic writes, exact resume, networks exported for other commands.

`training_state.pth` is the one source of truth of a run. `generator.pth`, `ema.pth`, `ema2.pth` and
`discriminator.pth` are exported from it; each carries its curriculum. All are state dicts that are
read with weights_only=True: loading one never runs code.
"""

import contextlib
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import nn

from curriculum import Curriculum
from flags import UsageError
from training.adversarial import AdversarialGame

FORMAT, FORMAT_VERSION = "pi-gan", 1
STATE_FILE = "training_state.pth"
AVERAGE_FILES = ("ema.pth", "ema2.pth")  # in the order of the game's averages
SNAPSHOT_PREFIX = "snapshot_"


@dataclass(slots=True)
class Progress:
    """How far a run is. images_seen: real images, over all processes."""

    step: int = 0
    images_seen: int = 0


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of path when it is complete and on the disk, else never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the renames in folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    header = {"format": FORMAT, "version": FORMAT_VERSION, "kind": kind}
    with replaced(path) as file:
        torch.save({**header, **content}, file)


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
    _save(
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
        _save(folder / file, kind, {**about, "state": state})


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


def read(path: Path, kind: str) -> dict[str, Any]:
    """The content of one of our files.

    Raises:
        UsageError: no such file, or it is not a whole file of this kind.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = "it is damaged" if zipfile.is_zipfile(path) else "it is no checkpoint of ours"
        raise UsageError(f"{path}: cannot be read, {reason}; no code in it was run") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{path}: is not a file that this project writes")
    if content.get("version") != FORMAT_VERSION:
        version = content.get("version")
        raise UsageError(f"{path}: has format {version}, this code reads {FORMAT_VERSION}")
    if content.get("kind") != kind:
        raise UsageError(f"{path}: holds a {content.get('kind')}, not a {kind}")
    return cast(dict[str, Any], content)


def load_state(path: Path, game: AdversarialGame) -> Progress:
    """Take over the state of training from path; the game's own options stay.

    Raises:
        UsageError: the file cannot be read, or belongs to other networks than the curriculum's.
    """
    content = read(path, "training_state")
    try:
        _load_network(game.generator, content["generator"])
        _load_network(game.discriminator, content["discriminator"])
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


def _load_network(network: nn.Module, state: Mapping[str, Any]) -> None:
    network.load_state_dict(state, strict=True)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments; rates, betas and the implementation stay those of this run."""
    own = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)
