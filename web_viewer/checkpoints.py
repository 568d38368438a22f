"""The generators that the viewer can show: a run's newest state and its snapshots.

The page knows them by names. A name that is not in the list opens nothing, and the list holds only
files under the run's folder.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import curriculums
from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import Average, SavedGenerator
from config.curriculum import Curriculum
from rendering import viewing
from siren.film import Film
from system import files
from system.errors import UsageError
from web_viewer.request import Request

KEPT = 4  # generators in memory at once
AVERAGES: tuple[Average, ...] = ("ema", "ema2", "none")

Stamp = tuple[files.Stamp | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A generator in memory, with the stamp of its files when they were read.

    mean: its center of truncation. fits: conditioning of the fitted objects shown with it so far.
    """

    saved: SavedGenerator
    mean: Film
    stamp: Stamp
    fits: dict[str, Film] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of a run by name, each read at its first use.

    generator is the file that the command names; its folder is the run's. curriculum None takes
    what the files say. fits are files of fitted objects by name. precision is as --precision says,
    max_points the most in one call of the field; None is the default of the device.
    """

    def __init__(
        self,
        generator: Path,
        *,
        device: torch.device,
        curriculum: Curriculum | None,
        fits: Mapping[str, Path] | None = None,
        precision: viewing.Precision = "exact",
        max_points: int | None = None,
    ) -> None:
        self.newest = generator.name
        self._folder = generator.parent
        self._device, self._curriculum = device, curriculum
        self._precision, self._max_points = precision, max_points
        self.fits = dict(fits or {})
        self._opened: dict[tuple[str, Average], Opened] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """List the newest state, then the snapshots, newest first."""
        found = [*self._folder.glob("*generator.pth"), *self._folder.glob("*/*generator.pth")]
        root = self._folder.resolve()
        inside = [path for path in found if path.resolve().is_relative_to(root)]
        names = sorted((str(path.relative_to(self._folder)) for path in inside), reverse=True)
        return [self.newest, *(name for name in names if name != self.newest)]

    def path(self, name: str) -> Path:
        """Return the file of that name; UsageError if the list has no such name."""
        if name not in self.names():
            raise UsageError(f"no checkpoint {name!r} in this run")
        return self._folder / name

    def averages(self, name: str) -> list[Average]:
        """List the averages of parameters that lie beside a checkpoint, and "none"."""
        path = self.path(name)
        return [kind for kind in AVERAGES if checkpoints.averaged_file(path, kind)[1] == kind]

    def stamp(self, name: str, ema: Average) -> Stamp:
        """Return a value that changes when the checkpoint's files change."""
        path = self.path(name)
        return tuple(
            files.stamp_of(file) for file in {path, checkpoints.averaged_file(path, ema)[0]}
        )

    def open(self, name: str, ema: Average) -> Opened:
        """Read the checkpoint, or return the one in memory if its files have not changed.

        Where the files have become unreadable, the one in memory is returned too. Raises UsageError
        if it cannot be read and never could, or there is none of that name.
        """
        with self._lock:
            stamp, earlier = self.stamp(name, ema), self._opened.get((name, ema))
            if earlier is not None and earlier.stamp == stamp:
                return earlier
            try:
                opened = self._read(name, ema, stamp)
            except UsageError:
                if earlier is None:
                    raise
                opened = replace(earlier, stamp=stamp)  # tried again when the files change
            self._opened.pop((name, ema), None)
            self._opened[name, ema] = opened
            while len(self._opened) > KEPT:
                del self._opened[next(iter(self._opened))]
            return opened

    def _read(self, name: str, ema: Average, stamp: Stamp) -> Opened:
        saved = checkpoints.load_generator(
            self.path(name),
            ema=ema,
            device=self._device,
            curriculum=self._curriculum,
            published_curriculum=curriculums.load("CelebA"),
        )
        viewing.set_precision(saved.generator, self._precision)
        saved.generator.points_per_chunk = self._max_points or saved.generator.points_per_chunk
        return Opened(saved=saved, mean=viewing.mean_film(saved), stamp=stamp)

    def check(self, request: Request) -> None:
        """Raise UsageError if there is no such checkpoint, average or fit."""
        if request.ema not in self.averages(request.checkpoint):
            raise UsageError(f"{request.checkpoint} has no {request.ema} parameters beside it")
        if request.fit and request.fit not in self.fits:
            raise UsageError(f"no fit {request.fit!r} was given with --fit")

    def film(self, opened: Opened, request: Request) -> Film:
        """Return the object's conditioning (1, F); UsageError for a fit of another generator."""
        if request.fit:
            if request.fit not in opened.fits:
                (shown,) = viewing.fitted_objects(opened.saved, [self.fits[request.fit]])
                opened.fits[request.fit] = shown.film
            return opened.fits[request.fit]
        seeds = [request.seed, request.seed if request.to_seed is None else request.to_seed]
        start, end = viewing.objects_of_seeds(
            opened.saved, seeds, psi=request.psi, mean=opened.mean
        )
        return start.film.lerp(end.film, request.mix)
