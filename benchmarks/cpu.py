"""Measure how fast this machine's processor is: python -m benchmarks.cpu.

Compares the textbook's implementation, as PyTorch comes out of the box, with this project's, in
float32 ("exact") and with bfloat16 products ("bf16"); then measures views and the image cache.
Prints tables and writes them into benchmarks/results/DATE-MACHINE.json. Times are medians of wall
time or, with --clock cpu, of processor time, which other programs on the machine disturb less.
--demo RUN trains the whole demo into the new folder RUN as well.
"""

import argparse
import itertools
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import curriculums
import datasets
from benchmarks import demo, table, view
from benchmarks.bench import CLOCKS, median_seconds
from benchmarks.table import Table
from benchmarks.textbook import TextbookGame, twin_of
from config.stage import OptimizerOptions, Precision
from siren.fused.arithmetic import HAS_ONEDNN_LINEAR, onednn_product
from system import flags, machine
from training.adversarial import AdversarialGame

VARIANTS = ("textbook", "exact", "bf16")
# A 64 px picture with 12 points on each ray, and a third of it: arrays so small that the C library
# keeps their memory, on which the textbook's time depends.
FIELD_POINTS = (49_152, 16_384)
PROCESSES = 3
TOP = 8  # operations that a profile names
LIMIT_SIZE = 2048  # of the square matrices whose product is the machine's limit
NUM_IMAGES, WIDTH, HEIGHT, SIZE, BATCH = 256, 178, 218, 64, 32  # CelebA's pictures

Result = TypeVar("Result")


@dataclass(frozen=True)
class Case:
    """Evaluate one object's field at some points; with none, do a training step of a curriculum.

    The generator is fresh; the trained one that the repository ships; or emptied to as much empty
    space as in one that was trained on heads.
    """

    curriculum: str
    points: int = 0
    has_gradient: bool = False
    step: int = 0
    overrides: tuple[str, ...] = ()
    is_trained: bool = False
    is_emptied: bool = False


SMALL = ("0.batch_size=1", "0.batch_split=1")
PROFILED = "CelebA step, batch 1, 64 px, untrained"
FIELDS = {
    f"{name} field, {points:,} points{', with gradient' * has_gradient}": Case(
        name, points, has_gradient
    )
    for name in ("Demo", "CelebA") for points in FIELD_POINTS for has_gradient in (False, True)
}  # fmt: skip
DEMO_STEPS = {
    "Demo step, 16 px, untrained": Case("Demo", step=500),
    "Demo step, 16 px, trained generator": Case("Demo", step=500, is_trained=True),
    "Demo step, 32 px, untrained": Case("Demo", step=10**6),
    "Demo step, 32 px, trained generator": Case("Demo", step=10**6, is_trained=True),
}
WIDE_STEPS = {
    PROFILED: Case("CelebA", step=6000, overrides=SMALL),
    "CelebA step, batch 1, 64 px, space as empty as in trained heads": Case(
        "CelebA", step=6000, overrides=SMALL, is_emptied=True
    ),
}
CASES = FIELDS | DEMO_STEPS | WIDE_STEPS


