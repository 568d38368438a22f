"""BOUNDARY: one process of a training run: the loop over steps, and what is due between them."""

import contextlib
import itertools
import sys

import torch
from torch import Tensor

import datasets
from config import run_length
from config.stage import Stage
from distributed import collectives
from distributed.collectives import PeerLost, StepTimeouts
from distributed.processes import Place
from distributed.supervision import StopSignal
from generators.seeding import Purpose, step_rng
from system import files, machine
from training import fid as training_fid
from training import setup as run_setup
from training import state as run_state
from training.fid import FidMeter
from training.log import RunLog
from training.previews import PreviewScenes, preview_scenes
from training.setup import Setup, TrainOptions
from training.snapshots import Keeper, KeepOptions
from training.state import NotFinite

MAX_BAD_STEPS = 10  # updates in a row that were skipped because they were not finite
RESCUE_LOCK = "rescue.lock"  # of the rank that saves because rank 0 is lost
HEALTH_INTERVAL = 10  # steps between looks at the counts on CUDA; looking waits for the device


def train(place: Place, options: TrainOptions) -> int:
    """One process's part of the training; returns the exit code."""
    machine.keep_freed_memory()
    if place.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # a stage's shapes stay the same
    else:
        machine.use_one_thread_for(options.curriculum.field_width())
    with files.run_folder(options.output_dir) if place.is_main else contextlib.nullcontext():
        setup = run_setup.set_up(place, options)
        return TrainingRun(place, options, setup).run()


