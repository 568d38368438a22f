"""Fit a visitor's photo. It is decoded in memory; only its fit is written, into --output_dir."""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from checkpoint_io import checkpoints, encoders
from checkpoint_io.checkpoints import SavedGenerator
from generators.inversion import FitOptions
from generators.trajectories import Camera
from generators.volumetric_rendering import RenderOptions
from image_io import preparing
from image_io.decoding import Crop, read_photo
from image_io.preparing import Kind
from rendering import fit_files, fitting, photos
from rendering.fitting import Fitter
from rendering.photos import Preparation
from system.errors import UsageError
from system.files import output_folder
from web_viewer.checkpoints import Checkpoints
from web_viewer.pictures import Progress
from web_viewer.request import Request, quick_steps

EFFORT = FitOptions()  # as inverse_render.py
VIEW_SIZE = 256  # pixels per side of views.png, as there
# What a visitor says of a photo, and how inverse_render.py --prepare calls it.
CONTENTS: Mapping[str, Kind | None] = {
    "the object, centred": None,
    "a face": "face",
    "an object on plain ground": "object",
}


class FoundFit(NamedTuple):
    """A fit that was written: its name in the list of fits, its camera, and a line about it."""

    name: str
    camera: Camera
    text: str


def fit_photo(
    source: Checkpoints,
    request: Request,
    content: bytes,
    shown: str,
    folder: Path,
    progress: Progress,
) -> FoundFit:
    """Fit a photo with the checkpoint of request; write NAME/fit.pth and its pictures into folder.

    NAME is photo1 or the next that is free; the fit is added to source.fits. content is the photo's
    file, shown a key of CONTENTS, folder --output_dir. progress takes the share that is done; if it
    raises an error, nothing is written. Raises UsageError if the photo cannot be read or fitted.
    """
    saved = source.open(request.checkpoint, request.ema).saved
    options = fitting.render_options(
        saved, size=None, fov_degrees=None, is_locked=request.lock_view_dependence
    )
    critic, encoder = checkpoints.pose_critic(saved), encoders.beside(saved)
    fitter = Fitter(saved=saved, options=options, effort=EFFORT, critic=critic, encoder=encoder)
    try:
        image = read_photo(io.BytesIO(content))
    except ValueError as error:
        raise UsageError(f"the photo cannot be read: {error}") from error
    crop, done = _crop(shown), dict[str, int]()
    opened = photos.open_photo(
        image, "the photo", options.image_size, crop=crop, background=fitter.background
    )

    def report(name: str, count: int, _: float) -> None:
        done[name] = count
        progress(sum(done.values()) / fitter.num_steps(1))

    fit = fitter.fit([opened], report)
    name = _free_name(output_folder(folder))
    fit_files.save(folder / name, fitter, fit, _view_options(saved, request))
    source.fits[name] = folder / name / "fit.pth"
    poor = "".join(f"; poor: {reason}" for reason in fitting.poor_because(fitter, fit))
    text = f"{folder / name}: {fit.psnrs()[0]:.1f} dB{poor}"
    return FoundFit(name, fit.shots[0].camera, text)


def _crop(shown: str) -> Crop | Preparation:
    if shown not in CONTENTS:
        raise UsageError(f"{shown!r} is none of {', '.join(CONTENTS)}")
    kind = CONTENTS[shown]
    return "center" if kind is None else Preparation(kind=kind, find=preparing.finder(kind))


def _free_name(folder: Path) -> str:
    """Make the folder of the next fit and return its name."""
    number = 1
    while (folder / f"photo{number}").exists():
        number += 1
    (folder / f"photo{number}").mkdir()
    return f"photo{number}"


def _view_options(saved: SavedGenerator, request: Request) -> RenderOptions:
    is_locked = request.lock_view_dependence
    usual = saved.curriculum.preview_render(saved.last_step, VIEW_SIZE, is_locked=is_locked)
    return replace(usual, num_steps=2 * quick_steps(saved))
