"""One visitor of the viewer: fields and camera in, pictures and messages out.

Each visitor has a thread that renders; a lock lets one of them compute at a time. Nothing here
knows the page, which calls a Session and is called back as a Screen.
"""

import argparse
import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from generators.trajectories import Camera
from siren.film import Film
from system.errors import UsageError
from web_viewer import photo_fits, saving
from web_viewer.checkpoints import Checkpoints, Opened, Stamp
from web_viewer.pictures import FIRST_SIZE, Picture, Progress, coarse_size, levels, picture_parts
from web_viewer.request import (
    MAX_ASPECT,
    MAX_SIZE,
    READERS,
    Request,
    camera_from,
    quick_steps,
    to_command_line,
)
from web_viewer.saving import Cancelled

LOOK_SECONDS = 1.0  # between two checks for changed files
JOIN_SECONDS = 10.0  # much more than a part of a picture takes
PAUSE_SECONDS = 0.001  # lets another thread take the lock, which is not fair
NO_FIT = "none, the seed"  # in the list of fits
LABELS = {  # of the fields in which one can type
    "seed": "Seed",
    "psi": "Truncation psi",
    "to_seed": "Second seed",
    "mix": "Towards it",
    "image_size": "Pixels",
    "num_steps": "Samples per ray",
}


Job = Callable[[Request, Progress], str]  # returns a line that says what is done


