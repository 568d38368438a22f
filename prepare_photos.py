"""Make a dataset of a folder of photos: find, crop, align and check what they show.

    python prepare_photos.py my_photos/ faces.zip --kind face

Writes faces.zip (square png files), faces.csv (what became of each photo, and why), faces.png
(photos before and after) and faces_curricula.py (a curriculum to start from). Changes no photo.
"""

import argparse
import contextlib
import functools
import io
import math
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, get_args

import numpy as np
import torch
from PIL import Image

import own_modules  # noqa: F401
from image_io import photo_checks, photo_report, placing, png, preparing
from image_io.decoding import over_white, read_photo
from image_io.files import Listing, find_pictures, opened, printable
from image_io.photo_report import Outcome, Report, outlined
from image_io.placing import NotFound, Square
from image_io.preparing import Finder
from system import flags, machine
from system.errors import UsageError
from system.files import replaced, write_file
from system.screen import progress_bar

SMALL_PHOTO_SIDE = 400  # pixels that are enough to find an object
PHOTO_SIDE = 1600  # pixels of the longer side that a large jpg keeps when it is decoded
MARK = b"prepared by pi-GAN's prepare_photos.py"  # comment of the .zip

CURRICULUM = '''"""A curriculum for {name}. Correct the cameras where your photos differ."""

import math

from curriculums import {base}, Demo

Cameras = {{
    "dataset": "Images",
    "fov": {fov},  # angle of view in degrees; the camera is 1 from the middle of the object
    "ray_start": {near},  # distances between which the object is
    "ray_end": {far},
{poses}
{ground}
}}

Photos = {{**{base}, **Cameras}}  # for a GPU, or many hours on a processor: 64 pixels
SmallPhotos = {{**Demo, **Cameras{small}}}  # for a processor: small networks, 32 pixels
'''
AROUND_FRONT = """    "sample_dist": "gaussian",  # directions around the front, in radians
    "h_mean": math.pi / 2,
    "v_mean": math.pi / 2,
    "h_stddev": 0.3,  # to the left and to the right
    "v_stddev": 0.155,  # up and down"""
ABOVE_GROUND = """    "sample_dist": "spherical_uniform",  # from all sides, level and from above"""
FIELD_DECIDES = """    "white_back": False,
    "eval_last_back": True,  # the last sample of a ray shows what is behind the object
    "scene_radius": None,"""
SMALL_SCENE = ', "box_side": 0.48'  # Demo's field expects a larger scene
WHITE_GROUND = """    "white_back": True,  # transparent parts of pictures are white, too"""


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Make a dataset of a folder of photos.")
    add = parser.add_argument
    add("photos", help="folder, glob or .zip; they are not changed")
    add("output", type=Path, help="the .zip to write")
    add("--kind", choices=get_args(preparing.Kind), required=True, help="face: upright "
        "faces, as large in the picture as in CelebA; object: things on a plain or transparent "
        "ground; crop: the largest centred square")  # fmt: skip
    add("--size", type=flags.whole(16, 1024), default=256, help="pixels per side of the pictures")
    add("--cascade", type=Path, help="faces of another kind, such as cats: a cascade of local "
        "binary patterns in OpenCV's XML format; default: frontal faces of people")  # fmt: skip
    add("--share", type=flags.number(0.1, 1), default=preparing.OBJECT_SHARE,
        help="of --kind object: share of the picture's side that the longer side of an object "
        "takes")  # fmt: skip
    add("--one_scale", action="store_true", help="cut squares of one size, for objects that were "
        "all photographed from the same distance; default: as each object needs it")  # fmt: skip
    add("--ground", choices=("white", "transparent"), default="white",
        help="of --kind object: what is behind the object")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the photos, then write the pictures and their report."""
    args = build_parser().parse_args(argv)
    _require_output(args.output)
    if args.cascade is not None and args.kind != "face":
        raise UsageError("--cascade: is for --kind face")
    of_objects = {"--one_scale": args.one_scale, "--ground transparent": args.ground != "white",
                  "--share": args.share != preparing.OBJECT_SHARE}  # fmt: skip
    for flag, is_given in of_objects.items():
        if is_given and args.kind != "object":
            raise UsageError(f"{flag}: is for --kind object")
    find = preparing.finder(args.kind, cascade=args.cascade, share=args.share)
    listing = find_pictures(args.photos, flag="")
    find = _at_one_scale(listing, find) if args.one_scale else find
    report = Report()
    csv_path, sheet_path = args.output.with_suffix(".csv"), args.output.with_suffix(".png")
    try:
        with replaced(args.output) as file, zipfile.ZipFile(file, "w") as archive:
            archive.comment = MARK
            _write_pictures(archive, listing, find, args, report)
            if report.used == 0:
                raise UsageError(f"no photo can be used ({report.summary()}); see {csv_path}")
    finally:
        if report.rows:
            photo_report.write_csv(csv_path, report)
    png.save_png(sheet_path, photo_report.sheet(report))
    _tell(args, listing, report)
    return 0


def _require_output(path: Path) -> None:
    """Refuse an output that is no .zip, and files in its place that this command did not write."""
    if path.suffix.casefold() != ".zip":
        raise UsageError(f"{path}: the output must be a .zip")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        if archive.comment == MARK:
            return
    table = path.with_suffix(".csv")
    is_own = table.is_file() and photo_report.is_own_csv(table)  # of a run without any picture
    for other in (path, path.with_suffix(".png"), *([] if is_own else [table])):
        if other.exists():
            raise UsageError(f"{other}: exists and was not written by this command; choose "
                             "another name for the .zip")  # fmt: skip


def _at_one_scale(listing: Listing, find: Finder) -> Finder:
    """Return what finds objects as find does, with one size of square for all photos."""
    side = _side_for_all(listing, find)

    def find_at_one_scale(photo: Image.Image) -> tuple[Image.Image, list[Square]]:
        cutout, (square,) = find(photo)
        return cutout, [replace(square, side=side * max(photo.size))]

    return find_at_one_scale


def _side_for_all(listing: Listing, find: Finder) -> float:
    """Return the side of a square in which the objects fit, as a share of a photo's longer side."""

    def side(name: str) -> float:
        with contextlib.suppress(ValueError, OSError), open_file(name) as stream:
            photo = read_photo(stream, SMALL_PHOTO_SIDE)
            return find(photo)[1][0].side / max(photo.size)
        return math.nan

    with opened(listing) as open_file, progress_bar(listing.count, "photo") as bar:
        sides = []
        for found in machine.map_on_cores(side, listing.names):
            bar.update()
            sides.append(found)
    known = [found for found in sides if not math.isnan(found)]
    # A larger one still fits: an object takes --share of its square.
    return float(np.quantile(known, 0.95)) if known else 1.0


