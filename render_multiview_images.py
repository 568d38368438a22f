"""Render each object from several sides.

    python render_multiview_images.py out/generator.pth --seeds 0 1 2 3

Writes imgs/grid_SEED.png for each seed, one row per pitch and one column per yaw; and
imgs/sheet.png with all of them, labelled.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import own_modules  # noqa: F401
from checkpoint_io.checkpoints import SavedGenerator
from generators.trajectories import SceneObject
from generators.volumetric_rendering import RenderOptions
from image_io import png
from rendering import filming, viewing
from system import flags
from system.files import filled_folder

YAWS = (-0.5, -0.25, 0.0, 0.25, 0.5)  # radians from the middle, as published
SHEET_SIZE = 128  # pixels per side of a picture on the sheet, at most


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Render each object from several sides.")
    viewing.add_generator(parser)
    viewing.add_objects(parser, psi=0.7)
    add = parser.add_argument
    add("--yaws", type=flags.finite_float, nargs="+", default=list(YAWS), metavar="RADIANS",
        help="offsets from the middle of the curriculum's cameras, or from the fit's camera; "
        "positive moves the camera to the picture's left")  # fmt: skip
    add("--pitches", type=flags.finite_float, nargs="+", default=[0.0], metavar="RADIANS",
        help="offsets of pitch, one row each; positive moves the camera down")  # fmt: skip
    add("--depth_map", action="store_true", help="add a row of depths below each row of colors")
    viewing.add_rendering(parser)
    add("--output_dir", type=Path, default=Path("imgs"), help="folder of the pictures")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Render the grids, then the sheet."""
    args = build_parser().parse_args(argv)
    saved = viewing.open_generator(args)
    objects = viewing.objects_to_show(saved, args)
    rows, columns = _labels(args)
    thumbnails, paths = [], []
    options = viewing.render_options(saved, args)
    num_views = len(objects) * len(args.pitches) * len(args.yaws)
    with (
        filled_folder(args.output_dir) as folder,
        filming.progress(num_views, options) as bar,
    ):
        for shown in objects:
            cells = torch.stack(list(_cells(saved, shown, options, args, bar)))
            paths.append(folder / f"grid_{shown.name}.png")
            png.save_png(paths[-1], png.grid(cells, len(columns)))
            thumbnails.append(_shrunk(cells))
        names = [f"{shown.name}{row}" for shown in objects for row in rows]
        sheet = png.contact_sheet(torch.cat(thumbnails), names, columns)
        paths.append(folder / "sheet.png")
        png.save_png(paths[-1], sheet)
    print(*paths, sep="\n")
    return 0


def _labels(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the labels of rows (appended to an object's name) and of columns."""
    pitches = [f", pitch {pitch:+g}" if len(args.pitches) > 1 else "" for pitch in args.pitches]
    kinds = ["", " depth"] if args.depth_map else [""]
    rows = [pitch + kind for pitch in pitches for kind in kinds]
    return rows, [f"yaw {yaw:+g}" if yaw else "yaw 0" for yaw in args.yaws]


def _cells(
    saved: SavedGenerator,
    shown: SceneObject,
    options: RenderOptions,
    args: argparse.Namespace,
    bar: "tqdm[int]",
) -> Iterator[Tensor]:
    """Yield uint8 pictures (3, H, W) of one object, row by row."""
    for pitch in args.pitches:
        row = []
        shots = [shown.seen_from(shown.camera.turned(pitch, yaw)) for yaw in args.yaws]
        for view in filming.views(saved, shots, options, bar=bar):
            row.append(filming.pictures(view, options, depth_map=args.depth_map))
        for kind in zip(*row, strict=True):
            yield from torch.cat(kind)


def _shrunk(pictures: Tensor) -> Tensor:
    """Shrink uint8 pictures (N, 3, H, W) to at most SHEET_SIZE."""
    size = pictures.shape[-1]
    if size <= SHEET_SIZE:
        return pictures
    small = F.interpolate(pictures.float(), (SHEET_SIZE, SHEET_SIZE), mode="area")
    return small.round().to(torch.uint8)


if __name__ == "__main__":
    sys.exit(flags.run(main))
