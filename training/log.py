"""Progress bar, log.jsonl, TensorBoard files and preview pictures of a training run.

A failure to write is reported once, and training goes on.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from config.curriculum import StagePart
from config.stage import Stage
from image_io import png
from system.files import json_bytes, write_file
from system.machine import peak_memory_bytes
from system.screen import progress_bar

LOG_FILE, BOARD = "log.jsonl", "writing TensorBoard's files"
LOG_INTERVAL = 10  # steps; reading the loss terms waits for a CUDA device
SHORT_NAMES = {"d_real": "D real", "d_fake": "D fake", "d_pair": "D", "d_r1": "R1", "d_r2": "R2",
               "g_fake": "G", "g_pair": "G", "augment_probability": "augment"}  # fmt: skip


class JsonLines:
    """A file of whole JSON lines, each with its step; earlier lines stay up to first_step."""

    def __init__(self, path: Path, first_step: int) -> None:
        if path.exists():
            lines = [line for line in path.read_bytes().splitlines() if _step(line) <= first_step]
            write_file(path, b"".join(line + b"\n" for line in lines))
        self.file = path.open("ab", buffering=0)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line; after an OSError none of it stays."""
        line = json_bytes(entry) + b"\n"
        before = self.file.tell()
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError:
            self.file.truncate(before)
            raise

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _step(line: bytes) -> float:
    """Return the step of a line; infinity if the line is torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Board:
    """TensorBoard events of numbers and pictures, one file per process; methods may raise OSError.

    Events are written at once and by this thread: torch's SummaryWriter has a thread that dies at
    the first error of the disk. TensorBoard hides entries of earlier files after first_step.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        self.opening = [
            Event(file_version="brain.Event:2"),
            Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)),
        ]
        self.number = 0
        self.file: Any = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add numbers by name."""
        for name, value in values.items():
            self._add(Event(step=step, summary=summary.scalar(name, value)))

    def image(self, name: str, image: Tensor, step: int) -> None:
        """Add a uint8 picture (3, H, W)."""
        self._add(Event(step=step, summary=summary.image(name, image, dataformats="CHW")))

    def _add(self, event: Any) -> None:
        try:
            if self.file is None:
                self._begin_file()
            self._write(event)
        except OSError:
            self.close()  # its last event may be torn, so the next event begins another file
            raise

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        RecordWriter(self.file).write(event.SerializeToString())
        self.file.flush()

    def _begin_file(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns() // 10**6:013d}.{socket.gethostname()}.{os.getpid()}.{self.number}"
        self.number += 1
        self.file = (self.folder / f"events.out.tfevents.{name}").open("ab")
        for event in self.opening:
            self._write(event)

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            with contextlib.suppress(OSError):  # of what it could not write before
                self.file.close()
            self.file = None


class RunLog:
    """The progress bar and the log files of one run; only the main process has one.

    The bar is about the present stage, because the steps of a later one take longer: its time left
    is that of the stage.

    first_step: steps done before; log lines of later steps, which will be repeated, are dropped.
    last_step: the step at which training will end; None for never. part: the first one. device:
    for the memory figure.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        last_step: int | None,
        part: StagePart,
        device: torch.device,
    ) -> None:
        self.folder, self.device, self.part = folder, device, part
        self.end = "" if last_step is None else f"/{last_step}"
        self.failing: set[str] = set()
        title, initial = self._title(first_step), first_step - part.start
        self.bar = progress_bar(part.num_steps, "step", title, initial=initial)
        self.file = JsonLines(folder / LOG_FILE, first_step)
        self.board = Board(folder / "tensorboard", first_step)
        self.reset_clock()

    def _title(self, done: int) -> str:
        return f"step {done}{self.end}, {self.part.title}"

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self.bar.write(text, file=sys.stderr)

    def attempt(self, what: str, action: Callable[[], object]) -> bool:
        """Run action and return whether it succeeded; print only the first of repeated OSErrors."""
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
        self, done: int, stage: Stage, terms: Mapping[str, Tensor], images: int, part: StagePart
    ) -> dict[str, float] | None:
        """Record one step; every LOG_INTERVAL steps return the terms' means since then, else None.

        done: steps done, this one included. terms: loss terms, not read before the next log entry.
        images: number of real images that all processes saw. part: that of the step.
        """
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0) + term  # on the device, without waiting
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += images
        self.steps += 1
        is_new, self.part = part != self.part, part
        self.bar.set_description_str(self._title(done), refresh=False)
        if is_new:
            self.bar.total, self.bar.initial = part.num_steps, 0
            self.bar.reset()
        self.bar.update()
        return None if done % LOG_INTERVAL else self._flush(done, stage)

    def _flush(self, done: int, stage: Stage) -> dict[str, float]:
        means = {name: float(total / self.counts[name]) for name, total in self.sums.items()}
        seconds = time.perf_counter() - self.since
        figures = {
            "images_per_second": self.images / seconds,
            "seconds_per_step": seconds / self.steps,
        }
        memory = peak_memory_bytes(self.device)
        figures |= {} if memory is None else {"memory_bytes": memory}
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
        for group, values in (("loss", means), ("schedule", schedule), ("speed", figures)):
            self._show_scalars(group, values, done)
        losses = {SHORT_NAMES[n]: f"{v:.3f}" for n, v in means.items() if n in SHORT_NAMES}
        speed = f"{figures['images_per_second']:.0f}"
        self.bar.set_postfix({"img/s": speed, **losses}, refresh=False)
        self.reset_clock()
        return means

    def reset_clock(self) -> None:
        """Restart the speed measurement, so that saving and previews do not count as training."""
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.images, self.steps, self.since = 0, 0, time.perf_counter()

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl."""
        self.attempt(f"writing {LOG_FILE}", lambda: self.file.append(entry))

    def _show_scalars(self, group: str, values: Mapping[str, float], done: int) -> None:
        scalars = {f"{group}/{name}": value for name, value in values.items()}
        self.attempt(BOARD, lambda: self.board.scalars(scalars, done))

    def warn(self, step: int, text: str) -> None:
        """Print a warning and append it to log.jsonl."""
        self.say(f"warning at step {step}: {text}")
        self.record({"step": step, "warning": text})

    def measured(self, done: int, name: str, value: float) -> None:
        """Write a measured figure to log.jsonl, TensorBoard and the screen."""
        self.measured_all(done, "quality", {name: value})
        self.say(f"step {done}: {name} {value:.2f}")

    def measured_all(self, done: int, group: str, values: Mapping[str, float]) -> None:
        """Write measured figures to log.jsonl and TensorBoard."""
        self.record({"step": done, **values})
        self._show_scalars(group, values, done)

    def preview(self, done: int, name: str, images: Tensor, columns: int) -> None:
        """Write previews (N, 3, H, W) in [-1, 1] to STEP_name.png and to TensorBoard."""
        sheet = png.grid(png.to_uint8(images), columns)
        path = self.folder / f"{done:06d}_{name}.png"
        self.attempt("writing previews", lambda: png.save_png(path, sheet))
        self.attempt(BOARD, lambda: self.board.image(f"previews/{name}", sheet, done))
