"""BOUNDARY: what a run tells while it trains: progress bars, log.jsonl, TensorBoard, previews.

Where the disk refuses, that is said once and training goes on.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from config.stage import Stage
from image_io import png
from system.flags import Screen
from training.append_files import Board, JsonLines

LOG_FILE = "log.jsonl"
LOG_INTERVAL = 10  # steps; reading the loss terms waits for a CUDA device
BAR_SECONDS = 0.5  # between redraws on a terminal
QUIET_SECONDS = 30.0  # between redraws in a log file
SHORT_NAMES = {"d_real": "D real", "d_fake": "D fake", "d_r1": "R1", "g_fake": "G"}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the CUDA device, or resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RunLog:
    """The screen and the log files of one run; only the main process has one.

    Args:
        folder: of the run.
        first_step: steps done before. What an earlier process logged of later steps, which will be
            done once more, is dropped.
        last_step: where training will end; None for never.
        device: for the memory figure.
        keep: how many full log files stay beside the current one.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        last_step: int | None,
        device: torch.device,
        *,
        keep: int,
    ) -> None:
        self.folder, self.device, self.keep = folder, device, keep
        self.failing: set[str] = set()
        seconds = BAR_SECONDS if sys.stderr.isatty() else QUIET_SECONDS
        self.screen: Any = Screen()
        self.bar = tqdm(
            total=last_step,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=seconds,
            maxinterval=seconds,
            smoothing=0.05,
            file=self.screen,
        )
        self.file = JsonLines(folder / LOG_FILE, first_step, keep=keep)
        self.board = Board(folder / "tensorboard", first_step, keep=keep)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images, self.steps, self.since = 0, 0, time.perf_counter()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self.bar.write(text, file=self.screen)

    def attempt(self, what: str, action: Callable[[], object]) -> bool:
        """Whether action could write what it has to; the first failure in a row is told."""
        try:
            action()
        except OSError as error:
            if what not in self.failing:
                self.failing.add(what)
                reason = error.strerror or str(error)
                self.say(f"warning: {what} failed ({reason}); training goes on")
            return False
        if what in self.failing:
            self.failing.remove(what)
            self.say(f"{what} works again")
        return True

    def step(
        self, done: int, stage: Stage, terms: Mapping[str, Tensor], images: int, where: str
    ) -> dict[str, float] | None:
        """Note one step.

        Args:
            done: steps done so far, this one included.
            stage: what held at this step.
            terms: its loss terms; not read before the next log entry.
            images: real images that all processes saw.
            where: what the bar says of the stage.

        Returns:
            The means of the terms since the last entry, every LOG_INTERVAL steps.
        """
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term  # on the device, without waiting
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += images
        self.steps += 1
        self.bar.update()
        if done % LOG_INTERVAL:
            return None
        self.bar.set_description_str(where, refresh=False)
        return self._flush(done, stage)

    def _flush(self, done: int, stage: Stage) -> dict[str, float]:
        means = {name: float(total / self.counts[name]) for name, total in self.sums.items()}
        seconds = time.perf_counter() - self.since
        figures = {
            "images_per_second": self.images / seconds,
            "seconds_per_step": seconds / self.steps,
            "memory_bytes": peak_memory_bytes(self.device),
        }
        schedule = {
            "image_size": stage.render.image_size,
            "batch_size": stage.batch_size,
            "generator_lr": stage.generator_lr,
            "discriminator_lr": stage.discriminator_lr,
            "alpha": stage.alpha,
            "density_noise": stage.render.density_noise,
            "topk_share": stage.topk_share,
        }
        self.record({"step": done, **schedule, **means, **figures})
        scalars = {
            f"{group}/{name}": value
            for group, values in (("loss", means), ("schedule", schedule), ("speed", figures))
            for name, value in values.items()
        }
        self.attempt("writing TensorBoard's files", lambda: self.board.scalars(scalars, done))
        losses = {SHORT_NAMES[n]: f"{v:.3f}" for n, v in means.items() if n in SHORT_NAMES}
        speed = {"img/s": f"{figures['images_per_second']:.0f}"}
        self.bar.set_postfix({**speed, **losses}, refresh=False)
        self.reset_clock()
        return means

    def reset_clock(self) -> None:
        """Start measuring anew, so that saving and previews do not count as training."""
        self.sums, self.counts = {}, {}
        self.images, self.steps, self.since = 0, 0, time.perf_counter()

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl."""
        self.attempt(f"writing {LOG_FILE}", lambda: self.file.append(entry))

    def warn(self, step: int, text: str) -> None:
        """A line on the screen and in log.jsonl."""
        self.say(f"warning at step {step}: {text}")
        self.record({"step": step, "warning": text})

    def measured(self, done: int, name: str, value: float) -> None:
        """Write a measured figure to log.jsonl, TensorBoard and the screen."""
        self.record({"step": done, name: value})
        scalars = {f"quality/{name}": value}
        self.attempt("writing TensorBoard's files", lambda: self.board.scalars(scalars, done))
        self.say(f"step {done}: {name} {value:.2f}")

    def preview(self, done: int, name: str, images: Tensor, columns: int) -> None:
        """Write the previews (N, 3, H, W) in [-1, 1] as STEP_name.png and into TensorBoard."""
        sheet = png.grid(png.to_uint8(images), columns)
        path = self.folder / f"{done:06d}_{name}.png"
        self.attempt("writing previews", lambda: png.save_png(path, sheet))
        board = self.board
        self.attempt(
            "writing TensorBoard's files", lambda: board.image(f"previews/{name}", sheet, done)
        )
