"""Run the training steps in one process, with saving, logging and FID between them."""

import contextlib
import itertools
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import datasets
from config.stage import Stage
from distributed import collectives
from distributed.collectives import PeerLost, StepTimeouts
from distributed.processes import Place
from distributed.supervision import StopSignal
from generators.sampling import Purpose, stream
from image_io.files import Listing
from metrics import camera_search
from system import files, machine
from training import photo_cameras
from training.augmentation import HeldOut, hold_out
from training.fid import FidMeter, open_meter
from training.log import RunLog
from training.options import TrainOptions, dataset_options
from training.previews import PreviewScenes, preview_scenes
from training.setup import Setup, set_up
from training.snapshots import Keeper
from training.start import Start
from training.state import STATE_FILE, NotFinite, content_of, copied, step_of, write_state

MAX_BAD_STEPS = 10  # updates in a row that were skipped because they were not finite
COPY_SECONDS = 60.0  # between copies of the state in the memory of the CPU
RESCUE_LOCK = "rescue.lock"  # of the rank that saves because rank 0 is lost
HEALTH_INTERVAL = 10  # steps between looks at the counts on CUDA; looking waits for the device


def train(place: Place, job: tuple[TrainOptions, Start]) -> int:
    """Train in one process of the run; returns the exit code."""
    options, start = job
    machine.keep_freed_memory()
    if place.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # a stage's shapes stay the same
    else:
        machine.use_one_thread_for(start.curriculum.field_width())
    with files.run_folder(options.output_dir) if place.is_main else contextlib.nullcontext():
        setup = set_up(place, options, start)
        if options.is_dry_run:
            return 0
        return TrainingRun(place, options, setup, start.listing).run()


def computes_apart(place: Place) -> bool:
    """Return whether the device runs asynchronously and may wait forever for a lost rank."""
    return place.device.type == "cuda"


