"""Take the shapes of objects out of a generator, as density grids and colored meshes.

    python extract_shapes.py out/generator.pth --seeds 0 1 2

Writes shapes/SEED.mrc (the raw densities), shapes/SEED.glb (the mesh) and shapes/SEED.png (the
mesh from several sides). Right-handed axes, y up, one meter is one scene unit: glTF's conventions.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

import flags
import image_io
import mesh_io
import viewing
from checkpoints import SavedGenerator
from flags import UsageError
from generators.volumetric_rendering import LOCKED_DIRECTION, RenderOptions
from geometry import appearance, level, shading, surface, visibility
from geometry.density_grid import Cube, DensityGrid
from geometry.surface import Array, Mesh
from viewing import SceneObject

FORMATS = ("mrc", *mesh_io.MESH_WRITERS)
PLACES = 4  # behind each vertex, whose mean color it has
PREVIEW_SIZE, PREVIEW_VIEWS = 256, 4
PREVIEW_MARGIN = 1.1  # how much wider than the pictures that were trained on


def build_parser() -> flags.ArgumentParser:
    """All flags of this command."""
    parser = flags.ArgumentParser(description="Take the shapes of objects out of a generator.")
    viewing.add_generator(parser)
    viewing.add_objects(parser, psi=0.5)
    add = parser.add_argument
    add("--seed", type=flags.non_negative_int, help="one seed, in place of --seeds")
    add("--output_dir", type=Path, default=Path("shapes"))
    add("--format", type=_formats, default=["mrc", "glb"], metavar="LIST",
        help=f"what to write, of {','.join(FORMATS)}")  # fmt: skip
    add("--voxel_resolution", type=_resolution, default=256, help="voxels along each axis")
    add("--cube_size", type=flags.positive_float, help="side of the cube in scene units; default: "
        "what the curriculum's rays see")  # fmt: skip
    add("--center", type=_coordinate, nargs=3, default=[0.0, 0.0, 0.0], metavar=("X", "Y", "Z"),
        help="of the cube")  # fmt: skip
    add("--level", type=_coordinate, help="raw density at which the surface lies; default: where "
        "it agrees best with the renders")  # fmt: skip
    add("--dense", action="store_true", help="evaluate every voxel, not only those near the "
        "surface (the mesh is the same)")  # fmt: skip
    add("--all_components", action="store_true", help="keep every piece, not only the largest")
    add("--visible_only", action="store_true", help="cut away what no training camera can see; "
        "leaves the mesh open there")  # fmt: skip
    viewing.add_field_flags(parser)
    return parser


def _formats(text: str) -> list[str]:
    names = [name.strip().casefold() for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise argparse.ArgumentTypeError(
                f"{name!r} is none of {','.join(FORMATS)}.{flags.nearest(name, FORMATS)}"
            )
    return names


def _resolution(text: str) -> int:
    value = flags.positive_int(text)
    if value < 8:
        raise argparse.ArgumentTypeError(f"must be at least 8, not {value}")
    return value


def _coordinate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files of each object, one after the other."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.seed is not None:
        if args.seeds != parser.get_default("seeds"):
            parser.error("--seed: not allowed with --seeds")
        args.seeds = [args.seed]
    saved = viewing.open_generator(args)
    options = saved.curriculum.evaluation_render(saved.step)
    options = replace(
        options, lock_view_dependence=options.lock_view_dependence or args.lock_view_dependence
    )
    side = args.cube_size or visible_side(options)
    cube = Cube(center=tuple(args.center), side=side, resolution=args.voxel_resolution)
    things = viewing.objects_to_show(saved, args)
    folder = viewing.output_folder(args.output_dir)
    for thing in things:
        _extract(saved, thing, cube, options, args, folder)
    return 0


def visible_side(options: RenderOptions) -> float:
    """Side of the cube around the origin that holds what rays can see, scene units.

    In a bounded scene the ball; else all of the ray range, and at least the ball that lies in the
    picture of every camera. For the published curricula that is the ray range: 0.24 for faces.
    """
    if options.scene_radius is not None:
        return 2 * options.scene_radius
    in_picture = math.sin(math.radians(options.fov_degrees) / 2)
    return 2 * max(1 - options.near, options.far - 1, in_picture)


def _extract(
    saved: SavedGenerator,
    thing: SceneObject,
    cube: Cube,
    options: RenderOptions,
    args: argparse.Namespace,
    folder: Path,
) -> None:
    """Write all files of one object."""
    grid, surface_level = _evaluated(saved, thing, cube, options, args)
    values = grid.inside.numpy()
    mesh = surface.surface_mesh(values, cube, surface_level)
    if args.visible_only:
        poses = saved.curriculum.poses()
        mesh = visibility.visible_part(mesh, poses, options, spacing=cube.spacing)
    if not len(mesh.triangles):
        raise UsageError(
            f"{thing.name}: no surface at level {surface_level:g} in the cube; choose another "
            "--level, --cube_size or --center"
        )
    if not args.all_components:
        mesh = surface.largest_component(mesh)
    lattice = level.Lattice(grid.values, cube.first, cube.spacing)
    mesh = replace(mesh, colors=_colors(saved, thing, mesh, lattice, options, args))
    for kind in args.format:
        if kind == "mrc":
            mesh_io.save_mrc(folder / f"{thing.name}.mrc", values, cube)
        else:
            mesh_io.save_mesh(folder / f"{thing.name}.{kind}", mesh)
    _save_preview(folder / f"{thing.name}.png", mesh, saved, options)
    print(
        f"{thing.name}: level {surface_level:.4g}, {len(mesh.triangles)} triangles; in {folder}: "
        + " ".join(f"{thing.name}.{name}" for name in [*args.format, "png"])
    )


def _evaluated(
    saved: SavedGenerator,
    thing: SceneObject,
    cube: Cube,
    options: RenderOptions,
    args: argparse.Namespace,
) -> tuple[DensityGrid, float]:
    """The grid, evaluated as far as the surface needs it, and the level of that surface."""
    with tqdm(desc=thing.name, unit="point", unit_scale=True) as bar:

        def progress(done: int, needed: int) -> None:
            bar.total = needed
            bar.update(done - bar.n)

        density = saved.generator.density(thing.film)
        grid = DensityGrid(density, cube, radius=options.scene_radius, progress=progress)
        first = grid.evaluate_first()
        chosen = args.level
        if chosen is None:
            lattice = level.Lattice(first, cube.first, grid.first_step * cube.spacing)
            chosen = level.choose_level(lattice, saved.curriculum.poses(), options)
        if chosen is None:
            raise UsageError(
                f"{thing.name}: nothing in the cube is opaque; give --level, or another "
                "--cube_size or --center"
            )
        grid.end_at_ball(chosen)
        if args.dense:
            grid.evaluate_dense()
        else:
            grid.refine(chosen)
    return grid, chosen


@torch.no_grad()
def _colors(
    saved: SavedGenerator,
    thing: SceneObject,
    mesh: Mesh,
    lattice: level.Lattice,
    options: RenderOptions,
    args: argparse.Namespace,
) -> Array:
    """Colors (V, 3) of the vertices as a camera sees them that looks straight at the surface."""
    field = saved.generator.field(thing.film, points_per_chunk=viewing.chunk_size(saved, args))
    vertices, normals = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.normals)
    places = appearance.lit_places(vertices, normals, lattice, options, count=PLACES)
    directions = -normals
    if options.lock_view_dependence:
        directions = directions.new_tensor([LOCKED_DIRECTION])
    device = thing.film.frequencies.device
    samples = field(places.flatten(0, 1)[None].to(device), directions[None].to(device))
    colors: Array = samples[0, :, :3].unflatten(0, (-1, PLACES)).mean(1).cpu().numpy()
    return colors


def _save_preview(path: Path, mesh: Mesh, saved: SavedGenerator, options: RenderOptions) -> None:
    """Write the mesh from several sides: above with its colors, below as clay."""
    distribution = saved.curriculum.poses()
    pitch, yaw = distribution.center()
    fov = min(170.0, PREVIEW_MARGIN * options.fov_degrees)
    pairs = [
        shading.picture(mesh, pitch, side, PREVIEW_SIZE, fov)
        for side in shading.side_views(yaw, distribution.yaw_spread, PREVIEW_VIEWS)
    ]
    views = torch.stack([image for row in zip(*pairs, strict=True) for image in row])
    image_io.save_png(path, image_io.to_uint8(image_io.grid(views * 2 - 1, PREVIEW_VIEWS)))


if __name__ == "__main__":
    sys.exit(flags.run(main))
