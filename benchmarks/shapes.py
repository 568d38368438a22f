"""Measure how fast surfaces are extracted: python -m benchmarks.shapes.

Compares evaluating every voxel with the textbook's field, and this project's coarse to fine grid
with its mesh, on CelebA's networks and on a trained generator. Times are processor time on one
thread. The textbook's time is measured on a sample of the voxels and scaled to all of them.
CelebA's untrained networks know no shape: they are evaluated, and the density of an analytic shape
replaces theirs.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import curriculums
from benchmarks.bench import median_seconds
from benchmarks.table import Table, processor
from benchmarks.textbook import TextbookField
from checkpoint_io import checkpoints
from geometry import level, surface
from geometry.density_grid import Cube, Density, DensityGrid
from rendering import viewing
from siren.film import Film
from siren.siren import FilmSiren
from system import flags

SAMPLE = 2**16  # voxels that the textbook's field evaluates
COARSEST = 65  # voxels along the grid from which a trained generator's iso level is chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A field, and the density whose surface is extracted from a cube around the origin."""

    name: str
    siren: FilmSiren
    film: Film
    density: Density
    side: float
    level: float
    radius: float | None = None


def ball(points: Tensor) -> Tensor:
    """Return a ball as large as a head in CelebA's pictures; density of hundreds per unit."""
    return 1e4 * (0.08 - (points - points.new_tensor([0.0, 0.01, -0.01])).norm(dim=1))


def torus(points: Tensor) -> Tensor:
    """Return a torus and, apart from it, a small ball."""
    x, y, z = points.unbind(1)
    ring = 0.02 - (((x * x + z * z).sqrt() - 0.07).square() + y * y).sqrt()
    return 1e4 * torch.maximum(ring, 0.004 - (points - points.new_tensor([0, 0.06, 0])).norm(dim=1))


def celeba(name: str, shape: Density) -> Subject:
    """Return CelebA's networks, evaluated for their cost, with the density of a known shape."""
    torch.manual_seed(0)
    generator = curriculums.load("CelebA").build_generator().eval().requires_grad_(False)
    film = generator.mapping(torch.randn(1, generator.z_dim))
    density = generator.density(film)
    return Subject(
        name=f"`CelebA`'s networks, {name}",
        siren=generator.siren,
        film=film,
        density=lambda points: shape(points) + 0 * density(points),
        side=0.24,
        level=0.0,
    )


def trained(path: Path, seed: int) -> Subject:
    """Return an object of a trained generator."""
    saved = checkpoints.load_generator(path)
    film = viewing.objects_of_seeds(saved, [seed], psi=0.5)[0].film
    options = saved.curriculum.evaluation_render(saved.last_step)
    cube = Cube(side=options.visible_side, resolution=COARSEST)
    density = saved.generator.density(film)
    grid = DensityGrid(density, cube, radius=options.scene_radius, progress=lambda *_: None)
    lattice = level.Lattice(grid.evaluate_first(), cube.first, cube.spacing)
    chosen = level.choose_level(lattice, saved.curriculum.poses(), options)
    if chosen is None:
        raise SystemExit(f"{path}: seed {seed} shows nothing opaque")
    return Subject(
        name=f"{path.parent.name}, seed {seed}",
        siren=saved.generator.siren,
        film=film,
        density=density,
        side=cube.side,
        level=chosen,
        radius=options.scene_radius,
    )


def textbook_seconds(subject: Subject, cube: Cube) -> float:
    """Return the processor time of all voxels, scaled from that of SAMPLE of them."""
    rng = torch.Generator().manual_seed(0)
    voxels = torch.randint(cube.resolution, (SAMPLE, 3), generator=rng)
    points, direction = cube.points(voxels)[None], torch.tensor([[[0.0, 0.0, -1.0]]])
    siren = cast(TextbookField, subject.siren)  # TextbookField has the same parameters

    @torch.no_grad()
    def evaluate() -> None:
        TextbookField.forward(siren, points, direction, subject.film)

    return median_seconds(evaluate, clock="cpu") * cube.resolution**3 / SAMPLE


def measure(subject: Subject, resolution: int) -> tuple[str, int, float, float, float, float]:
    """Return name, resolution, seconds (textbook, ours), ratio, percentage of voxels evaluated."""
    cube = Cube(side=subject.side, resolution=resolution)
    grids: list[DensityGrid] = []

    def find() -> None:
        grid = DensityGrid(subject.density, cube, radius=subject.radius, progress=lambda *_: None)
        grid.evaluate_first()
        grid.end_at_ball(subject.level)
        grid.refine(subject.level)
        surface.surface_mesh(grid.inside.numpy(), cube, subject.level)
        grids.append(grid)

    fast = median_seconds(find, clock="cpu", warmups=0)
    slow = textbook_seconds(subject, cube)
    percentage = 100 * float(grids[0].is_known.sum()) / resolution**3
    return subject.name, resolution, slow, fast, slow / fast, percentage


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", type=Path, help="a trained one, such as the demo's")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 256])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    subjects = [celeba("a ball", ball), celeba("a torus and a ball", torus)]
    if args.generator is not None:
        subjects += [trained(args.generator, seed) for seed in (0, 1)]
    columns = [f"{processor()}, one thread, processor time, s", "voxels per side",
               "every voxel, textbook", "grid and mesh", "ratio", "evaluated, %"]  # fmt: skip
    rows = [measure(subject, resolution) for subject in subjects for resolution in args.resolutions]
    print(Table(columns, rows).markdown())


if __name__ == "__main__":
    sys.exit(flags.run(main))
