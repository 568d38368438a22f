"""BOUNDARY: one process of a training run: the loop over steps, and what is due between them."""

import itertools
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import checkpoints
import datasets
import distributed
import run_state
import training_fid
from curriculum import Curriculum
from datasets import ImageSet
from distributed import Place, StopSignal
from flags import UsageError
from run_log import RunLog
from run_state import Progress
from training.adversarial import AdversarialGame, Precision
from training.previews import COLUMNS, PreviewScenes, preview_scenes, previews
from training.seeding import Purpose, step_rng
from training.stage import Stage
from training_fid import FidMeter, FidOptions

STATE_SECONDS = 600.0  # between saved states, so that a power cut costs ten minutes at most
MAX_BAD_STEPS = 10  # updates in a row that were skipped because they were not finite
HEALTH_INTERVAL = 10  # steps between looks at the counts on CUDA; looking waits for the device


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What was typed, resolved; the same in every process."""

    curriculum: Curriculum
    output_dir: Path
    start_from: Path | None  # a training state, or the folder of a published run
    cache_dir: Path
    seed: int
    n_epochs: int
    max_steps: int | None
    set_step: int | None
    sample_interval: int
    model_save_interval: int
    keep: int
    fid: FidOptions
    command: list[str]


def dataset_options(curriculum: Curriculum) -> datasets.DatasetOptions:
    """The data set of a curriculum."""
    settings = curriculum.settings
    return datasets.dataset_options(
        settings.dataset,
        settings.dataset_path,
        crop=settings.crop,
        flip=settings.flip,
        resize=settings.resize,
        num_images=settings.num_images,
    )


def choose_precision(
    wanted: Literal["auto", "fp32", "fp16", "bf16"], device: torch.device, *, is_scaled: bool
) -> Precision:
    """Half precision with loss scaling on CUDA, float32 elsewhere, unless asked otherwise."""
    if wanted == "auto":
        wanted = "fp16" if device.type == "cuda" else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a CUDA device; on the CPU choose fp32 or bf16")
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[wanted]
    return Precision(
        autocast_dtype=dtype, is_scaled=is_scaled and wanted == "fp16" and device.type == "cuda"
    )


def build_game(place: Place, options: TrainOptions) -> AdversarialGame:
    """Networks and optimizers at the start, equal on all ranks."""
    settings = options.curriculum.settings
    torch.manual_seed(options.seed)
    generator = options.curriculum.build_generator().to(place.device)
    discriminator = options.curriculum.build_discriminator().to(place.device)
    return AdversarialGame(
        generator,
        discriminator,
        options.curriculum.optimizer_options(),
        choose_precision(settings.precision, place.device, is_scaled=not settings.disable_scaler),
        seed=options.seed,
        rank=place.rank,
        synchronize=distributed.average if place.world_size > 1 else None,
    )


def train(place: Place, options: TrainOptions) -> int:
    """One process's part of the training; returns the exit code."""
    distributed.keep_freed_memory()
    if place.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # a stage's shapes stay the same
    game = build_game(place, options)
    progress = Progress()
    if options.start_from is not None:
        content = run_state.read_state(options.start_from, options.curriculum)
        progress = run_state.load_state(content, game)
    if options.set_step is not None:
        progress.step = options.set_step
    # Equal already, unless machines differ in how they draw the first parameters.
    distributed.broadcast_state(game.tensors())
    if place.is_main:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        _write_options(place, options, progress, game.field_path())
    images = _open_all(place, options, progress)
    return TrainingRun(place, options, game, progress, images).run()


def _open_all(place: Place, options: TrainOptions, progress: Progress) -> dict[int, ImageSet]:
    """The real images at every size that is still to come."""
    curriculum = options.curriculum
    sizes = {curriculum.stage_settings(progress.step).img_size}
    sizes |= {stage.img_size for start, stage in curriculum.stages if start >= progress.step}
    if not place.is_main:
        distributed.wait_for_all()  # the main process decodes, with a progress bar
    images = {
        size: datasets.open_images(
            dataset_options(curriculum),
            size,
            cache_dir=options.cache_dir,
            skipped_file=options.output_dir / "skipped.txt" if place.is_main else None,
            show_progress=place.is_main,
        )
        for size in sorted(sizes)
    }
    if place.is_main:
        distributed.wait_for_all()
    return images