def _write_pictures(
    archive: zipfile.ZipFile,
    listing: Listing,
    find: Finder,
    args: argparse.Namespace,
    report: Report,
) -> None:
    """Write what is found into the archive, in the order of the photos, without near-duplicates."""
    for skipped in listing.skipped:
        report.add(Outcome(photo=skipped.name, reason=f"unreadable: {skipped.reason}"), "")
    seen = photo_checks.Seen()
    with opened(listing) as open_file, progress_bar(listing.count, "photo") as bar:
        work = functools.partial(_outcomes, open_file, find=find, args=args)
        for outcomes in machine.map_on_cores(work, listing.names):
            bar.update()
            for outcome in outcomes:
                picture, name = outcome.picture, f"{report.used:06d}.png"
                if picture is None or outcome.reason:
                    report.add(outcome, "")
                    continue
                twin = seen.twin(outcome.photo, picture)
                if twin is not None:
                    reason = f"nearly the same as another: {twin}"
                    report.add(replace(outcome, reason=reason, picture=None), "")
                    continue
                buffer = io.BytesIO()
                picture.save(buffer, "PNG", compress_level=3)
                archive.writestr(zipfile.ZipInfo(name), buffer.getvalue())
                report.add(outcome, name)


def _outcomes(
    open_file: Callable[[str], IO[bytes]], name: str, find: Finder, args: argparse.Namespace
) -> list[Outcome]:
    """Find and cut what a photo shows."""
    shown = printable(name)
    try:
        with open_file(name) as stream:
            photo = read_photo(stream, PHOTO_SIDE)
    except (ValueError, OSError) as error:
        return [Outcome(photo=shown, reason=f"unreadable: {error}")]
    try:
        source, squares = find(photo)
        source = source if args.kind == "object" else over_white(source)
    except NotFound as error:
        return [Outcome(photo=shown, reason=str(error), before=outlined(photo, None))]
    return [_cut(shown, photo, source, square, args) for square in squares]


def _cut(
    name: str,
    photo: Image.Image,
    source: Image.Image,
    square: Square,
    args: argparse.Namespace,
) -> Outcome:
    """Cut a square out of source, which is the photo or its object alone, and check it."""
    picture = placing.cut(source, square, args.size)
    opaque = over_white(picture)
    blur = photo_checks.blur(opaque)
    reason = preparing.fault(args.kind, photo, square, picture, blur)
    return Outcome(
        photo=name,
        reason=reason,
        square=square,
        blur=blur,
        picture=picture if args.ground == "transparent" else opaque,
        before=outlined(photo, square),
    )


def _tell(args: argparse.Namespace, listing: Listing, report: Report) -> None:
    """Write the curriculum if there is none yet, and print what was made and what comes next."""
    path = args.output.with_name(f"{args.output.stem}_curricula.py")
    text = _curriculum(args).encode()
    if not path.exists():
        write_file(path, text)
    elif path.read_bytes() != text:
        print(f"note: {path} was there already and is kept; move it away to get one that suits "
              f"--kind {args.kind}", file=sys.stderr)  # fmt: skip
    if listing.left_out:
        print(listing.left_out, file=sys.stderr)
    print(f"{report.summary()}; {args.output.with_suffix('.csv')} tells of each photo")
    if advice := report.advice(args.size):
        print(advice)
    print(f"look at {args.output.with_suffix('.png')} and correct the cameras in {path}; then:")
    name = "Photos" if torch.cuda.is_available() else "SmallPhotos"
    print(f"python train.py --curriculum_file {path} --curriculum {name} --dataset_path "
          f"{args.output} --output_dir runs/{args.output.stem} --dry_run")  # fmt: skip


def _curriculum(args: argparse.Namespace) -> str:
    """Return a curriculum file with cameras that suit the kind of the pictures."""
    if args.kind == "object":
        return CURRICULUM.format(
            name=args.output.name, base="Objects64", fov=30, near=0.7, far=1.3, poses=ABOVE_GROUND,
            ground=WHITE_GROUND, small="",
        )  # fmt: skip
    return CURRICULUM.format(
        name=args.output.name, base="Faces64", fov=12, near=0.88, far=1.12, poses=AROUND_FRONT,
        ground=FIELD_DECIDES, small=SMALL_SCENE,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(flags.run(main))
