"""BOUNDARY: our files of tensors: atomic writes, saved generators, and objects fitted to photos.

All are plain dicts of tensors and numbers that are read with weights_only=True: loading one never
runs code.
"""

import contextlib
import hashlib
import io
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import torch
from torch import nn

import curriculum as curricula
from curriculum import Curriculum
from flags import UsageError, nearest_path
from generators.generators import ImplicitGenerator3d
from siren.film import Film

FORMAT, FORMAT_VERSION = "pi-gan", 1
Average = Literal["ema", "ema2", "none"]


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of path when it is complete and on the disk, else never.

    Raises:
        OSError: it cannot be written; filename is path.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes were writing into folder; nobody else may write there now."""
    for draft in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", draft.name):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of path when all in it is written, else never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in (".tmp", "0.tmp"))
    try:
        draft.mkdir()
        yield draft
        _sync_folder(draft)
        if path.exists():
            path.replace(old)
        draft.replace(path)
        _sync_folder(path.parent)
    finally:
        for leftover in (draft, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Have the renames in folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write content as a file of that kind, which read takes back; replaces an earlier one."""
    header = {"format": FORMAT, "version": FORMAT_VERSION, "kind": kind}
    buffer = io.BytesIO()  # a full disk would otherwise end in an error of torch's own
    torch.save({**header, **content}, buffer)
    with replaced(path) as file:
        file.write(buffer.getbuffer())


def read(path: Path, kind: str) -> dict[str, Any]:
    """The content of one of our files.

    Raises:
        UsageError: no such file, or it is not a whole file of this kind.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file.{nearest_path(path)}")
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedGenerator:
    """A generator to look at, in evaluation mode and without gradients.

    curriculum: what it was trained with; step: how far. average: which parameters it holds, the
    raw ones ("none") or one of the averages. path: the file that they came from.
    """

    generator: ImplicitGenerator3d
    curriculum: Curriculum
    step: int
    average: Average
    path: Path


def load_generator(
    path: Path | str,
    *,
    ema: Average = "ema",
    device: torch.device | str = "cpu",
    curriculum: Curriculum | None = None,
) -> SavedGenerator:
    """The generator of a saved file, with averaged parameters where the average lies beside it.

    Args:
        path: a `generator.pth`, or one of the averages itself.
        ema: which average to take: that of decay 0.999 ("ema"), 0.9999 ("ema2"), or "none" for the
            raw parameters. Where there is no such file the parameters are the raw ones; the
            result's `average` says so.
        device: where the generator shall live.
        curriculum: what the file must have been trained with; None takes what the file says.

    Raises:
        UsageError: the file cannot be read, holds no generator, or another than curriculum's.
    """
    path = Path(path)
    file, average = _averaged_file(path, ema)
    content = read(file, "generator")
    own = curricula.build(content["curriculum_name"], content["curriculum"])
    if curriculum is not None and curriculum.name != own.name:
        raise UsageError(
            f"--curriculum {curriculum.name}: {file} was trained with {own.name}; "
            "leave the flag out"
        )
    generator = own.build_generator()
    try:
        generator.load_state_dict(content["state"])
    except (RuntimeError, TypeError, AttributeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{file}: does not fit its own curriculum ({first})") from error
    return SavedGenerator(
        generator=generator.to(device).eval().requires_grad_(False),
        curriculum=own,
        step=content["step"],
        average=average,
        path=file,
    )


def _averaged_file(path: Path, ema: Average) -> tuple[Path, Average]:
    """The file to read, and what it holds: `05--generator.pth` has its average `05--ema.pth`."""
    for average in ("ema2", "ema"):
        if path.name.endswith(f"{average}.pth"):
            return path, average
    if ema == "none" or not path.name.endswith("generator.pth"):
        return path, "none"
    beside = path.with_name(f"{path.name.removesuffix('generator.pth')}{ema}.pth")
    return (beside, ema) if beside.is_file() else (path, "none")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """An object that was fitted to a photo: conditioning (1, F), and the camera that sees it so."""

    film: Film
    pitch: float
    yaw: float
    fov_degrees: float


def save_fit(path: Path, fit: Fit, saved: SavedGenerator) -> None:
    """Write what a photo was fitted with; only the same generator can show it."""
    save(
        path,
        "fit",
        {
            "generator": fingerprint(saved.generator),
            "frequencies": fit.film.frequencies.cpu(),
            "phase_shifts": fit.film.phase_shifts.cpu(),
            "pitch": fit.pitch,
            "yaw": fit.yaw,
            "fov_degrees": fit.fov_degrees,
        },
    )


def load_fit(path: Path, saved: SavedGenerator) -> Fit:
    """What save_fit wrote, on the generator's device.

    Raises:
        UsageError: the file cannot be read, or was fitted with another generator.
    """
    content = read(path, "fit")
    if content["generator"] != fingerprint(saved.generator):
        raise UsageError(f"{path}: was fitted with another generator than {saved.path}")
    device = next(saved.generator.parameters()).device
    return Fit(
        film=Film(content["frequencies"].to(device), content["phase_shifts"].to(device)),
        pitch=content["pitch"],
        yaw=content["yaw"],
        fov_degrees=content["fov_degrees"],
    )


def fingerprint(generator: nn.Module) -> str:
    """A hash of all parameters: the same on every device."""
    digest = hashlib.sha256()
    for name, value in generator.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