class TrainingRun:
    """The loop over steps, and what happens between them."""

    def __init__(self, place: Place, options: TrainOptions, setup: Setup) -> None:
        self.place, self.options = place, options
        self.game, self.progress, self.images = setup.game, setup.progress, setup.images
        self.curriculum = setup.curriculum
        self.ending = self._ending()
        self.meter, self.about_fid = self._open_meter()

    def _ending(self) -> run_length.Ending:
        return run_length.ending(
            self.curriculum,
            first_step=self.progress.step,
            num_images=len(next(iter(self.images.values()))),
            world_size=self.place.world_size,
            max_steps=self.options.max_steps,
            n_epochs=self.options.n_epochs,
        )

    def _open_meter(self) -> tuple[FidMeter | None, str]:
        """What measures FID, or nothing and why not; nothing and "" where it is never due."""
        options = self.options
        if not options.fid.is_ever_due(self.progress.step, self.ending.step):
            return None, ""
        data = run_setup.dataset_options(self.curriculum)
        return training_fid.open_meter(
            self.place, options.fid, self.curriculum, data, options.cache_dir
        )

    def _preview_scenes(self) -> PreviewScenes:
        rng = step_rng(self.game.seed, 0, 0, Purpose.PREVIEWS, torch.device("cpu"))
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
            except PeerLost as error:
                self._save_alone(error, keeper)
                raise PeerLost from error  # all is told
            except NotFinite as error:  # only the main process saves; the others lose it
                print(f"error: {error}, so nothing is saved any more; {self._last_good_state()}",
                      file=sys.stderr)  # fmt: skip
                return 1

    def _keeper(self, stack: contextlib.ExitStack) -> Keeper:
        options, first = self.options, self.progress.step
        folder, device = options.output_dir, self.place.device
        log = RunLog(folder, first, self.ending.step, device, keep=options.keep)
        stack.enter_context(log)
        if device.type != "cpu":  # where there is more than one way; docs/speed.md names them
            log.say(f"how the field is evaluated on {device}: {self.game.field_path()}")
        if self.about_fid:
            log.say(self.about_fid)
        if first > 0:
            log.record({"step": first, "resumed": True})
        keep_options = KeepOptions(
            folder=folder,
            sample_interval=options.sample_interval,
            model_save_interval=options.model_save_interval,
            state_seconds=options.state_seconds,
            keep=options.keep,
        )
        scenes = self._preview_scenes()
        return Keeper(keep_options, self.game, self.curriculum, self.progress, scenes, log)

    def _loop(self, stop: StopSignal, keeper: Keeper | None) -> int:
        timeouts = StepTimeouts()
        for step in itertools.count(self.progress.step):
            stage = self.curriculum.at(step)
            images = stage.batch_size * self.place.world_size
            # A penalty every r1_interval steps runs other kernels, which are compiled then.
            with timeouts.step(self.curriculum.stage_settings(step), 1 + stage.r1_interval):
                terms = self.game.step(self._next_images(stage), stage)
                self.progress.step = step + 1
                self.progress.images_seen += images
                terms = collectives.mean_over_ranks(terms)
                complaint = self._complaint(terms)  # waits for the device
                takes_long = keeper is not None and keeper.takes_long(step + 1)
                is_stopped, takes_long = collectives.agree(stop.requested, takes_long)
            if keeper is not None:
                where = self.curriculum.describe(step, self.ending.step)
                means = keeper.log.step(step + 1, stage, terms, images, where)
                if means is not None:
                    keeper.note_losses(means, stage)
            if complaint is not None:
                if keeper is not None:
                    keeper.log.say(complaint)
                    keeper.log.record({"step": step + 1, "error": complaint})
                return 1
            is_last = self.ending.is_reached(step + 1)
            if keeper is not None:
                keeper.between_steps(is_last=is_last, is_stopped=is_stopped)
            if self.options.fid.is_due(step + 1) and not is_stopped:
                self._measure_fid(stop, keeper)
            if is_stopped or is_last:
                return self._farewell(stop, keeper, is_stopped=is_stopped)
            if takes_long or self.options.fid.is_due(step + 1):
                timeouts.wait_for_rank_0()
        raise AssertionError("unreachable")

    def _save_alone(self, error: PeerLost, keeper: Keeper | None) -> None:
        """Save what this process has when another is lost, unless that is done; and say so.

        On CUDA an operation with the lost process may still be running, and its numbers with it.
        """
        folder, step = self.options.output_dir, self.progress.step
        with contextlib.ExitStack() as stack:
            if keeper is None:  # rank 0 may be lost, or on another machine; one rank saves
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(files.locked(folder / RESCUE_LOCK, lambda _: None))
            is_saved = run_state.step_of(folder) >= step
            if is_saved and keeper is None:
                return
            text = f"error: rank {self.place.rank}: {error}; "
            if self.place.device.type == "cpu" and not is_saved:
                try:
                    run_state.save_state(folder, self.game, self.curriculum, self.progress)
                    text += f"saved at step {step} in {folder}; "
                except (OSError, NotFinite) as failure:
                    text += f"step {step} could not be saved ({failure}); "
            print(f"{text}go on with the same command and --resume", file=sys.stderr, flush=True)

    def _next_images(self, stage: Stage) -> Tensor:
        """This rank's share of the next real images, (B, 3, H, W) in [-1, 1] on the device."""
        images = self.images[stage.render.image_size]
        indices = datasets.batch_indices(
            len(images),
            seed=self.game.seed,
            images_seen=self.progress.images_seen,
            batch_size=stage.batch_size,
            rank=self.place.rank,
            world_size=self.place.world_size,
        )
        batch = images.batch(indices)
        if self.place.device.type == "cuda":
            batch = batch.pin_memory()
        rng = step_rng(
            self.game.seed, self.place.rank, stage.step, Purpose.FLIPS, torch.device("cpu")
        )
        return datasets.training_images(
            batch.to(self.place.device, non_blocking=True), flip=images.options.flip, rng=rng
        )

    def _complaint(self, terms: dict[str, Tensor]) -> str | None:
        """Why training must stop, if too many updates in a row were skipped; alike on all ranks."""
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
        state = self.options.output_dir / run_state.STATE_FILE
        return f"the last good state is {state}" if state.exists() else "no state was saved"

    def _measure_fid(self, stop: StopSignal, keeper: Keeper | None) -> None:
        """FID of the averaged generator, on all ranks; the best so far is kept."""
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
            keeper.log.say(f"stopped and saved at step {step}; go on with the same command and "
                           f"--resume (in {folder})")  # fmt: skip
        else:
            keeper.log.say(f"finished at step {step} ({self.ending.reason}): {folder}")
        return code