class TrainingRun:
    """The loop over steps, with saving, logging and FID between them."""

    def __init__(self, place: Place, options: TrainOptions, setup: Setup, listing: Listing) -> None:
        self.place, self.options = place, options
        self.game, self.progress, self.images = setup.game, setup.progress, setup.images
        self.curriculum = setup.curriculum
        self.pictures = self._pictures()
        self.ending = self.curriculum.ending(
            first_step=self.progress.step,
            num_images=len(self.pictures.learned),
            world_size=self.place.world_size,
            max_steps=self.options.max_steps,
            n_epochs=self.options.n_epochs,
        )
        self.meter, self.about_fid = self._open_meter(listing)
        self.copy: dict[str, Any] | None = None  # of the state, where the live one may be unusable
        self.copied_at = time.monotonic()

    def _open_meter(self, listing: Listing) -> tuple[FidMeter | None, str]:
        """Return the FID meter, or None and the reason; None and "" if FID is never due."""
        options = self.options
        if not options.fid.is_ever_due(self.progress.step, self.ending.step):
            return None, ""
        data = dataset_options(self.curriculum)
        return open_meter(
            self.place, options.fid, self.curriculum, data, listing, options.cache_dir
        )

    def _preview_scenes(self) -> PreviewScenes:
        rng = stream(self.game.seed, 0, 0, Purpose.PREVIEWS)
        settings = self.curriculum.settings
        return preview_scenes(
            self.curriculum.evaluation_poses(), settings.latent_dim, settings.z_dist, rng=rng
        )

    def run(self) -> int:
        """Train to the last step; returns the exit code."""
        if self.ending.is_reached(self.progress.step):
            if self.place.is_main:
                print(f"nothing to do: {self.options.output_dir} is at step {self.progress.step}, "
                      f"training {self.ending}", file=sys.stderr)  # fmt: skip
            return 0
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopSignal())
            keeper = self._keeper(stack) if self.place.is_main else None
            try:
                return self._loop(stop, keeper)
            except collectives.LOST as error:
                self._save_alone(error, keeper)
                raise PeerLost from error  # the error is printed already
            except (NotFinite, torch.OutOfMemoryError) as error:
                print(f"error: {self._reason(error)}; {self._last_good_state()}", file=sys.stderr)
                if self.place.world_size > 1:  # the others have not come to an end: do not wait
                    raise PeerLost from error
                return 1

    def _reason(self, error: Exception) -> str:
        """Return why the run cannot go on, and what may help."""
        if isinstance(error, NotFinite):  # only the main process saves; the others lose it
            return f"{error}, so nothing is saved any more"
        stages = dict(self.curriculum.stages)
        start = max(first for first in stages if first <= self.progress.step)
        split = f"--set {start}.batch_split={2 * stages[start].batch_split}"
        if self.curriculum.settings.shares_fakes:  # which keeps all images of a step
            split += " --set shares_fakes=false"
        return (
            f"{self.place.device} had too little free memory at step {self.progress.step}, of "
            f"{stages[start].img_size} pixels. The same command with --resume {split} needs less"
        )

    def _keeper(self, stack: contextlib.ExitStack) -> Keeper:
        options, first, device = self.options, self.progress.step, self.place.device
        part = self.curriculum.part(first, self.ending.step)
        log = RunLog(options.output_dir, first, self.ending.step, part, device)
        stack.enter_context(log)
        if device.type != "cpu":  # where there is more than one way; docs/speed.md names them
            log.say(f"how the field is evaluated on {device}: {self.game.field_path()}")
        if self.about_fid:
            log.say(self.about_fid)
        if first > 0:
            log.say(f"resumes after step {first}")
            log.record({"step": first, "resumed": True})
        scenes = self._preview_scenes()
        return Keeper(options, self.game, self.curriculum, self.progress, scenes, log, self.images)

    def _loop(self, stop: StopSignal, keeper: Keeper | None) -> int:
        timeouts = StepTimeouts()
        for step in itertools.count(self.progress.step):
            stage = self.curriculum.at(step)
            images = stage.batch_size * self.place.world_size
            # Kernels are compiled for a stage, for penalties every r1_interval steps, and where the
            # noise ends.
            kernels = self.curriculum.stage_settings(step), stage.render.density_noise > 0
            with timeouts.step(kernels, 1 + stage.r1_interval):
                terms = self.game.step(*self._next_images(stage))
                self.progress.step = step + 1
                self.progress.images_seen += images
                terms = collectives.mean_over_ranks(terms)
                complaint = self._complaint(terms)  # waits for the device
                takes_long = keeper is not None and keeper.takes_long(step + 1)
                is_stopped, takes_long = collectives.agree(stop.requested, takes_long)
            if keeper is not None:
                part = self.curriculum.part(step, self.ending.step)
                means = keeper.log.step(step + 1, stage, terms, images, part)
                if means is not None:
                    keeper.note_losses(means, stage)
            if complaint is not None:
                if keeper is not None:
                    keeper.log.say(complaint)
                    keeper.log.record({"step": step + 1, "error": complaint})
                return 1
            learns = self.curriculum.settings.learnable_dist and photo_cameras.learns_at(step + 1)
            if learns:
                self._learn_cameras(keeper)
            self._copy_state()
            is_last = self.ending.is_reached(step + 1)
            if keeper is not None:
                keeper.between_steps(is_last=is_last, is_stopped=is_stopped)
            if self.options.fid.is_due(step + 1) and not is_stopped:
                self._measure_fid(stop, keeper)
            if is_stopped or is_last:
                return self._farewell(stop, keeper, is_stopped=is_stopped)
            if takes_long or learns or self.options.fid.is_due(step + 1):
                timeouts.wait_for_rank_0()
        raise AssertionError("unreachable")

    def _learn_cameras(self, keeper: Keeper | None) -> None:
        """Move the training cameras towards those of the photos, on all ranks alike."""
        step, game = self.progress.step, self.game
        images = self.images[self.curriculum.at(step - 1).render.image_size]
        rng = stream(game.seed, 0, step, Purpose.CAMERAS)  # of mirroring
        photos = datasets.training_images(images.spread(camera_search.NUM_PHOTOS, rng=rng))
        poses = photo_cameras.learned(game, self.curriculum, photos, step)
        names = ("yaw_mean", "yaw_spread", "pitch_mean", "pitch_spread")
        values = torch.tensor([getattr(poses, name) for name in names], dtype=torch.float64)
        values = values.to(self.place.device)
        collectives.broadcast_state([values])  # ranks on other processors may round differently
        poses = replace(poses, **dict(zip(names, values.tolist(), strict=True)))
        self.curriculum = self.curriculum.with_poses(poses)
        if self.meter is not None:
            self.meter.curriculum = self.curriculum
        if keeper is not None:
            keeper.use_cameras_of(self.curriculum, self._preview_scenes())

    def _save_alone(self, error: Exception, keeper: Keeper | None) -> None:
        """Save this process's state when another one is lost, unless one has; print the result.

        On CUDA an operation with the lost process may never end, so the last copy is saved there.
        """
        folder, step = self.options.output_dir, self.progress.step
        is_live = not computes_apart(self.place)
        if not is_live:
            step = -1 if self.copy is None else self.copy["step"]
        with contextlib.ExitStack() as stack:
            # One rank saves. Rank 0 may be lost, or on another machine, without this folder.
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(folder / RESCUE_LOCK, lambda _: None))
            is_saved = step_of(folder) >= step
            if is_saved and keeper is None and step >= 0:
                return
            text = f"error: rank {self.place.rank}: {str(error).partition(chr(10))[0]}; "
            if not is_saved:
                try:
                    content = self.copy
                    if content is None:
                        content = content_of(self.game, self.curriculum, self.progress)
                    write_state(folder, content)
                    text += f"saved at step {step} in {folder}; "
                except (OSError, NotFinite) as failure:
                    text += f"step {step} could not be saved ({failure}); "
            print(f"{text}run the same command with --resume", file=sys.stderr, flush=True)

    def _copy_state(self) -> None:
        """Copy the state to the CPU now and then if a lost rank could make it unreadable."""
        is_due = time.monotonic() >= self.copied_at + COPY_SECONDS
        if self.place.world_size == 1 or not computes_apart(self.place) or not is_due:
            return
        with contextlib.suppress(NotFinite):  # then the copy before it is the better one
            self.copy = copied(content_of(self.game, self.curriculum, self.progress))
        self.copied_at = time.monotonic()

    def _pictures(self) -> HeldOut:
        """Return the numbers of the pictures to learn from, and of those held out."""
        count = len(next(iter(self.images.values())))
        augmentation = self.game.augmentation
        if augmentation is not None and augmentation.is_adaptive:
            return hold_out(count)
        return HeldOut(np.arange(count), np.arange(0))

    def _next_images(self, stage: Stage) -> tuple[Tensor, Stage, Tensor | None]:
        """Return the arguments of the next step: real images, stage, and images held out, if due.

        Images are (B, 3, H, W) in [-1, 1] on the device.
        """
        real = self._batch(stage, self.pictures.learned)
        augmentation = self.game.augmentation
        if augmentation is None or not augmentation.is_due(stage.step):
            return real, stage, None
        return real, stage, self._batch(stage, self.pictures.held_out)

    def _batch(self, stage: Stage, chosen: NDArray[np.int64]) -> Tensor:
        """Return this rank's next images of those with the chosen numbers."""
        images = self.images[stage.render.image_size]
        indices = datasets.batch_indices(
            len(chosen),
            seed=self.game.seed,
            images_seen=self.progress.images_seen,
            batch_size=stage.batch_size,
            rank=self.place.rank,
            world_size=self.place.world_size,
        )
        rng = stream(self.game.seed, self.place.rank, stage.step, Purpose.FLIPS)
        batch = images.batch(chosen[indices], rng=rng)
        if self.place.device.type == "cuda":
            batch = batch.pin_memory()
        return datasets.training_images(batch.to(self.place.device, non_blocking=True))

    def _complaint(self, terms: dict[str, Tensor]) -> str | None:
        """Return why training must stop if too many updates in a row were skipped, else None.

        The answer is the same on all ranks.
        """
        step = self.progress.step
        if self.place.device.type == "cuda" and step % HEALTH_INTERVAL:
            return None
        network, longest = self.game.health.worst()
        if longest < MAX_BAD_STEPS:
            return None
        bad = [name for name, term in terms.items() if not term.isfinite()]
        where = self._last_good_state()
        return (
            f"error: {longest} updates of the {network} in a row were not finite, up to step "
            f"{step} (not finite: {', '.join(bad) or 'the gradient'}); {where}. A lower learning "
            "rate may help"
        )

    def _last_good_state(self) -> str:
        state = self.options.output_dir / STATE_FILE
        return f"the last good state is {state}" if state.exists() else "no state was saved"

    def _measure_fid(self, stop: StopSignal, keeper: Keeper | None) -> None:
        """Measure the FID of the averaged generator on all ranks; the best generator is kept."""
        if self.meter is None:
            return
        step = self.progress.step
        averaged = self.game.averages[0].averaged(self.game.generator)
        fid = self.meter.measure(averaged, step, self.place, lambda: stop.requested)
        collectives.wait_for_all()  # ranks of different speed have measured
        if fid is not None and keeper is not None:
            keeper.note_fid(fid)

    def _farewell(self, stop: StopSignal, keeper: Keeper | None, *, is_stopped: bool) -> int:
        code = 128 + (stop.signum or 0) if is_stopped and stop.signum else 0
        if keeper is None:
            return code
        folder, step = self.options.output_dir, self.progress.step
        if keeper.saved_step != step:
            keeper.log.say(f"error: step {step} could not be saved; {self._last_good_state()}")
            return 1
        if is_stopped:
            keeper.log.say(f"stopped and saved at step {step}; run the same command with "
                           f"--resume to continue (in {folder})")  # fmt: skip
        else:
            keeper.log.say(f"finished at step {step} ({self.ending.reason}): {folder}")
        return code
