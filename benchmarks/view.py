"""Render 256 px views with 24 + 24 samples, to measure time, memory, and --precision fast.

The views are of CelebA's networks, untrained, and of the generator that the repository ships.
Untrained networks have density everywhere. So that `--precision fast` finds as much empty space as
in trained ones, the density is lowered until two fifths of space have some, as in a generator that
was trained on heads. `python -m benchmarks.view GENERATOR` prints this share of a generator.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

import torch

import curriculums
from benchmarks.bench import median_seconds, psnr
from checkpoint_io import checkpoints
from generators.cameras import Poses
from generators.fields import CPU_CHUNK
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import RenderOptions
from rendering import viewing
from siren.film import Film
from system import machine

SIZE, STEPS = 256, 24
TRAINED = Path(__file__).parent.parent / "assets" / "demo" / "generator.pth"
OBJECTS = 3  # of the trained generator
SHARE = 0.4  # of space that holds density
SIDE = 0.24  # of that space, scene units
CASES = [(64, 12, 1), (128, 12, 1), (256, 12, 1), (64, 48, 1), (64, 12, 4), (64, 12, 16)]


class Cost(NamedTuple):
    """Cost of a render: seconds, and the peak memory of this process in MB."""

    seconds: float
    peak_mb: float


@torch.no_grad()
def densities(generator: ImplicitGenerator3d, film: Film) -> torch.Tensor:
    """Return raw densities (1, P) of one object at points of the cube of side SIDE."""
    rng = torch.Generator().manual_seed(0)
    points = ((torch.rand(1, 2**14, 3, generator=rng) - 0.5) * SIDE).to(film.frequencies)
    return generator.siren.density(points, film)


@torch.no_grad()
def empty_all_but(generator: ImplicitGenerator3d, film: Film, share: float) -> None:
    """Lower the density until only this share of the cube is positive."""
    level = densities(generator, film).quantile(1 - share)
    generator.siren.final_layer.bias.sub_(level / generator.siren.density_scale)


@torch.no_grad()
def dense_share(generator: ImplicitGenerator3d, objects: int = 16) -> float:
    """Return the mean share of the cube that holds density, over random objects."""
    rng = torch.Generator().manual_seed(0)
    films = generator.mapping(torch.randn(objects, generator.z_dim, generator=rng))
    found = [densities(generator, films[i : i + 1]) > 0 for i in range(objects)]
    return float(torch.cat(found).float().mean())


@torch.no_grad()
def rendered(
    generator: ImplicitGenerator3d, film: Film, poses: Poses, options: RenderOptions, clock: str
) -> tuple[torch.Tensor, Cost]:
    """Return the images of one render and its cost, including the occupancy grid."""
    images: list[torch.Tensor] = []

    def render() -> None:
        images.append(generator.render(film, poses, options, points_per_chunk=CPU_CHUNK).images)

    seconds = median_seconds(render, clock=clock, warmups=0, repeats=1)
    peak = (machine.peak_memory_bytes(torch.device("cpu")) or math.nan) / 2**20
    return images[0], Cost(seconds, peak)


@torch.no_grad()
def measure(precision: viewing.Precision, clock: str = "wall") -> Cost:
    """Return the cost of a view of CelebA's networks; memory is valid only in a new process."""
    torch.manual_seed(0)
    curriculum = curriculums.load("CelebA")
    generator = curriculum.build_generator().eval()
    viewing.set_precision(generator, precision)
    options = replace(curriculum.preview_render(0, SIZE), num_steps=STEPS)
    film = generator.mapping(torch.randn(1, generator.z_dim))
    empty_all_but(generator, film, SHARE)
    poses = Poses(torch.tensor([torch.pi / 2]), torch.tensor([torch.pi / 2]))
    return rendered(generator, film, poses, options, clock)[1]


def trained() -> checkpoints.SavedGenerator:
    """Load the generator that the repository includes."""
    return checkpoints.load_generator(TRAINED)


@torch.no_grad()
def measure_trained(size: int = SIZE, clock: str = "wall") -> dict[str, float]:
    """Return the seconds of a view by precision, and the lowest agreement, psnr_db."""
    saved = trained()
    generator = saved.generator
    options = replace(saved.curriculum.preview_render(saved.last_step, size), num_steps=STEPS)
    latents = torch.randn(OBJECTS, generator.z_dim, generator=torch.Generator().manual_seed(0))
    films = generator.mapping(latents)
    poses = Poses(torch.tensor([1.2]), torch.tensor([0.5]))
    seconds, images = {}, {}
    for precision in get_args(viewing.Precision):
        viewing.set_precision(generator, precision)
        views = [rendered(generator, films[i : i + 1], poses, options, clock)
                 for i in range(OBJECTS)]  # fmt: skip
        seconds[precision] = sum(cost.seconds for _, cost in views) / OBJECTS
        images[precision] = [picture for picture, _ in views]
    agreement = map(psnr, images["fast"], images["exact"])
    return {**seconds, "psnr_db": min(agreement)}


@torch.no_grad()
def measure_sizes(clock: str = "wall") -> list[tuple[int, str, int, float, float]]:
    """Return size, samples, objects, ns per point and MB of each case, larger ones later."""
    torch.manual_seed(0)
    curriculum = curriculums.load("Demo")
    generator = curriculum.build_generator()
    rows = []
    for size, steps, objects in CASES:
        options = replace(curriculum.preview_render(0, size), num_steps=steps, scene_radius=None)
        film = generator.mapping(torch.randn(objects, generator.z_dim))
        poses = Poses(torch.full((objects,), 1.2), torch.full((objects,), 0.5))
        _, cost = rendered(generator, film, poses, options, clock)
        nanoseconds = cost.seconds / (size**2 * 2 * steps * objects) * 1e9
        rows.append((size, f"{steps} + {steps}", objects, nanoseconds, cost.peak_mb))
    return rows


if __name__ == "__main__":
    print(f"{dense_share(checkpoints.load_generator(Path(sys.argv[1])).generator):.0%}")
