"""Train on pictures for some minutes as a user would, resume, render; train with two processes.

Part of benchmarks/gpu.py. Every command runs in a process of its own with a time limit.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import Bench
from training.state import step_of

ROOT = Path(__file__).resolve().parent.parent
END_SECONDS = 60  # for saving after a signal, and for any other command
RESUMED_STEPS = 20


@dataclass(frozen=True)
class PictureRun:
    """A training run on images, a folder or zip, whose files go into folder."""

    images: Path
    folder: Path

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return self.folder / "trained"

    def train(self, bench: Bench) -> None:
        """Train for the benchmark's training_seconds, then stop by a signal, which saves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        seconds = bench.sizes.training_seconds
        start = time.perf_counter()
        more = ("--max_steps", str(bench.sizes.training_steps))
        code = self._run(bench, "train.py", *self._options(bench), *more, seconds=seconds)
        if code not in (0, 128 + signal.SIGTERM):
            raise RuntimeError(f"train.py ended with exit code {code}: {self._log}")
        step = step_of(self.output_dir)
        lines = (self.output_dir / "log.jsonl").read_text("utf-8").splitlines()
        found = [entry for entry in map(json.loads, lines) if "seconds_per_step" in entry]
        figures = {"steps": step, "seconds": time.perf_counter() - start, "last": found[-1:]}
        per_step = found[-1]["seconds_per_step"] if found else float("nan")
        text = f"{step} steps, {per_step:.3f} s each; pictures in {self.output_dir}"
        bench.note("training on pictures", figures, text)

    def resume(self, bench: Bench) -> None:
        """Train some more steps from the saved state."""
        before = step_of(self.output_dir)
        steps = str(before + RESUMED_STEPS)
        more = ("--resume", "--max_steps", steps)
        self._require(bench, "train.py", *self._options(bench), *more)
        after = step_of(self.output_dir)
        bench.note("resumed", [before, after], f"at step {before}, to step {after}")
        if after != before + RESUMED_STEPS:
            raise RuntimeError(f"resumed at step {before} and ended at {after}, not at {steps}")

    def render(self, bench: Bench) -> None:
        """Render objects of the trained generator, exact and fast."""
        for precision in ("exact", "fast"):
            folder = self.folder / f"rendered_{precision}"
            self._require(
                bench, "render_multiview_images.py", str(self.output_dir / "generator.pth"),
                "--seeds", "0", "1", "2", "--precision", precision, "--output_dir", str(folder),
                "--image_size", str(bench.sizes.picture // 4),
            )  # fmt: skip
            bench.note(f"rendered, {precision}", str(folder), f"pictures in {folder}")

    @property
    def _log(self) -> Path:
        return self.folder / "commands.txt"

    def _options(self, bench: Bench) -> list[str]:
        changes = ["dataset=Images", *bench.sizes.overrides]
        return [
            "--curriculum", "CelebA", "--dataset_path", str(self.images),
            "--output_dir", str(self.output_dir), "--cache_dir", str(self.folder / "cache"),
            "--sample_interval", "200", "--eval_freq", "0",
            *(word for change in changes for word in ("--set", change)),
        ]  # fmt: skip

    def _require(self, bench: Bench, *command: str) -> None:
        code = self._run(bench, *command, seconds=END_SECONDS)
        if code:
            raise RuntimeError(f"{command[0]} ended with exit code {code}: {self._log}")

    def _run(self, bench: Bench, script: str, *arguments: str, seconds: float) -> int:
        """Return the exit code of a command, which gets a signal after so many seconds."""
        command = [sys.executable, str(ROOT / script), *arguments, "--device", str(bench.device)]
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.terminate()
                return process.wait(END_SECONDS)
            finally:
                process.kill()


def train_with_two_processes(bench: Bench) -> None:
    """Train with two processes, on one GPU if there is no other, by the tests for that."""
    tests = "tests/test_on_gpu.py::test_two_processes_train_together"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", tests]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=2 * END_SECONDS, check=False
    )
    print(done.stdout)
    if done.returncode:
        raise RuntimeError(f"pytest ended with exit code {done.returncode}")
    bench.note("two processes", True, "train together")
