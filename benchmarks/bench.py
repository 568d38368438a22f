"""Time work, and run the sections of the GPU benchmark."""

import dataclasses
import math
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def median_seconds(
    work: Callable[[], object],
    *,
    clock: str = "wall",
    warmups: int = 1,
    repeats: int = 3,
    limit: float = 2.0,
    synchronize: Callable[[], None] = lambda: None,
) -> float:
    """Return the median seconds of work; stops repeating it after limit seconds in all."""
    for _ in range(warmups):
        work()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < limit:
        synchronize()
        start = CLOCKS[clock]()
        work()
        synchronize()
        seconds.append(CLOCKS[clock]() - start)
    return statistics.median(seconds)


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the PSNR of images in [-1, 1], dB; 186 if they are equal."""
    return float(10 * torch.log10(4 / (one - other).square().mean().clamp(min=1e-18)))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the work of each measurement."""

    matrices: tuple[int, ...] = (4096, 8192, 16384)
    checked_points: int = 4097
    objects: int = 8
    field_points: int = 2**17  # of each object
    overrides: tuple[str, ...] = ()  # of CelebA
    larger: tuple[str, ...] = ("0.img_size=128", "0.batch_size=16", "0.batch_split=2")
    picture: int = 512
    picture_steps: int = 24
    picture_chunk: int = 2**20
    repeats: int = 10
    training_seconds: float = 120  # of training on pictures, which ends earlier after
    training_steps: int = 100_000


class Bench:
    """One benchmark run: the device, the sizes, and the results by name.

    limit: seconds; a section that would end after it is skipped. save: called after each section.
    """

    def __init__(
        self,
        device: torch.device,
        sizes: Sizes,
        *,
        limit: float = math.inf,
        save: Callable[["Bench"], object] = lambda _: None,
    ) -> None:
        self.device, self.sizes, self.limit, self.save = device, sizes, limit, save
        self.half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self.results: dict[str, Any] = {}
        self.rows: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self.skipped: list[str] = []
        self.start = time.perf_counter()

    def note(self, name: str, value: Any, text: str) -> None:
        """Keep a result and print it."""
        self.rows.append((name, " ".join(text.split())))
        self.results[name] = value
        print(f"  {name:46} {text}", flush=True)

    def section(self, title: str, work: Callable[["Bench"], None], seconds: float = 0) -> None:
        """Do work of about so many seconds, then free cached memory and save the results.

        Failures are printed and counted, and the next section follows.
        """
        passed = time.perf_counter() - self.start
        print(f"\n{title}  [{passed:.0f} s]", flush=True)
        if passed + seconds > self.limit:
            left = max(0, self.limit - passed)
            print(f"  SKIPPED: takes about {seconds:.0f} s, and {left:.0f} s are left", flush=True)
            self.skipped.append(title)
            self.save(self)
            return
        self._attempt(title, lambda: work(self))
        if self.device.type == "cuda":  # after an error on the device this fails too
            self._attempt(title, torch.cuda.empty_cache)
        self.save(self)

    def _attempt(self, title: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:
            traceback.print_exc()
            print(f"  FAILED: {title}", flush=True)
            if title not in self.failures:
                self.failures.append(title)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Return the median wall time of work after two warm-up calls; all wait for the device."""
        return median_seconds(
            work,
            warmups=2,
            repeats=repeats or self.sizes.repeats,
            limit=math.inf,
            synchronize=self.synchronize,
        )

    def peak_bytes(self, work: Callable[[], object]) -> int:
        """Return the peak memory of tensors during work; 0 without a CUDA device."""
        if self.device.type != "cuda":
            work()
            return 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device)

    def autocast(self) -> torch.autocast:
        """Return the half-precision autocast context of training."""
        return torch.autocast(self.device.type, dtype=self.half)
