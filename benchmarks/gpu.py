"""Measure how fast a CUDA device trains and renders: python benchmarks/gpu.py, five minutes.

python benchmarks/gpu.py --images photos.zip --minutes 9  also trains on pictures

Checks the kernels against the float64 reference first. Then measures the field, a training step of
CelebA's networks and a 512 px picture beside the textbook evaluation under autocast and beside the
largest matrix product's rate, all in this run. Prints tables and writes them as JSON after each
part. A failure is printed and counted, the other measurements go on, and the exit code is then 1.
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # when run as a file

import torch
from torch import Tensor

import curriculums
from benchmarks import table, view
from benchmarks.bench import Bench, Sizes, psnr
from benchmarks.gpu_checks import (
    check,
    check_rays,
    check_without_triton,
    field_inputs,
    without_triton,
)
from benchmarks.gpu_training import PictureRun, train_with_two_processes
from benchmarks.table import Table
from benchmarks.textbook import TextbookGame, twin_of
from config.curriculum import Curriculum
from config.stage import OptimizerOptions, Precision, Stage
from generators.cameras import Poses
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import RenderOptions
from siren.film import Film
from siren.siren import FIELDS, FilmSiren
from system import flags
from training.adversarial import AdversarialGame

STEP = 20_000  # of the curriculum: faded in, without density noise


def matrix_rate(bench: Bench) -> None:
    """Measure the largest rate of a half-precision matrix product."""
    rates = {}
    for size in bench.sizes.matrices:
        a, b = (torch.randn(size, size, device=bench.device, dtype=bench.half) for _ in range(2))
        rates[size] = 2 * size**3 / bench.seconds(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    best = max(rates.values())
    bench.note("matrix product, TFLOP/s", best / 1e12, f"{best / 1e12:.1f}")


def operations(field: FilmSiren) -> int:
    """Return the multiplications and additions by the layers' weights for one point."""
    layers = [*field.network, field.final_layer, field.color_layer_sine, field.color_layer_linear]
    weights = (p for layer in layers for name, p in layer.named_parameters() if "weight" in name)
    return 2 * sum(weight.numel() for weight in weights)


