"""BOUNDARY: a run on disk: exact resume, and the networks that are exported for other commands.

`training_state.pth` is the one source of truth of a run. `generator.pth`, `ema.pth`, `ema2.pth` and
`discriminator.pth` are exported from it; each carries its curriculum.
"""

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from checkpoint_io import checkpoints, published_run
from checkpoint_io.network_state import (
    StateError,
    checked_state,
    checked_tensor,
    count_entry,
    entry,
    load_moments,
    load_scaler,
)
from checkpoint_io.pickle_data import shown
from config.curriculum import Curriculum
from distributed import collectives
from distributed.processes import Place
from system.errors import UsageError, nearest_path
from system.files import replaced_folder
from training.adversarial import AdversarialGame
from training.ema import ExponentialMovingAverage

STATE_FILE = "training_state.pth"
AVERAGE_FILES = ("ema.pth", "ema2.pth")  # in the order of the game's averages
SNAPSHOT_PREFIX = "snapshot_"


class NotFinite(Exception):
    """A state holds infinities or what is no number, and must not be saved."""


@dataclass(slots=True)
class Progress:
    """How far a run is. images_seen: real images, over all processes."""

    step: int = 0
    images_seen: int = 0


def about_run(curriculum: Curriculum, progress: Progress) -> dict[str, Any]:
    """What every file of a run says of itself."""
    return {
        "curriculum_name": curriculum.name,
        "curriculum": dict(curriculum.source),
        "step": progress.step,
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }


