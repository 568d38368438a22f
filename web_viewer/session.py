"""BOUNDARY: one visitor of the viewer: fields and camera in, pictures and words out.

Knows nothing of the page: it is spoken to by calls and answers through a Screen.
"""

import argparse
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from generators.cameras import POLE_MARGIN
from system import flags
from system.errors import UsageError
from web_viewer import saving
from web_viewer.checkpoints import Checkpoints
from web_viewer.pictures import Picture, Progressive
from web_viewer.request import (
    MAX_ASPECT,
    MAX_SHIFT,
    NARROWEST,
    WIDEST,
    Eye,
    Request,
    to_command_line,
)
from web_viewer.saving import Cancelled
from web_viewer.turns import Turns

NO_FIT = "none, the seed"  # in the list of fits
LABELS = {  # of the fields in which one can type
    "seed": "Seed",
    "psi": "Truncation psi",
    "to_seed": "Second seed",
    "mix": "Towards it",
    "image_size": "Pixels",
    "num_steps": "Samples per ray",
}


class Screen(Protocol):
    """What a visitor sees."""

    def show(self, picture: Picture) -> None:
        """Show a picture."""

    def complain(self, text: str) -> None:
        """Say what is wrong; "" is nothing any more."""

    def progress(self, text: str, share: float | None) -> None:
        """Say how far saving is; None is at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all visitors share.

    start: what a visitor sees first. usual: the middle of the training cameras. fit_eyes: the
    cameras of fitted objects, by name. output_dir: where files are saved. options: words of the
    command line that every command of the page repeats. max_points: in one call of the field.
    """

    source: Checkpoints
    turns: Turns
    start: Request
    usual: Eye
    fit_eyes: Mapping[str, Eye]
    output_dir: Path
    options: Sequence[str]
    max_points: int
    saver: ThreadPoolExecutor


class Session:
    """A visitor, from coming to going."""

    def __init__(self, shared: Shared, screen: Screen) -> None:
        self._shared, self._screen = shared, screen
        self._lock = threading.Lock()
        self._request = shared.start
        self._is_gone = self._is_saving = False
        self._pictures = Progressive(
            shared.source,
            lambda: self.request,
            lambda: shared.turns.is_wanted(self),
            show=self._show,
            complain=screen.complain,
            max_points=shared.max_points,
        )

    @property
    def request(self) -> Request:
        """What is wanted now."""
        return self._request

    def begin(self) -> None:
        """Have pictures rendered from now on."""
        self._shared.turns.join(self, self._pictures.work)

    def end(self) -> None:
        """The visitor is gone: nothing is rendered or saved for it any more."""
        self._is_gone = True
        self._shared.turns.leave(self)

    def look_around(self) -> None:
        """Begin again where the files of what is shown have changed."""
        try:
            is_outdated = self._pictures.is_outdated()
        except UsageError as error:  # the checkpoint was removed
            self._screen.complain(str(error))
            return
        if is_outdated:
            self._shared.turns.want(self)

    def fill_in(self, fields: Mapping[str, Any]) -> None:
        """Take what the page's fields hold; where one holds nonsense, say so and change nothing."""
        try:
            changes = read_fields(fields)
            with self._lock:
                request = replace(self._request, **changes)
                self._check(request)
                self._request = request
        except UsageError as error:
            self._screen.complain(_as_labelled(str(error)))
            return
        self._screen.complain("")
        self._shared.turns.want(self)

    def _check(self, request: Request) -> None:
        """Refuse names that stand in no list.

        Raises:
            UsageError: there is no such checkpoint, average or fit.
        """
        source = self._shared.source
        if request.ema not in source.averages(request.checkpoint):
            raise UsageError(f"{request.checkpoint} has no {request.ema} parameters beside it")
        if request.fit and request.fit not in source.fits:
            raise UsageError(f"no fit {request.fit!r} was given with --fit")

    def move(self, place: Sequence[float], target: Sequence[float], aspect: float) -> None:
        """Look from place towards target through a window of that width over height."""
        try:
            eye = eye_from(place, target, self._shared.usual.fov_degrees)
            aspect = min(MAX_ASPECT, max(1 / MAX_ASPECT, aspect))
            with self._lock:
                self._request = replace(self._request, eye=eye, aspect=aspect)
        except UsageError as error:
            self._screen.complain(str(error))
            return
        self._shared.turns.want(self)

    def _show(self, picture: Picture) -> None:
        if not self._is_gone:
            self._screen.show(picture)

    def command_line(self) -> str:
        """The command that writes the picture that is wanted now."""
        shared, request = self._shared, self._request
        return to_command_line(
            request,
            generator=shared.source.path(request.checkpoint),
            fits=shared.source.fits,
            options=shared.options,
        )

    def save(self, what: str) -> None:
        """Save "picture", "video" or "mesh" of what is wanted now, while the page goes on."""
        if self._is_saving:
            self._screen.complain("one thing is being saved already; wait for it")
            return
        self._is_saving = True
        self._screen.progress(f"{what}: waits", 0.0)
        self._shared.saver.submit(self._saved, what, self._request)

    def _saved(self, what: str, request: Request) -> None:
        """In the saver's thread."""
        shared = self._shared

        def progress(share: float) -> None:
            if self._is_gone:
                raise Cancelled
            self._screen.progress(f"{what}: {share:.0%}", share)

        try:
            path = saving.SAVERS[what](
                shared.source, request, shared.output_dir, progress, shared.max_points
            )
            self._screen.progress(f"saved {path}", None)
        except Cancelled:
            pass
        except UsageError as error:
            self._screen.progress("", None)
            self._screen.complain(str(error))
        except Exception as error:
            self._screen.progress("", None)
            self._screen.complain(f"{what}: {error}")
            raise
        finally:
            self._is_saving = False


