"""How fast a surface is found, and whether it is the dense one; run as python -m benchmarks.shapes.

Compares evaluating every voxel the textbook way with coarse to fine, at several resolutions, on
CelebA's networks and on a trained generator. Times are seconds of processor time in one thread,
which other work on the machine hardly disturbs. The textbook time is that of a sample of the
voxels, scaled to all of them; ours is measured whole. CelebA's untrained networks know no shape:
they are evaluated, and an analytic one takes the place of what they say.
"""

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

import curriculums
from benchmarks.textbook import TextbookField
from checkpoint_io import checkpoints
from geometry import level, surface
from geometry.density_grid import Cube, Density, DensityGrid
from geometry.surface import Array
from rendering import viewing
from siren.film import Film
from siren.siren import FilmSiren

SAMPLE = 2**16  # voxels that are evaluated the textbook way
COARSEST = 65  # voxels of the grid that a trained generator's level is read off
BLOCK = 4  # voxels: no component that holds such a cube may be lost
DIRECTION = (0.0, 0.0, -1.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Something with a surface: what is timed, and the same densities without the cost if known."""

    name: str
    siren: FilmSiren
    film: Film
    density: Density
    quick: Density
    side: float
    level: float
    radius: float | None = None


def ball(points: Tensor) -> Tensor:
    """A ball as large as a head in CelebA's pictures; density of hundreds per scene unit."""
    return 1e4 * (0.08 - (points - points.new_tensor([0.0, 0.01, -0.01])).norm(dim=1))


def torus(points: Tensor) -> Tensor:
    """A torus and, apart from it, a small ball."""
    x, y, z = points.unbind(1)
    ring = 0.02 - (((x * x + z * z).sqrt() - 0.07).square() + y * y).sqrt()
    return 1e4 * torch.maximum(ring, 0.004 - (points - points.new_tensor([0, 0.06, 0])).norm(dim=1))


def celeba(name: str, shape: Density) -> Subject:
    """CelebA's networks, evaluated for nothing, and an analytic shape."""
    torch.manual_seed(0)
    generator = curriculums.load("CelebA").build_generator().eval().requires_grad_(False)
    film = generator.mapping(torch.randn(1, generator.z_dim))
    density = generator.density(film)
    return Subject(
        name=f"CelebA's networks, {name}",
        siren=generator.siren,
        film=film,
        density=lambda points: shape(points) + 0 * density(points),
        quick=shape,
        side=0.24,
        level=0.0,
    )


def trained(path: Path, seed: int) -> Subject:
    """An object of a trained generator."""
    saved = checkpoints.load_generator(path)
    film = viewing.objects_of_seeds(saved, [seed], psi=0.5)[0].film
    options = saved.curriculum.evaluation_render(saved.step)
    cube = Cube(center=(0, 0, 0), side=options.visible_side, resolution=COARSEST)
    density = saved.generator.density(film)
    grid = DensityGrid(density, cube, radius=options.scene_radius, progress=_silent)
    lattice = level.Lattice(grid.evaluate_first(), cube.first, cube.spacing)
    chosen = level.choose_level(lattice, saved.curriculum.poses(), options)
    if chosen is None:
        raise SystemExit(f"{path}: seed {seed} shows nothing opaque")
    return Subject(
        name=f"{path.parent.name}, seed {seed}",
        siren=saved.generator.siren,
        film=film,
        density=density,
        quick=density,
        side=cube.side,
        level=chosen,
        radius=options.scene_radius,
    )


def _silent(done: int, needed: int) -> None:
    """No progress bar."""


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def textbook_seconds(subject: Subject, cube: Cube) -> float:
    """Processor time of all voxels, from that of SAMPLE of them."""
    rng = torch.Generator().manual_seed(0)
    voxels = torch.randint(cube.resolution, (SAMPLE, 3), generator=rng)
    points, direction = cube.points(voxels)[None], torch.tensor([[DIRECTION]])
    siren = cast(TextbookField, subject.siren)  # whose parameters it shares

    def evaluate() -> Tensor:
        return TextbookField.forward(siren, points, direction, subject.film)

    with torch.no_grad():
        seconds = min(_seconds(evaluate) for _ in range(3))
    return seconds * cube.resolution**3 / SAMPLE


def _grid(subject: Subject, cube: Cube, *, is_dense: bool) -> DensityGrid:
    density = subject.quick if is_dense else subject.density
    grid = DensityGrid(density, cube, radius=subject.radius, progress=_silent)
    grid.evaluate_first()
    grid.end_at_ball(subject.level)
    if is_dense:
        grid.evaluate_dense()
    else:
        grid.refine(subject.level)
    return grid


def lost_components(dense: Array, found: Array, at: float) -> int:
    """Connected regions above a level that hold a block of BLOCK^3 voxels and were not found."""
    labels, count = ndimage.label(dense > at, structure=np.ones((3, 3, 3)))
    blocks = labels[ndimage.minimum_filter(dense, BLOCK, mode="constant", cval=at) > at]
    wanted = set(np.unique(blocks)) - {0}
    return len(wanted - set(np.unique(labels[(found > at) & (dense > at)])))


def measure(subject: Subject, resolution: int) -> str:
    """One row of the table."""
    cube = Cube(center=(0, 0, 0), side=subject.side, resolution=resolution)
    slow = textbook_seconds(subject, cube)
    start = time.process_time()
    grid = _grid(subject, cube, is_dense=False)
    evaluated = time.process_time() - start
    mesh = surface.surface_mesh(grid.inside.numpy(), cube, subject.level)
    fast = time.process_time() - start
    share = float(grid.is_known.sum()) / resolution**3
    whole = _grid(subject, cube, is_dense=True)
    dense = surface.surface_mesh(whole.inside.numpy(), cube, subject.level)
    ways = [(mesh.vertices, dense.vertices), (dense.vertices, mesh.vertices)]
    apart = max(cKDTree(to).query(of)[0].max() for of, to in ways) / cube.spacing
    lost = lost_components(whole.inside.numpy(), grid.inside.numpy(), subject.level)
    return (
        f"{subject.name:34}{resolution:6}{slow:10.1f}{evaluated:9.2f}{fast:9.2f}"
        f"{slow / fast:8.1f}{share:9.1%}{apart:10.4f}{lost:6}"
    )


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", type=Path, help="a trained one, such as the demo's")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 256])
    args = parser.parse_args()
    torch.set_num_threads(1)
    subjects = [celeba("a ball", ball), celeba("a torus and a ball", torus)]
    if args.generator is not None:
        subjects += [trained(args.generator, seed) for seed in (0, 1)]
    machine = platform.processor() or platform.machine()
    print(f"{machine}, one thread, torch {torch.__version__}; seconds of processor time\n")
    print(
        f"{'':34}{'voxels':>6}{'textbook':>10}{'grid':>9}{'+ mesh':>9}{'ratio':>8}{'seen':>9}"
        f"{'Hausdorff':>10}{'lost':>6}"
    )
    for subject in subjects:
        for resolution in args.resolutions:
            print(measure(subject, resolution), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nHausdorff distance to the dense mesh in voxels; peak memory {peak:.1f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