def measure_field(bench: Bench) -> None:
    """Measure forward, and forward with backward; recomputation does not count as work."""
    ours = FIELDS["SPATIALSIRENBASELINE"]().to(bench.device)
    points, directions, z = field_inputs(bench, bench.sizes.field_points)
    limit = bench.results.get("matrix product, TFLOP/s", float("nan")) * 1e12
    work = operations(ours) * points.shape[0] * points.shape[1]
    for name, field in (("textbook", twin_of(ours)), ("ours", ours)):
        field = field.to(bench.device)
        # The textbook keeps 30 KB a point for its gradient: fewer points, the same rate.
        part = points if name == "ours" else points[:, : points.shape[1] // 4]
        seen = directions[:, :1]

        def evaluate(field: FilmSiren = field, part: Tensor = part, seen: Tensor = seen) -> Tensor:
            film = field.mapping_network(z)
            with bench.autocast():
                samples: Tensor = field(part, seen, film)
            return samples.float()

        share = part.shape[1] / points.shape[1]
        with torch.no_grad():
            forward = bench.seconds(evaluate) / share
        both = bench.seconds(lambda evaluate=evaluate: evaluate().sum().backward()) / share  # type: ignore[misc]
        for kind, taken, factor in (("forward", forward, 1), ("forward + backward", both, 3)):
            rate = factor * work / taken
            bench.note(
                f"field, {name}, {kind}",
                {"TFLOP/s": rate / 1e12, "share_of_matrix_rate": rate / limit},
                f"{rate / 1e12:7.1f} TFLOP/s, {100 * rate / limit:5.1f} % of the matrix rate",
            )


def game_of(bench: Bench, curriculum: Curriculum, *, is_textbook: bool) -> AdversarialGame:
    """Return CelebA's game under autocast, the textbook's or ours."""
    torch.manual_seed(0)
    is_cuda = bench.device.type == "cuda"
    kind = TextbookGame if is_textbook else AdversarialGame
    return kind(
        curriculum.build_generator().to(bench.device),
        curriculum.build_discriminator().to(bench.device),
        OptimizerOptions(),
        Precision(autocast_dtype=bench.half, is_scaled=is_cuda),
        seed=0,
    )


def measure_step(
    bench: Bench, name: str, overrides: Sequence[str], *, is_textbook: bool
) -> dict[str, Any]:
    """Measure images per second and peak memory of a step; split the batch until it fits."""
    curriculum = curriculums.load("CelebA", overrides=list(overrides))
    while True:
        try:
            found = step_figures(bench, curriculum, is_textbook=is_textbook)
            break
        except torch.cuda.OutOfMemoryError:
            stage = curriculum.at(STEP)
            if 2 * stage.batch_split > stage.batch_size:
                raise
            more = f"0.batch_split={2 * stage.batch_split}"
            curriculum = curriculums.load("CelebA", overrides=[*overrides, more])
            torch.cuda.empty_cache()
    bench.note(
        name, found,
        f"{found['images/s']:7.1f} images/s, {found['peak_bytes'] / 2**30:5.1f} GiB, "
        f"{found['batch_split']} parts, {found['field']}",
    )  # fmt: skip
    return found


def step_figures(bench: Bench, curriculum: Curriculum, *, is_textbook: bool) -> dict[str, Any]:
    """Return the figures of measure_step for one curriculum."""
    stage = curriculum.at(STEP)
    game = game_of(bench, curriculum, is_textbook=is_textbook)
    real = real_images(bench, stage)
    peak = bench.peak_bytes(lambda: game.step(real, stage))
    taken = bench.seconds(lambda: game.step(real, stage), bench.sizes.repeats // 2)
    return {
        "images/s": stage.batch_size / taken,
        "peak_bytes": peak,
        "batch_split": stage.batch_split,
        "field": "textbook" if is_textbook else game.field_path(),
    }


def real_images(bench: Bench, stage: Stage) -> Tensor:
    """Return noise instead of photos, (B, 3, H, W) in [-1, 1]."""
    size = stage.render.image_size
    return torch.rand(stage.batch_size, 3, size, size, device=bench.device) * 2 - 1


def measure_training(bench: Bench) -> None:
    """Measure CelebA's step and the textbook's, its host waits, and a larger step."""
    plain = bench.sizes.overrides
    slow = measure_step(bench, "training step, textbook", plain, is_textbook=True)
    fast = measure_step(bench, "training step, ours", plain, is_textbook=False)
    ratio = fast["images/s"] / slow["images/s"]
    bench.note("training step, ratio", ratio, f"{ratio:.2f} times the images per second")
    if slow["peak_bytes"]:
        memory = fast["peak_bytes"] / slow["peak_bytes"]
        bench.note("training step, memory", memory, f"{memory:.2f} of the textbook's peak memory")
    if bench.device.type == "cuda":
        with without_triton():
            measure_step(bench, "training step, ours without Triton", plain, is_textbook=False)
    larger = [*plain, *bench.sizes.larger]
    measure_step(bench, "larger training step, ours", larger, is_textbook=False)


def count_waits(bench: Bench) -> None:
    """Count how often the host waits for the device in one training step."""
    curriculum = curriculums.load("CelebA", overrides=list(bench.sizes.overrides))
    stage = curriculum.at(STEP)
    game = game_of(bench, curriculum, is_textbook=False)
    real = real_images(bench, stage)
    game.step(real, stage)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            game.step(real, stage)
        finally:
            if bench.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    places = [
        f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in f"{w.message}"
    ]
    bench.note("waits for the device in a step", places, f"{len(places)} {sorted(set(places))}")


def measure_picture(bench: Bench) -> None:
    """Measure a render of 24 + 24 samples under autocast, dense and skipping, and its change."""
    torch.manual_seed(0)
    generator = ImplicitGenerator3d(FIELDS["SPATIALSIRENBASELINE"]()).to(bench.device).eval()
    poses = Poses(torch.tensor([1.5]), torch.tensor([1.6]))
    sizes = bench.sizes

    @torch.no_grad()
    def render(size: int, *, is_half: bool = True) -> Tensor:
        options = RenderOptions(
            image_size=size, fov_degrees=12.0, near=0.88, far=1.12,
            num_steps=sizes.picture_steps, background="last_sample",
        )  # fmt: skip
        film: Film = generator.mapping(latent)
        with torch.autocast(bench.device.type, dtype=bench.half, enabled=is_half):
            seen = generator.render(film, poses, options, points_per_chunk=sizes.picture_chunk)
        return seen.images

    latent = torch.randn(1, 256).to(bench.device)
    with torch.no_grad():
        view.empty_all_but(generator, generator.mapping(latent), view.SHARE)
    taken = bench.seconds(lambda: render(sizes.picture))
    bench.note("picture, images/s", 1 / taken, f"{1 / taken:.2f} at {sizes.picture} px, dense")
    generator.skips_empty_space = True  # as in a video: the warm-up finds where it is
    taken = bench.seconds(lambda: render(sizes.picture))
    bench.note("picture, skipping, images/s", 1 / taken,
               f"{1 / taken:.2f} where a third of space holds density")  # fmt: skip
    skipped = render(sizes.picture)
    generator.skips_empty_space = False
    change = psnr(skipped, render(sizes.picture))
    bench.note("picture, dB of skipping", change, f"{change:.1f} against dense")
    small = sizes.picture // 4
    decibels = psnr(render(small), render(small, is_half=False))
    bench.note("picture, dB against float32", decibels, f"{decibels:.1f} at {small} px, untrained")


def profile(bench: Bench) -> None:
    """List the slowest kernels of one step, before (textbook) and after (ours)."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    split = bench.results.get("training step, textbook", {}).get("batch_split", 8)
    for name, is_textbook in (("before", True), ("after", False)):
        extra = [f"0.batch_split={split}"] if is_textbook else []
        curriculum = curriculums.load("CelebA", overrides=[*bench.sizes.overrides, *extra])
        stage = curriculum.at(STEP)
        game, real = game_of(bench, curriculum, is_textbook=is_textbook), real_images(bench, stage)
        game.step(real, stage)
        bench.synchronize()
        with torch.profiler.profile(activities=activities) as run:
            game.step(real, stage)
            bench.synchronize()
        key = "self_device_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
        events = sorted(run.key_averages(), key=lambda event: -getattr(event, key))
        rows = [(e.key[:70], round(getattr(e, key) / 1e3, 2), e.count) for e in events[:12]]
        bench.results[f"profile, {name}"] = rows
        print(f"  {name}: milliseconds, calls, kernel")
        for kernel, milliseconds, count in rows:
            print(f"    {milliseconds:9.2f} {count:6d}  {kernel}")


def measure(bench: Bench, run: PictureRun | None = None) -> None:
    """Do all sections, those of most worth first; run trains on pictures."""
    torch.manual_seed(0)
    bench.section("Correctness: relative errors against float64", check, 60)
    if bench.device.type == "cuda":
        bench.section("Correctness without Triton", check_without_triton, 15)
        bench.section("Correctness of sampling and compositing", check_rays, 15)
    bench.section("Training CelebA's networks", measure_training, 90)
    if run is not None:
        bench.section("Training on pictures", run.train, bench.sizes.training_seconds + 40)
        bench.section("Resuming", run.resume, 40)
        bench.section("Pictures of the trained generator", run.render, 40)
    if bench.device.type == "cuda":
        bench.section("Two processes", train_with_two_processes, 60)
    bench.section("The limit", matrix_rate, 10)
    bench.section("The field, 256 wide, 8 + 1 layers", measure_field, 20)
    bench.section("Rendering", measure_picture, 30)
    bench.section("Waits", count_waits, 10)
    bench.section("Profile of one training step", profile, 30)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the CUDA device, print and write tables; return 2 if there is no device."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default=table.FOLDER)
    add("--images", type=Path, help="a folder or zip of pictures: also train on them for two "
        "minutes at 64 px, resume, and render, in a folder of --output_dir")  # fmt: skip
    add("--minutes", type=flags.positive_float, default=math.inf,
        help="skip what no longer fits into so many minutes")  # fmt: skip
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured (torch "
              f"{torch.__version__}; python -m benchmarks.cpu measures the processor)",
              file=sys.stderr)  # fmt: skip
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name(device)
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}")

    def save(bench: Bench) -> Path:
        rows = Table([f"CUDA {torch.version.cuda}", ""], bench.rows)
        return table.write(
            name, [rows], args.output_dir, failures=bench.failures, skipped=bench.skipped,
            results=bench.results,
        )  # fmt: skip

    bench = Bench(device, Sizes(), limit=60 * args.minutes, save=save)
    folder = args.output_dir / time.strftime("pictures-%Y-%m-%d-%H%M%S")
    measure(bench, args.images and PictureRun(args.images, folder))
    print(f"\n{time.perf_counter() - bench.start:.0f} s; written to {save(bench)}")
    for title, found in (("SKIPPED", bench.skipped), ("FAILED", bench.failures)):
        if found:
            print(f"{title}: {'; '.join(found)}", file=sys.stderr)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