def read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The page's fields as values of a Request.

    Raises:
        UsageError: one holds nonsense; the text begins with its name.
    """
    return {name: _read(name, value) for name, value in fields.items()}


READERS: dict[str, Callable[[str], Any]] = {
    "seed": flags.non_negative_int,
    "to_seed": lambda text: flags.non_negative_int(text) if text else None,
    "num_steps": flags.positive_int,
    "image_size": flags.positive_int,
    "psi": flags.fraction,
    "mix": flags.fraction,
    "fit": lambda text: "" if text == NO_FIT else text,
}


def _read(name: str, value: Any) -> Any:
    if name not in READERS:
        return value
    try:
        return READERS[name](str(value).strip())
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--{name} {error}") from None


def _as_labelled(text: str) -> str:
    """A complaint that begins with a flag, beginning with the label of its field."""
    flag, _, rest = text.partition(" ")
    name = flag.removeprefix("--")
    return f"{LABELS.get(name, name)} {rest}"


def eye_from(place: Sequence[float], target: Sequence[float], usual_fov: float) -> Eye:
    """The camera on the unit sphere around target that stands for one at place.

    A page's camera zooms by coming nearer. Ours keeps the distance that it has learned, and
    narrows its angle of view so that the target is as large: tan(fov / 2) goes with the distance.

    Raises:
        UsageError: place and target are one, or no numbers.
    """
    if not all(map(math.isfinite, [*place, *target])):
        raise UsageError("the camera must stand somewhere")
    offset = [a - b for a, b in zip(place, target, strict=True)]
    distance = math.hypot(*offset)
    if distance == 0:
        raise UsageError("the camera cannot stand on what it looks at")
    x, y, z = (part / distance for part in offset)
    shift = [min(MAX_SHIFT, max(-MAX_SHIFT, part)) for part in target]
    half = math.atan(distance * math.tan(math.radians(usual_fov) / 2))
    return Eye(
        pitch=min(math.pi - POLE_MARGIN, max(POLE_MARGIN, math.acos(min(1.0, max(-1.0, y))))),
        yaw=math.atan2(z, x),
        fov_degrees=min(WIDEST, max(NARROWEST, 2 * math.degrees(half))),
        target=(shift[0], shift[1], shift[2]),
    )


def distance_of(eye: Eye, usual_fov: float) -> float:
    """How far from its target the page's camera stands that shows what eye sees."""
    return math.tan(math.radians(eye.fov_degrees) / 2) / math.tan(math.radians(usual_fov) / 2)
