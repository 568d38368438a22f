"""256 px views with 24 + 24 samples: seconds, memory of a process, and what --precision fast costs.

Of CelebA's networks, untrained, and of the generator that the repository ships.
Untrained networks have density everywhere. So that `--precision fast` finds empty space as it does
in trained ones, the density is lowered until two fifths of space have some, as in a generator that
we trained on heads. `python -m benchmarks.view GENERATOR` prints what share it is in another one.
"""

import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

import curriculums
from checkpoint_io import checkpoints
from generators.cameras import Poses
from generators.fields import CPU_CHUNK
from generators.generators import ImplicitGenerator3d
from rendering import viewing
from siren.film import Film

SIZE, STEPS = 256, 24
TRAINED = Path(__file__).parent.parent / "assets" / "demo" / "generator.pth"
OBJECTS = 3  # of the trained generator
SHARE = 0.4  # of space that holds density
SIDE = 0.24  # of that space, scene units


@torch.no_grad()
def densities(generator: ImplicitGenerator3d, film: Film) -> torch.Tensor:
    """Raw densities (1, P) of the one object of film at points of the cube of side SIDE."""
    rng = torch.Generator().manual_seed(0)
    points = ((torch.rand(1, 2**14, 3, generator=rng) - 0.5) * SIDE).to(film.frequencies)
    return generator.siren.density(points, film)


@torch.no_grad()
def empty_all_but(generator: ImplicitGenerator3d, film: Film, share: float) -> None:
    """Lower the density until only that share of the cube has any."""
    level = densities(generator, film).quantile(1 - share)
    generator.siren.final_layer.bias.sub_(level / generator.siren.density_scale)


@torch.no_grad()
def dense_share(generator: ImplicitGenerator3d, objects: int = 16) -> float:
    """Mean share of the cube that holds density, over random objects."""
    rng = torch.Generator().manual_seed(0)
    films = generator.mapping(torch.randn(objects, generator.z_dim, generator=rng))
    found = [densities(generator, films[i : i + 1]) > 0 for i in range(objects)]
    return float(torch.cat(found).float().mean())


@torch.no_grad()
def measure(precision: viewing.Precision) -> dict[str, float]:
    """Wall and processor seconds of the view, and the peak memory of this process in MB."""
    torch.manual_seed(0)
    curriculum = curriculums.load("CelebA")
    generator = curriculum.build_generator().eval()
    viewing.set_precision(generator, precision)
    options = replace(curriculum.preview_render(0, SIZE), num_steps=STEPS)
    film = generator.mapping(torch.randn(1, generator.z_dim))
    empty_all_but(generator, film, SHARE)
    poses = Poses(torch.tensor([torch.pi / 2]), torch.tensor([torch.pi / 2]))
    wall, processor = time.perf_counter(), time.process_time()
    generator.render(film, poses, options, points_per_chunk=CPU_CHUNK)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def trained() -> checkpoints.SavedGenerator:
    """The generator that the repository ships."""
    return checkpoints.load_generator(TRAINED)


@torch.no_grad()
def measure_trained(size: int = SIZE) -> dict[str, float]:
    """Processor seconds of a trained generator's view, exact and fast, and their agreement.

    psnr_db is that of the object of OBJECTS where exact and fast agree least.
    """
    saved = trained()
    generator = saved.generator
    options = replace(saved.curriculum.preview_render(saved.step, size), num_steps=STEPS)
    latents = torch.randn(OBJECTS, generator.z_dim, generator=torch.Generator().manual_seed(0))
    films = generator.mapping(latents)
    poses = Poses(torch.tensor([1.2]), torch.tensor([0.5]))
    seconds, images = {}, {}
    for precision in get_args(viewing.Precision):
        viewing.set_precision(generator, precision)
        start = time.process_time()
        images[precision] = torch.cat([
            generator.render(films[i : i + 1], poses, options,
                             points_per_chunk=CPU_CHUNK).images
            for i in range(OBJECTS)
        ])  # fmt: skip
        seconds[precision] = (time.process_time() - start) / OBJECTS
    errors = ((images["fast"] - images["exact"]) / 2).square().mean((1, 2, 3))
    return {**seconds, "psnr_db": float(-10 * errors.max().log10())}


if __name__ == "__main__":
    print(f"{dense_share(checkpoints.load_generator(Path(sys.argv[1])).generator):.0%}")