class Screen(Protocol):
    """A visitor's page."""

    def show(self, picture: Picture) -> None:
        """Show a picture."""

    def complain(self, text: str) -> None:
        """Show an error; "" removes it."""

    def progress(self, text: str, share: float | None) -> None:
        """Show the progress of saving or fitting; None when it has ended."""

    def list_checkpoints(self, names: list[str]) -> None:
        """Offer these checkpoints."""

    def show_fit(self, name: str) -> None:
        """Offer the fits, and show this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """State shared by all visitors.

    start: the first picture of a visitor. usual: the middle of the training cameras. fit_cameras:
    of fitted objects, by name. output_dir: where files are saved. options: words that every command
    line of the page repeats. saver: saves one file, or fits one photo, at a time. lock: is held
    while a part of a picture is rendered.
    """

    source: Checkpoints
    start: Request
    usual: Camera
    fit_cameras: dict[str, Camera]
    output_dir: Path
    options: Sequence[str]
    saver: ThreadPoolExecutor
    lock: threading.Lock = field(default_factory=threading.Lock)


class Session:
    """A visitor's session with its request and thread.

    Attributes:
        request: the picture that is wanted now.
        is_wanted: True until the rendering of request begins.
    """

    def __init__(self, shared: Shared, screen: Screen) -> None:
        self._shared, self._screen = shared, screen
        self._changed = threading.Condition()
        self.request, self.is_wanted = shared.start, True
        self._is_gone = self._is_saving = False
        self._coarse = FIRST_SIZE
        self._shown: tuple[Request, Stamp] | None = None
        self._thread = threading.Thread(target=self._run, name="visitor", daemon=True)

    def begin(self) -> None:
        """Start the thread that renders."""
        self._thread.start()

    def end(self) -> None:
        """Stop rendering and saving for the visitor; the thread ends by itself."""
        with self._changed:
            self._is_gone = True
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended: a thread that computes while Python exits may crash."""
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._is_gone:
            with self._changed:
                self._changed.wait_for(lambda: self.is_wanted or self._is_gone, LOOK_SECONDS)
            try:
                if self.is_wanted and not self._is_gone:
                    self.render()
                elif not self._is_gone:
                    self.look_around()
            except Exception:  # the next change of a field may well be rendered
                traceback.print_exc()

    def _want(self, **changes: Any) -> None:
        """Change the request and have it rendered; the thread may be busy with the last one."""
        with self._changed:
            self.request = replace(self.request, **changes)
            self.is_wanted = True
            self._changed.notify()

    @contextlib.contextmanager
    def _complaining(self) -> Iterator[None]:
        """Show a UsageError to the visitor."""
        try:
            yield
        except UsageError as error:
            self._screen.complain(str(error))

    def look_around(self) -> None:
        """List new checkpoints; render again if the files of the shown one have changed."""
        self._screen.list_checkpoints(self._shared.source.names())
        if self._shown is not None:
            request, stamp = self._shown
            with self._complaining():  # the checkpoint may have been removed
                if self._shared.source.stamp(request.checkpoint, request.ema) != stamp:
                    self._want()

    def render(self) -> None:
        """Render the current request: a quick picture, then finer ones."""
        with self._changed:
            request, self.is_wanted = self.request, False
        with self._complaining():
            opened = self._shared.source.open(request.checkpoint, request.ema)
            self._shown = request, opened.stamp
            self._render_levels(request, opened, self._shared.source.film(opened, request))

    def _render_levels(self, request: Request, opened: Opened, film: Film) -> None:
        """Render the pictures of a request: the first to its end, the others until it changes."""
        steps = levels(self._coarse, request, quick_steps(opened.saved))
        for index, (size, num_steps) in enumerate(steps):
            parts = picture_parts(opened, film, request, size, num_steps)
            seconds, pixels = 0.0, None
            while pixels is None:
                with self._shared.lock:
                    began = time.perf_counter()
                    pixels = next(parts)
                    seconds += time.perf_counter() - began
                time.sleep(PAUSE_SECONDS)
                if self._is_gone or (index > 0 and self.is_wanted):
                    return
            if index == 0:
                self._coarse = coarse_size(size, seconds, MAX_SIZE)
            self._screen.show(Picture(pixels, request, opened, seconds, index == len(steps) - 1))

    def fill_in(self, fields: Mapping[str, Any]) -> None:
        """Take the values of the page's fields, or say which one is wrong and change nothing."""
        with self._complaining():
            changes = {name: _read(name, value) for name, value in fields.items()}
            self._shared.source.check(replace(self.request, **changes))
            self._want(**changes)
            self._screen.complain("")

    def move(self, place: Sequence[float], target: Sequence[float], aspect: float) -> None:
        """Look from place towards target through a window of that width over height."""
        with self._complaining():
            camera = camera_from(place, target, self._shared.usual.fov_degrees)
            self._want(camera=camera, aspect=min(MAX_ASPECT, max(1 / MAX_ASPECT, aspect)))

    def command_line(self) -> str:
        """Return the command that writes the picture of the current request."""
        shared, request = self._shared, self.request
        return to_command_line(
            request,
            generator=shared.source.path(request.checkpoint),
            fits=shared.source.fits,
            options=shared.options,
        )

    def save(self, what: str) -> None:
        """Save "picture", "video" or "mesh" of the current request in the background."""

        def job(request: Request, progress: Progress) -> str:
            shared = self._shared
            path = saving.SAVERS[what](shared.source, request, shared.output_dir, progress)
            return f"saved {path}"

        self._begin(what, job)

    def fit(self, content: bytes, shown: str) -> None:
        """Fit a photo in the background, then show the fit from the photo's camera.

        content: bytes of its file. shown: what the photo shows, a key of photo_fits.CONTENTS.
        """

        def job(request: Request, progress: Progress) -> str:
            shared = self._shared
            found = photo_fits.fit_photo(
                shared.source, request, content, shown, shared.output_dir, progress
            )
            shared.fit_cameras[found.name] = found.camera
            self._screen.show_fit(found.name)
            return f"fitted {found.text}"

        self._begin("photo", job)

    def _begin(self, what: str, job: Job) -> None:
        """Have a job done when those of the other visitors before it are done."""
        if self._is_saving:
            self._screen.complain(f"{what}: one thing is being done already; wait for it")
            return
        self._is_saving = True
        self._screen.complain("")
        self._screen.progress(f"{what}: waits", 0.0)
        self._shared.saver.submit(self._do, what, job, self.request)

    def _do(self, what: str, job: Job, request: Request) -> None:
        """Do a job in the thread of the saver."""

        def progress(share: float) -> None:
            if self._is_gone:
                raise Cancelled
            self._screen.progress(f"{what}: {share:.0%}", share)

        try:
            self._screen.progress(job(request, progress), None)
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


def _read(name: str, value: Any) -> Any:
    """Read a field of the page as a value of a Request; UsageError, with its label, if wrong."""
    if name == "fit" and value == NO_FIT:
        return ""
    if name == "to_seed" and value == "":
        return None
    try:
        return READERS[name](str(value).strip()) if name in READERS else value
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{LABELS.get(name, name)} {error}") from None