def save_state(
    folder: Path, game: AdversarialGame, curriculum: Curriculum, progress: Progress
) -> None:
    """Write the whole state of training into folder, then the networks exported from it.

    Raises:
        NotFinite: it is damaged; nothing was written.
    """
    require_finite(game)
    checkpoints.save(
        folder / STATE_FILE,
        "training_state",
        {
            **about_run(curriculum, progress),
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


def require_finite(game: AdversarialGame) -> None:
    """Check networks, averages and moments.

    Raises:
        NotFinite: names the first tensor that is damaged.
    """
    named: dict[str, object] = {}
    for name in ("generator", "discriminator"):
        named[name] = getattr(game, name).state_dict()
        named[f"{name}'s optimizer"] = getattr(game, f"{name}_optimizer").state_dict()["state"]
    named["average"] = [average.shadow for average in game.averages]
    for name, tensors in named.items():
        for where, tensor in _tensors(tensors, ""):
            if not tensor.isfinite().all():
                raise NotFinite(f"{name}: {where.strip('.')} is not finite")


def _tensors(value: object, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in nested dicts and lists, with their places."""
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{where}.{index}")


def export(folder: Path, game: AdversarialGame, curriculum: Curriculum, progress: Progress) -> None:
    """Write generator.pth, ema.pth, ema2.pth and discriminator.pth into folder."""
    about = about_run(curriculum, progress)
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
    with replaced_folder(snapshot) as draft:
        save_state(draft, game, curriculum, progress)
    ours = sorted(folder.glob(f"{SNAPSHOT_PREFIX}" + "[0-9]" * 8))
    for old in ours[: max(0, len(ours) - keep)]:
        if old != snapshot:
            shutil.rmtree(old, ignore_errors=True)
    return snapshot


def find_start(output_dir: Path, load_dir: Path | None, *, is_resumed: bool) -> Path | None:
    """The training state, or folder of a published run, to go on from; None to start afresh.

    Raises:
        UsageError: there is none in load_dir, or output_dir holds another run.
    """
    own = output_dir / STATE_FILE
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"--output_dir {output_dir}: is not a folder")
    if is_resumed and own.exists():
        return own
    if own.exists() and (load_dir is None or load_dir.resolve() != output_dir.resolve()):
        raise UsageError(
            f"--output_dir {output_dir} holds a run already; go on with --resume, or give another"
        )
    if load_dir is None:
        return None
    state = load_dir / STATE_FILE
    if not state.is_file() and published_run.is_one(load_dir):
        return load_dir
    if not state.is_file():
        if (load_dir / "generator.pth").is_file():
            raise UsageError(
                f"--load_dir {load_dir}: only exported networks are there; training goes on from "
                f"{STATE_FILE}, which holds the optimizers and the step too"
            )
        hint = nearest_path(load_dir) if not load_dir.exists() else ""
        raise UsageError(f"--load_dir {load_dir}: there is no {STATE_FILE} in it.{hint}")
    return state


def step_of(folder: Path) -> int:
    """The step of the state in folder, 0 where there is none that can be read."""
    path = folder / STATE_FILE
    try:
        with checkpoints.complaints(path):
            return count_entry(checkpoints.read(path, "training_state"), "step")
    except UsageError:
        return 0


def agree_on_start(
    place: Place, path: Path | None, curriculum: Curriculum
) -> dict[str, Any] | None:
    """The content of the state that all ranks go on from: the newest of those that ranks found.

    Machines may have disks of their own; then only one of them may hold the last state.

    Raises:
        UsageError: the file at path, where this rank has one, cannot be read.
    """
    content, step = None, -1
    if path is not None:
        content = read_state(path, curriculum)
        with checkpoints.complaints(path):
            step = count_entry(content, "step")
    steps = collectives.values_of_all(step)
    source = steps.index(max(steps))
    if len(steps) == 1 or steps[source] < 0:
        return content
    buffer = io.BytesIO()
    if place.rank == source:
        torch.save(content, buffer)
    data = collectives.broadcast_bytes(buffer.getvalue(), source)
    return cast(dict[str, Any], torch.load(io.BytesIO(data), weights_only=True))


def seed_of(content: Mapping[str, Any]) -> int:
    """The seed of the run that a state is of; a published run does not say, and gets 0.

    Raises:
        UsageError: what it says is no seed.
    """
    if "seed" not in content:
        return 0
    try:
        return count_entry(content, "seed")
    except StateError as error:
        raise UsageError(f"{STATE_FILE}: {error}") from error


def curriculum_of(content: Mapping[str, Any]) -> Curriculum:
    """The curriculum of a state that was read.

    Raises:
        UsageError: it has none that can be used.
    """
    return checkpoints.curriculum_of(Path(STATE_FILE), content)


def read_state(path: Path, curriculum: Curriculum) -> dict[str, Any]:
    """The content of a training state, for load_state.

    Args:
        path: a training state of ours, or the folder of a published run.
        curriculum: what is trained; of a published run that of its adapt.

    Raises:
        UsageError: it cannot be read.
    """
    if not path.is_dir():
        content = checkpoints.read(path, "training_state")
        _refuse_other_scales(path, checkpoints.curriculum_of(path, content), curriculum)
        return content
    run = published_run.open_run(path)
    return {**about_run(curriculum, Progress(step=run.step)), **run.state(curriculum)}


def _refuse_other_scales(path: Path, trained: Curriculum, wanted: Curriculum) -> None:
    """What changes a network's meaning and not its shapes must not change unnoticed."""
    for key in ("model", "box_side", "density_scale"):
        before, now = getattr(trained.settings, key), getattr(wanted.settings, key)
        if before == now:
            continue
        how = f"--set {key}={before}"
        if trained.name != wanted.name:
            how = f"--curriculum {trained.name}, with which it was trained"
        raise UsageError(
            f"{path}: was trained with {key} {before}, curriculum {wanted.name} has {now}; "
            f"go on with {how}"
        )


def load_state(content: Mapping[str, Any], game: AdversarialGame) -> Progress:
    """Take over a state of training; the game's own options stay.

    Raises:
        UsageError: it is damaged, or belongs to other networks than the curriculum's.
    """
    try:
        progress = _take_over(content, game)
        require_finite(game)
        return progress
    except NotFinite as error:
        raise UsageError(f"{STATE_FILE} cannot be gone on from: {error}") from error
    except StateError as error:
        other = shown(str(content.get("curriculum_name")))
        raise UsageError(
            f"{STATE_FILE}: {error}; it was trained with curriculum {other}, whose networks must "
            "be those of the curriculum that is asked for"
        ) from error


def _take_over(content: Mapping[str, Any], game: AdversarialGame) -> Progress:
    progress = Progress(
        step=count_entry(content, "step"), images_seen=count_entry(content, "images_seen")
    )
    skipped = count_entry(content, "skipped")
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
    return progress


def load_average(
    average: ExponentialMovingAverage, values: Sequence[object], num_updates: int
) -> None:
    """Take over averages, in the order of the average's own.

    Raises:
        StateError: they are not those of this network.
    """
    if len(values) != len(average.shadow):
        raise StateError(f"has {len(values)} averages for {len(average.shadow)} parameters")
    pairs = zip(values, average.shadow, strict=True)
    shadow = [
        checked_tensor(f"average {index}", value, own.shape)
        for index, (value, own) in enumerate(pairs)
    ]
    average.load_state_dict({"shadow": shadow, "num_updates": num_updates})
