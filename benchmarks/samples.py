"""Compare renders of few samples per ray with converged ones: python -m benchmarks.samples.

For all ways of drawing fine samples (docs/method.md, section 6), and for both ways of moving
samples at random in training (section 3): how much colors, depths and normals differ from a render
with many samples, for objects of a generator (default: the included one). Prints the table.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.bench import psnr
from benchmarks.table import Table
from benchmarks.view import TRAINED
from checkpoint_io import checkpoints
from generators.cameras import Poses
from generators.generators import ImplicitGenerator3d
from generators.pictures import surface_normals
from generators.volumetric_rendering import RenderOptions
from metrics.surfaces import surface, surface_points
from siren.film import Film
from system import flags

SIZE, OBJECTS = 64, 6
MANY = 400  # coarse samples, and as many fine ones
WAYS: dict[str, dict[str, Any]] = {
    "as they are": {"spreads_weights": False},
    "spread": {"spreads_weights": True, "surface_width": None},
    "of finer bins": {"spreads_weights": True},
    "as they are, each sample moved": {"spreads_weights": False, "shares_jitter": False},
    "as they are, all of a ray moved": {"spreads_weights": False, "shares_jitter": True},
}
POSES = Poses(torch.tensor([0.9]), torch.tensor([0.8]))


class Seen(NamedTuple):
    """Images (B, 3, H, W), depths (B, H, W), is_clear (B, H, W) and normals (B, H, W, 3)."""

    images: Tensor
    depths: Tensor
    is_clear: Tensor
    normals: Tensor


@torch.no_grad()
def look(
    generator: ImplicitGenerator3d, films: Film, options: RenderOptions, *, is_jittered: bool
) -> Seen:
    """Render all objects; normals are NaN where a pixel is at an edge of its surface."""
    poses = Poses(*(angle.expand(OBJECTS) for angle in POSES))
    view = generator.render(
        films, poses, options,
        rng=torch.Generator().manual_seed(0) if is_jittered else None,
        points_per_chunk=generator.points_per_chunk,
    )  # fmt: skip
    shown = surface(view, poses, options)
    points = torch.where(shown.is_clear[..., None], surface_points(shown), torch.nan)
    return Seen(view.images, shown.depths, shown.is_clear, surface_normals(points))


def row(found: Seen, wanted: Seen, ray_range: float) -> tuple[float, float, float]:
    """Return PSNR, mean depth error in percent of the ray range, median angle of normals."""
    is_clear = found.is_clear & wanted.is_clear
    error = (found.depths - wanted.depths).abs()[is_clear].mean()
    angles = torch.rad2deg((found.normals * wanted.normals).sum(-1).clamp(-1, 1).arccos())
    return (
        psnr(found.images, wanted.images),
        100 * float(error) / ray_range,
        float(angles[angles.isfinite()].median()),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Render with few and with many samples, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("generator", type=Path, nargs="?", default=TRAINED)
    parser.add_argument("--samples", type=int, nargs="+", default=[7, 14, 28])
    parser.add_argument("--many", type=int, default=MANY, help="samples of the converged render")
    args = parser.parse_args(argv)
    saved = checkpoints.load_generator(args.generator)
    generator, rng = saved.generator, torch.Generator().manual_seed(0)
    films = generator.mapping(torch.randn(OBJECTS, generator.z_dim, generator=rng))
    options = saved.curriculum.preview_render(saved.last_step, SIZE)
    finest = replace(options, num_steps=args.many)
    wanted = look(generator, films, finest, is_jittered=False)
    rows = []
    for name, changes in WAYS.items():
        for count in args.samples:
            few = replace(options, num_steps=count, **changes)
            seen = look(generator, films, few, is_jittered="shares_jitter" in changes)
            found = row(seen, wanted, options.far - options.near)
            rows.append((name, f"{count} + {count}", *found))
    columns = ["weights", "samples", "colors, dB", "depth error, % of range", "normals, degrees"]
    print(Table(columns, rows).markdown())


if __name__ == "__main__":
    sys.exit(flags.run(main))