def alone(work: Callable[..., Result], *args: object) -> Result:
    """Return work's result from a new process: memory and caches of other work change times."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args).result()


def field_work(case: Case, variant: str) -> tuple[Callable[[], object], int]:
    """Return a function that evaluates a field, with or without gradients, and its count, 1."""
    siren = curriculums.load(case.curriculum).build_generator().siren
    siren = twin_of(siren) if variant == "textbook" else siren
    film = siren.mapping_network(torch.randn(1, siren.z_dim))
    points = torch.rand(1, case.points, 3) * 0.2 - 0.1
    direction = torch.tensor([[[0.0, 0.0, -1.0]]])

    def evaluate() -> None:
        with torch.set_grad_enabled(case.has_gradient):
            with torch.autocast("cpu", torch.bfloat16, enabled=variant == "bf16"):
                samples: torch.Tensor = siren(points, direction, film)
            if case.has_gradient:
                samples.sum().backward(retain_graph=True)

    return evaluate, 1


def step_work(case: Case, variant: str) -> tuple[Callable[[], object], int]:
    """Return a function that trains both networks on random pictures, and its number of steps."""
    torch.manual_seed(0)
    curriculum = curriculums.load(case.curriculum, overrides=case.overrides)
    generator = view.trained().generator if case.is_trained else curriculum.build_generator()
    if case.is_emptied:
        film = generator.mapping(torch.randn(1, generator.z_dim))
        view.empty_all_but(generator, film, view.SHARE)
    kind = TextbookGame if variant == "textbook" else AdversarialGame
    game = kind(
        generator.requires_grad_(True),
        curriculum.build_discriminator(),
        OptimizerOptions(),
        Precision(autocast_dtype=torch.bfloat16 if variant == "bf16" else None),
        seed=0,
    )
    # Without a learning rate the updates cost the same, and all are of the same networks.
    stage = replace(curriculum.at(case.step), generator_lr=0.0, discriminator_lr=0.0)
    size = stage.render.image_size
    real = torch.rand(stage.batch_size, 3, size, size) * 2 - 1

    def steps() -> None:
        for later in range(stage.r1_interval):
            game.step(real, replace(stage, step=stage.step + later))

    return steps, stage.r1_interval


def _prepare(variant: str) -> None:
    if variant != "textbook":
        machine.keep_freed_memory()


def seconds(titles: Sequence[str], variant: str, clock: str) -> dict[str, float]:
    """Return the seconds of each case in this process."""
    _prepare(variant)
    found = {}
    for title in titles:
        case = CASES[title]
        work, count = field_work(case, variant) if case.points else step_work(case, variant)
        found[title] = median_seconds(work, clock=clock) / count
    return found


def compare(clock: str) -> Table:
    """Measure all cases in all variants; a wide step has processes of its own."""
    groups = [[*FIELDS, *DEMO_STEPS], *([title] for title in WIDE_STEPS)]
    times: dict[tuple[str, str], list[float]] = {}
    jobs = list(itertools.product(range(PROCESSES), VARIANTS, groups))
    for _, variant, titles in tqdm(jobs, unit="process"):
        for title, found in alone(seconds, titles, variant, clock).items():
            times.setdefault((title, variant), []).append(found * 1e3)
    rows = []
    for title in CASES:
        slow, exact, bf16 = (statistics.median(times[title, variant]) for variant in VARIANTS)
        rows.append((title, slow, exact, slow / exact, bf16, slow / bf16))
    kind = "wall" if clock == "wall" else "processor"
    title = f"{torch.get_num_threads()} threads, {kind} time, ms"
    return Table([title, "textbook", "exact", "ratio", "bf16", "ratio"], rows)


def views(clock: str) -> Table:
    """Measure time and memory of finished pictures."""
    exact, fast = (alone(view.measure, precision, clock) for precision in ("exact", "fast"))
    ours = alone(view.measure_trained, view.SIZE, clock)
    columns = ["256 px view, 24 + 24 samples", "exact, s", "fast, s", "exact, MB", "fast, MB",
               "agreement, dB"]  # fmt: skip
    networks = ("`CelebA`'s networks", *(exact.seconds, fast.seconds),
                *(exact.peak_mb, fast.peak_mb), None)  # fmt: skip
    shipped = ("the shipped generator", ours["exact"], ours["fast"], None, None, ours["psnr_db"])
    return Table(columns, [networks, shipped])


def limits(clock: str) -> list[tuple[str, float]]:
    """Measure GFLOP/s of a large matrix product by PyTorch's default library and by oneDNN."""
    one = torch.randn(LIMIT_SIZE, LIMIT_SIZE)
    half = one.bfloat16()
    work: dict[str, Callable[[], object]] = {
        "float32, torch.mm": lambda: one @ one,
        "bfloat16": lambda: half @ half,
    }
    if HAS_ONEDNN_LINEAR:
        work["float32, oneDNN"] = lambda: onednn_product(one, one, None)
    flops = 2 * LIMIT_SIZE**3 / 1e9
    return [(f"matrix product, {name}, GFLOP/s", flops / median_seconds(product, clock=clock))
            for name, product in work.items()]  # fmt: skip


def image_rates(clock: str) -> list[tuple[str, float]]:
    """Measure images per second: decoding into the cache, and reading batches from it."""
    rng = np.random.Generator(np.random.PCG64(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        for index in range(NUM_IMAGES):
            coarse = Image.fromarray(rng.integers(0, 256, (14, 12, 3), dtype=np.uint8))
            picture = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            picture.save(folder / f"{index:03d}.jpg", quality=90)
        options = datasets.dataset_options("CelebA", str(folder))
        opened = []

        def decode() -> None:
            cache = Path(name) / "cache"
            opened.append(datasets.open_images(options, SIZE, cache_dir=cache, show_progress=False))

        def read() -> None:
            for start in range(0, NUM_IMAGES, BATCH):
                indices, rng = np.arange(start, start + BATCH), torch.Generator().manual_seed(0)
                datasets.training_images(opened[0].batch(indices, rng=rng))

        decoding = median_seconds(decode, clock=clock, warmups=0, repeats=1)
        rates = NUM_IMAGES / decoding, NUM_IMAGES / median_seconds(read, clock=clock)
    return list(zip(("images/s, decoded", "images/s, from the cache"), rates, strict=True))


def profile(variant: str) -> tuple[str, float, int, str]:
    """Profile the step PROFILED on one thread: milliseconds, operations, the longest of them."""
    torch.set_num_threads(1)
    _prepare(variant)
    steps, count = step_work(CASES[PROFILED], variant)
    steps()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        steps()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    longest = [f"{event.key} {event.self_cpu_time_total / whole:.0%}" for event in events[:TOP]]
    return variant, whole / 1e3 / count, sum(e.count for e in events) // count, ", ".join(longest)


def textbook_demo() -> dict[int, float]:
    """Return the wall seconds of the textbook's step of the demo by image size."""
    titles = {16: "Demo step, 16 px, untrained", 32: "Demo step, 32 px, untrained"}
    found = alone(seconds, list(titles.values()), "textbook", "wall")
    return {size: found[title] for size, title in titles.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables and save them; UsageError if the folder of --demo exists."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--demo", type=Path, metavar="RUN", help="train the demo there")
    args = parser.parse_args(argv)
    tables = [demo.measure(args.demo, textbook_demo)] if args.demo is not None else []
    tables += [compare(args.clock), views(args.clock)]
    rates = [*alone(limits, args.clock), *alone(image_rates, args.clock)]
    columns = ["size", "samples", "objects", "ns per point", "peak MB"]
    tables += [Table(["rate", ""], rates), Table(columns, alone(view.measure_sizes, args.clock))]
    columns = [f"{PROFILED}, one thread, profiled", "ms", "operations", "longest"]
    tables.append(Table(columns, [alone(profile, variant) for variant in VARIANTS]))
    path = table.write(table.processor(), tables, table.FOLDER)
    print(f"{table.of_file(path)}\n\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
