"""Extract the shapes of objects from a generator as density grids and colored meshes.

    python extract_shapes.py out/generator.pth --seeds 0 1 2

Writes shapes/SEED.mrc (the raw densities), shapes/SEED.glb (the mesh) and shapes/SEED.png (the
mesh from several sides). Right-handed axes, y up, one scene unit is one meter: glTF's conventions.
--scale 1000 --up z writes meshes in millimeters with z up, as programs for 3D printing expect.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import own_modules  # noqa: F401
from checkpoint_io.checkpoints import SavedGenerator
from generators.trajectories import SceneObject
from generators.volumetric_rendering import RenderOptions
from geometry import mesh_extraction, mesh_files
from geometry.density_grid import Cube
from rendering import viewing
from system import flags
from system.errors import nearest
from system.files import filled_folder
from system.screen import progress_bar

FORMATS = ("mrc", *mesh_files.MESH_FORMATS)
FARTHEST = 1e6  # scene units: cameras are at distance 1, and float32 is coarse far out


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Extract the shapes of objects from a generator.")
    viewing.add_generator(parser)
    which = viewing.add_objects(parser, psi=0.5)
    which.add_argument("--seed", type=flags.non_negative_int, help="one seed, in place of --seeds")
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("shapes"), help="folder of the files")
    add("--format", type=_formats, default="mrc,glb", metavar="LIST",
        help=f"what to write, of {','.join(FORMATS)}")  # fmt: skip
    add("--voxel_resolution", type=flags.whole(8, 2048), default=256, help="voxels along each axis")
    add("--cube_size", type=flags.number(1 / FARTHEST, FARTHEST), help="side of the cube in scene "
        "units; default: it contains all samples of the curriculum's rays")  # fmt: skip
    add("--center", type=flags.number(-FARTHEST, FARTHEST), nargs=3, default=[0.0, 0.0, 0.0],
        metavar=("X", "Y", "Z"), help="of the cube")  # fmt: skip
    add("--scale", type=flags.number(1 / FARTHEST, FARTHEST), default=1.0, help="the mesh files' "
        "units per scene unit")  # fmt: skip
    add("--up", choices=["y", "z"], default="y", help="the mesh files' upward axis")
    add("--level", type=flags.finite_float, help="raw density of the surface; default: the "
        "one that matches the renders best")  # fmt: skip
    add("--dense", action="store_true", help="evaluate every voxel, not only those near the "
        "surface: the mesh stays the same, no voxel of the grid is interpolated")  # fmt: skip
    add("--all_components", action="store_true", help="keep all connected components, not only "
        "the largest")  # fmt: skip
    add("--visible_only", action="store_true", help="remove surfaces that no training camera "
        "sees, which leaves the mesh open there")  # fmt: skip
    return parser


def _formats(text: str) -> list[str]:
    names = [name.strip().casefold() for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            hint = nearest(name, FORMATS)
            raise argparse.ArgumentTypeError(f"{name!r} is none of {','.join(FORMATS)}.{hint}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files of each object, one after the other."""
    args = build_parser().parse_args(argv)
    if args.seed is not None:
        args.seeds = [args.seed]
    saved = viewing.open_generator(args)
    is_locked = args.lock_view_dependence
    options = saved.curriculum.evaluation_render(saved.last_step, is_locked=is_locked)
    side = args.cube_size or options.visible_side
    cube = Cube(center=tuple(args.center), side=side, resolution=args.voxel_resolution)
    things = viewing.objects_to_show(saved, args)
    with filled_folder(args.output_dir) as folder:
        for thing in things:
            _extract(saved, thing, cube, options, args, folder)
    return 0


def _extract(
    saved: SavedGenerator,
    thing: SceneObject,
    cube: Cube,
    options: RenderOptions,
    args: argparse.Namespace,
    folder: Path,
) -> None:
    """Extract one object, show the progress, and write its files."""
    poses = saved.curriculum.poses()
    with progress_bar(None, "point", thing.name, is_scaled=True) as bar:

        def progress(done: int, needed: int) -> None:
            bar.total = needed
            bar.update(done - bar.n)

        shape = mesh_extraction.take_shape(
            saved.generator, thing.film, cube, options, poses,
            iso_level=args.level, is_dense=args.dense, keeps_all=args.all_components,
            visible_only=args.visible_only, name=thing.name, progress=progress,
        )  # fmt: skip
    for kind in args.format:
        if kind == "mrc":
            mesh_files.save_mrc(folder / f"{thing.name}.mrc", shape.values, cube)
        else:
            path = folder / f"{thing.name}.{kind}"
            mesh_files.save_mesh(path, shape.mesh, scale=args.scale, up=args.up)
    mesh_extraction.save_preview(folder / f"{thing.name}.png", shape.mesh, poses, options)
    names = " ".join(f"{thing.name}.{kind}" for kind in [*args.format, "png"])
    count = len(shape.mesh.triangles)
    print(f"{thing.name}: level {shape.level:.4g}, {count} triangles; in {folder}: {names}")


if __name__ == "__main__":
    sys.exit(flags.run(main))
