"""States, snapshots and previews of a run, written when they are due.

A failure to write is reported once; training continues and tries again.
"""

import re
import time
from collections.abc import Collection, Mapping
from functools import partial

import datasets
from config.curriculum import Curriculum
from config.stage import Stage
from datasets import ImageSet
from generators.sampling import Purpose, stream
from training import collapse, fid, photo_cameras, state
from training.adversarial import AdversarialGame
from training.collapse import CollapseWatch
from training.log import RunLog
from training.options import TrainOptions
from training.previews import COLUMNS, PreviewScenes, previews
from training.state import Progress

RETRY_SECONDS = 60.0  # after a state that could not be saved
PROBE_INTERVAL = 100  # steps between checks for signs of collapse
PROBE_COUNT = 8  # objects that are rendered
SHEETS_PER_KEEP = 10  # steps with previews that stay, for each of --keep
PREVIEW_NAMES = ("fixed", "tilted", "fixed_ema", "tilted_ema", "random")


def steps_to_keep(steps: Collection[int], interval: int, keep: int) -> set[int]:
    """Return the steps whose previews stay, at most SHEETS_PER_KEEP * keep of those given.

    The newest keep stay, and of the others as many as fit: all, or those at every second interval,
    or fourth, eighth ..., spread over the whole run.
    """
    ordered = sorted(steps)
    newest, older = ordered[-keep:], ordered[:-keep]
    unit = interval
    while len(older) > (SHEETS_PER_KEEP - 1) * keep:
        older = [step for step in older if step % unit == 0]
        unit *= 2
    return {*older, *newest}


class Keeper:
    """The files of a run that are written between steps; only the main process has one."""

    def __init__(
        self,
        options: TrainOptions,
        game: AdversarialGame,
        curriculum: Curriculum,
        progress: Progress,
        scenes: PreviewScenes,
        log: RunLog,
        images: Mapping[int, ImageSet],
    ) -> None:
        self.options, self.game, self.curriculum = options, game, curriculum
        self.progress, self.scenes, self.log, self.images = progress, scenes, log, images
        self.watch = CollapseWatch()
        self.due = time.monotonic() + options.state_seconds
        self.saved_step: int | None = None  # of this process's last good state
        self.is_save_due = False

    def takes_long(self, step: int) -> bool:
        """Decide what is due after so many steps; return whether other ranks must be patient."""
        options = self.options
        self.is_save_due = time.monotonic() > self.due
        intervals = (options.model_save_interval, options.sample_interval, PROBE_INTERVAL)
        return self.is_save_due or any(step % interval == 0 for interval in intervals)

    def between_steps(self, *, is_last: bool, is_stopped: bool) -> None:
        """Write what is due, no previews when asked to stop; NotFinite as save."""
        step, options = self.progress.step, self.options
        is_snapshot = step % options.model_save_interval == 0
        is_saved = is_snapshot or is_last or is_stopped or self.is_save_due
        is_shown = step % options.sample_interval == 0 or (is_last and not is_stopped)
        parts = (options.output_dir, self.game, self.curriculum, self.progress)
        if is_snapshot:
            write = partial(state.save_snapshot, *parts, keep=options.keep)
            self.log.attempt("writing a snapshot", write)
        if is_saved:
            self.save()
        if is_shown:
            self._write_previews()
            self._compare_cameras()
        if step % PROBE_INTERVAL == 0:
            self._probe()
        if is_saved or is_shown:
            self.log.reset_clock()

    def save(self) -> None:
        """Save the state, or raise NotFinite; if the disk fails, try again a little later."""
        parts = (self.options.output_dir, self.game, self.curriculum, self.progress)
        is_saved = self.log.attempt(f"writing {state.STATE_FILE}", lambda: state.save_state(*parts))
        pause = self.options.state_seconds if is_saved else RETRY_SECONDS
        self.due = time.monotonic() + min(pause, self.options.state_seconds)
        if is_saved:
            self.saved_step = self.progress.step
            skipped = int(self.game.health.skipped)
            self.log.record({"step": self.progress.step, "saved": True, "skipped": skipped})

    def note_losses(self, means: dict[str, float], stage: Stage) -> None:
        """Warn if the means of the loss terms show signs of a collapse."""
        for line in self.watch.losses(self.progress.step, means, stage):
            self.log.warn(self.progress.step, line)

    def note_fid(self, value: float) -> None:
        """Record a measured FID; the networks of the lowest one are kept in best/."""
        step, folder = self.progress.step, self.options.output_dir
        self.log.measured(step, "fid", value)

        def write() -> None:
            if fid.note(folder, step, value):
                content = state.content_of(self.game, self.curriculum, self.progress)
                state.export(folder / "best", content)

        self.log.attempt(f"writing {fid.FID_FILE}", write)
        self.log.reset_clock()

    def _probe(self) -> None:
        step = self.progress.step
        generator = self.game.generator.eval()
        film = generator.mapping(self.scenes.latents[:PROBE_COUNT])
        options = self.curriculum.evaluation_render(step - 1)
        found = collapse.probe(generator, film, self.scenes.center, options)
        for line in self.watch.probed(step, found):
            self.log.warn(step, line)

    def use_cameras_of(self, curriculum: Curriculum, scenes: PreviewScenes) -> None:
        """Take over a curriculum with other cameras and the previews' scenes, and log them."""
        self.curriculum, self.scenes = curriculum, scenes
        moments = zip(photo_cameras.AXES, curriculum.poses().moments(), strict=True)
        figures = {
            f"{axis}_{name}_curriculum": value
            for axis, pair in moments
            for name, value in zip(("mean", "spread"), pair, strict=True)
        }
        self.log.measured_all(self.progress.step, "cameras", figures)
        self.log.reset_clock()

    def _compare_cameras(self) -> None:
        """Log how wide photos look to a critic that guesses poses, and warn if cameras differ."""
        step, game = self.progress.step, self.game
        stage = self.curriculum.at(step - 1)
        rng = stream(game.seed, 0, step, Purpose.CAMERAS)
        images = self.images[stage.render.image_size]
        photos = images.spread(photo_cameras.NUM_IMAGES, rng=rng)
        real = datasets.training_images(photos.to(game.device))
        found = photo_cameras.compare(game, stage, real, rng=rng)
        if not found:
            return
        self.log.measured_all(step, "cameras", photo_cameras.figures(found))
        for axis, seen in found.items():
            differences = photo_cameras.differences(axis, seen, stage.poses)
            for line in self.watch.compared(step, differences):
                self.log.warn(step, line)

    def _write_previews(self) -> None:
        step = self.progress.step
        size = self.curriculum.settings.preview_size
        options = self.curriculum.preview_render(step - 1, size)
        averaged = self.game.averages[0].averaged(self.game.generator)
        pictures = previews(self.game.generator.eval(), averaged, self.scenes, options)
        for name, images in pictures:
            self.log.preview(step, name, images, COLUMNS)
        self.log.attempt("removing old previews", self._thin_previews)

    def _thin_previews(self) -> None:
        """Remove the previews that are not kept; other files are not touched."""
        pattern = re.compile(rf"(\d{{6,}})_(?:{'|'.join(PREVIEW_NAMES)})\.png")
        found = [(path, pattern.fullmatch(path.name)) for path in self.options.output_dir.iterdir()]
        sheets = [(path, int(match[1])) for path, match in found if match]
        options = self.options
        stay = steps_to_keep({step for _, step in sheets}, options.sample_interval, options.keep)
        for path, step in sheets:
            if step not in stay:
                path.unlink()