def _write_options(
    place: Place, options: TrainOptions, progress: Progress, field_path: str
) -> None:
    content = {
        "command": options.command,
        "curriculum_name": options.curriculum.name,
        "curriculum": {str(key): value for key, value in options.curriculum.source.items()},
        "seed": options.seed,
        "first_step": progress.step,
        "start_from": str(options.start_from) if options.start_from else None,
        "processes": place.world_size,
        "device": str(place.device),
        "field": field_path,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    with checkpoints.replaced(options.output_dir / "options.json") as file:
        file.write(json.dumps(content, indent=2).encode())


class TrainingRun:
    """The loop over steps, and what happens between them."""

    def __init__(
        self,
        place: Place,
        options: TrainOptions,
        game: AdversarialGame,
        progress: Progress,
        images: dict[int, ImageSet],
    ) -> None:
        self.place, self.options, self.game = place, options, game
        self.progress, self.images = progress, images
        self.curriculum = options.curriculum
        self.last_step = self._last_step()
        self.saved_at = time.monotonic()
        self.scenes = self._preview_scenes()
        self.meter, self.about_fid = self._open_meter()

    def _last_step(self) -> int:
        """Where training ends: the curriculum's end, --max_steps or --n_epochs, the earliest."""
        limits = [self.curriculum.end, self.options.max_steps]
        step, images = self.progress.step, 0
        wanted = self.options.n_epochs * len(next(iter(self.images.values())))
        # Batch sizes change by stage, so the epochs are counted stage by stage.
        starts = [start for start, _ in self.curriculum.stages if start > step]
        for upper in [*starts, None]:
            batch = self.curriculum.stage_settings(step).batch_size * self.place.world_size
            needed = -(-(wanted - images) // batch)
            if upper is None or step + needed <= upper:
                limits.append(step + needed)
                break
            images, step = images + (upper - step) * batch, upper
        return min(limit for limit in limits if limit is not None)

    def _open_meter(self) -> tuple[FidMeter | None, str]:
        """What measures FID, or nothing and why not; nothing and "" where it is never due."""
        options = self.options
        if not options.fid.is_ever_due(self.progress.step, self.last_step):
            return None, ""
        data = dataset_options(self.curriculum)
        return training_fid.open_meter(
            self.place, options.fid, self.curriculum, data, options.cache_dir
        )

    def _preview_scenes(self) -> PreviewScenes:
        rng = step_rng(self.options.seed, 0, 0, Purpose.PREVIEWS, torch.device("cpu"))
        settings = self.curriculum.settings
        return preview_scenes(
            self.curriculum.evaluation_poses(), settings.latent_dim, settings.z_dist, rng=rng
        )

    def run(self) -> int:
        """Train to the last step; returns the exit code."""
        if self.progress.step >= self.last_step:
            if self.place.is_main:
                print(f"nothing to do: {self.options.output_dir} is at step {self.progress.step}, "
                      f"training ends at {self.last_step}", file=sys.stderr)  # fmt: skip
            return 0
        if not self.place.is_main:
            with StopSignal() as stop:
                return self._loop(stop, None)
        first = self.progress.step
        folder = self.options.output_dir
        with StopSignal() as stop, RunLog(folder, first, self.last_step, self.place.device) as log:
            log.say(f"the field on {self.place.device}: {self.game.field_path()}")
            if self.about_fid:
                log.say(self.about_fid)
            return self._loop(stop, log)

    def _loop(self, stop: StopSignal, log: RunLog | None) -> int:
        for step in itertools.count(self.progress.step):
            stage = self.curriculum.at(step)
            terms = distributed.mean_over_ranks(self.game.step(self._next_images(stage), stage))
            self.progress.step = step + 1
            self.progress.images_seen += stage.batch_size * self.place.world_size
            if log is not None:
                images = stage.batch_size * self.place.world_size
                where = self.curriculum.describe(step, self.last_step)
                log.step(step + 1, stage, terms, images, where)
            complaint = self._complaint(terms)
            if complaint is not None:
                if log is not None:
                    log.say(complaint)
                return 1
            is_stopped = distributed.agree_to_stop(stop.requested)
            is_over = is_stopped or step + 1 >= self.last_step
            if log is not None:
                self._between_steps(log, is_stopped=is_stopped)
            if self.options.fid.is_due(step + 1) and not is_stopped:
                self._measure_fid(stop, log)
            if is_over:
                return self._farewell(stop, log, is_stopped=is_stopped)
        raise AssertionError("unreachable")

    def _next_images(self, stage: Stage) -> Tensor:
        """This rank's share of the next real images, (B, 3, H, W) in [-1, 1] on the device."""
        images = self.images[stage.render.image_size]
        indices = datasets.batch_indices(
            len(images),
            seed=self.options.seed,
            images_seen=self.progress.images_seen,
            batch_size=stage.batch_size,
            rank=self.place.rank,
            world_size=self.place.world_size,
        )
        batch = images.batch(indices)
        if self.place.device.type == "cuda":
            batch = batch.pin_memory()
        rng = step_rng(
            self.options.seed, self.place.rank, stage.step, Purpose.FLIPS, torch.device("cpu")
        )
        return datasets.training_images(
            batch.to(self.place.device, non_blocking=True), flip=images.options.flip, rng=rng
        )

    def _complaint(self, terms: dict[str, Tensor]) -> str | None:
        """Why training must stop, if too many updates in a row were skipped; alike on all ranks."""
        step = self.progress.step
        if self.place.device.type == "cuda" and step % HEALTH_INTERVAL:
            return None
        longest = int(self.game.health.longest_row)
        if longest < MAX_BAD_STEPS:
            return None
        bad = [name for name, term in terms.items() if not term.isfinite()]
        state = self.options.output_dir / run_state.STATE_FILE
        where = f"the last good state is {state}" if state.exists() else "no state was saved"
        return (
            f"error: {longest} updates in a row were not finite, up to step {step} (not finite: "
            f"{', '.join(bad) or 'the gradient'}); {where}. A lower learning rate may help"
        )

    def _between_steps(self, log: RunLog, *, is_stopped: bool) -> None:
        """States, snapshots and previews, where they are due; no previews when asked to stop."""
        step, options = self.progress.step, self.options
        is_last = step >= self.last_step
        is_snapshot = step % options.model_save_interval == 0
        is_saved = is_snapshot or is_last or is_stopped or self._is_state_due()
        is_shown = step % options.sample_interval == 0 or (is_last and not is_stopped)
        if is_snapshot:
            run_state.save_snapshot(
                options.output_dir, self.game, self.curriculum, self.progress, keep=options.keep
            )
        if is_saved:
            run_state.save_state(options.output_dir, self.game, self.curriculum, self.progress)
            log.record({"step": step, "saved": True, "skipped": int(self.game.health.skipped)})
            self.saved_at = time.monotonic()
        if is_shown:
            self._write_previews(log)
        if is_saved or is_shown:
            log.reset_clock()

    def _measure_fid(self, stop: StopSignal, log: RunLog | None) -> None:
        """FID of the averaged generator, on all ranks; the best so far is kept."""
        if self.meter is None:
            return
        step, folder = self.progress.step, self.options.output_dir
        averaged = self.game.averages[0].averaged(self.game.generator)
        fid = self.meter.measure(averaged, step, self.place, lambda: stop.requested)
        if fid is None or log is None:
            return
        log.measured(step, "fid", fid)
        if training_fid.note(folder, step, fid):
            run_state.export(folder / "best", self.game, self.curriculum, self.progress)
        log.reset_clock()

    def _is_state_due(self) -> bool:
        return time.monotonic() - self.saved_at > STATE_SECONDS

    def _write_previews(self, log: RunLog) -> None:
        step = self.progress.step
        size = self.curriculum.settings.preview_size
        options = self.curriculum.preview_render(step - 1, size)
        averaged = self.game.averages[0].averaged(self.game.generator)
        pictures = previews(self.game.generator.eval(), averaged, self.scenes, options)
        for name, images in pictures:
            log.preview(step, name, images, COLUMNS)

    def _farewell(self, stop: StopSignal, log: RunLog | None, *, is_stopped: bool) -> int:
        if log is not None:
            folder, step = self.options.output_dir, self.progress.step
            if is_stopped:
                log.say(f"stopped and saved at step {step}; go on with the same command and "
                        f"--resume (in {folder})")  # fmt: skip
            else:
                log.say(f"finished at step {step}: {folder}")
        return 128 + (stop.signum or 0) if is_stopped and stop.signum else 0
