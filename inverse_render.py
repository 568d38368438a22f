"""Fit an object and a camera to a photo, then render the object from other sides.

    python inverse_render.py out/generator.pth photo.jpg

Writes into PHOTO_fit/ in the current folder: fit.pth, which other commands take with --fit instead
of a seed; fit.png (photo, fit, difference, other side); views.png; and reconstructed.mp4, a video
that moves around the photo's camera.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

import own_modules  # noqa: F401
from checkpoint_io import checkpoints, encoders
from checkpoint_io.checkpoints import SavedGenerator
from generators.inversion import FitOptions, Report
from generators.trajectories import TRAJECTORIES, Camera, SceneObject
from image_io import preparing, video
from image_io.decoding import Crop, read_photo, read_picture
from image_io.preparing import OBJECT_SHARE
from rendering import filming, fit_batch, fit_files, fitting, photos, viewing
from rendering.fitting import Fit, Fitter
from rendering.photos import Opened, Preparation
from system import flags
from system.errors import UsageError
from system.files import filled_folder, json_bytes, write_file
from system.screen import progress_bar

DEFAULTS = FitOptions()
MAX_CANDIDATES = 1_000_000
OF_MACHINE = {  # flags that change no fit and none of its pictures, and what each photo is asked
    *("photos", "each", "generator", "output_dir", "device", "max_batch_size", "batch_size"),
    *("trajectory", "num_frames", "fps", "format"),
}


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Fit an object and a camera to a photo.")
    viewing.add_generator(parser)
    add = parser.add_argument
    add("photos", nargs="+", metavar="photo", help="a picture; its alpha channel says where the "
        "object is. Several, with --same_object or --each")  # fmt: skip
    many = parser.add_mutually_exclusive_group()
    many.add_argument("--same_object", action="store_true", help="the photos show one object from "
        "several sides: fit one object, and a camera for each")  # fmt: skip
    many.add_argument("--each", action="store_true", help="fit each photo of a folder, glob or "
        ".zip, or of several files; without videos. The same command resumes")  # fmt: skip
    add("--mask", type=Path, help="picture of the photo's size: white where the object is and "
        "black elsewhere, or a cut-out")  # fmt: skip
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--crop", default="center", help="none, center (the largest square), or "
        "pixels")  # fmt: skip
    cut.add_argument("--prepare", choices=("face", "object"), help="find, crop and align it as "
        "prepare_photos.py does, and put the fit back into the photo")  # fmt: skip
    add("--cascade", type=Path, help="of --prepare face, as in prepare_photos.py")
    add("--share", type=flags.number(0.1, 1), default=OBJECT_SHARE, help="of --prepare object, as "
        "in prepare_photos.py")  # fmt: skip
    add("--output_dir", type=Path, help="default: PHOTO_fit in the current folder, FOLDER_fits "
        "with --each")  # fmt: skip
    add("--fit_size", type=flags.pixels, help="pixels per side for the comparison; "
        "default: those of the curriculum's last stage")  # fmt: skip
    add("--candidates", type=flags.whole(1, MAX_CANDIDATES), help="random objects and poses that "
        f"are tried first; default: {DEFAULTS.num_candidates}, or none where encoder.pth beside "
        "the generator guesses")  # fmt: skip
    add("--starts", type=flags.positive_int, default=DEFAULTS.num_starts, help="number of the best "
        "candidates that are optimized")  # fmt: skip
    add("--latent_steps", type=flags.positive_int, default=DEFAULTS.latent_steps, help="first "
        "steps, which change the latent codes")  # fmt: skip
    add("--film_steps", type=flags.positive_int, default=DEFAULTS.film_steps, help="further steps, "
        "which change the FiLM parameters")  # fmt: skip
    add("--instant", action="store_true", help="take the encoder's guess as it is; "
        "without a video, unless --num_frames asks for one")  # fmt: skip
    add("--tune", type=flags.whole(0, MAX_CANDIDATES), default=0, metavar="N", help="tune the "
        "generator to the photo for N steps, for this object alone; 200 are enough")  # fmt: skip
    add("--fov", type=flags.positive_float, help="the photo's angle of view in degrees; default: "
        "fit it")  # fmt: skip
    add("--seed", type=flags.non_negative_int, default=0, help="of the candidates")
    filming.add_video(parser, TRAJECTORIES, default="around")
    viewing.add_rendering(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the photo or the photos, then write the fits and their pictures."""
    args = build_parser().parse_args(argv)
    _require_sense(args)
    saved = viewing.open_generator(args)
    fitter = _fitter(saved, args)
    crop = _crop(args)
    if args.each:
        return _fit_each(fitter, crop, args)
    opened = [
        photos.open_photo(
            read_picture(Path(photo)),
            photo,
            fitter.options.image_size,
            crop=crop,
            mask=args.mask,
            background=fitter.background,
        )
        for photo in args.photos
    ]
    for one in opened:
        if one.note:
            print(f"{one.name}: {one.note}", file=sys.stderr)
    _fit_one(fitter, opened, args)
    return 0


def _require_sense(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    count = len(args.photos)
    if count > 1 and not (args.same_object or args.each):
        raise UsageError(f"{count} photos: say --same_object if they show one object, or --each")
    folders = [photo for photo in args.photos if Path(photo).is_dir()]
    if folders and not args.each:
        raise UsageError(f"{folders[0]}: is a folder; --each fits each photo in it")
    if args.mask is not None and (args.each or count > 1):
        raise UsageError("--mask: is for one photo; give the others as cut-outs")
    if args.instant and (args.same_object or args.candidates is not None):
        other = "--same_object" if args.same_object else "--candidates"
        raise UsageError(f"--instant: takes the guess for one photo; leave {other} out")
    if args.cascade is not None and args.prepare != "face":
        raise UsageError("--cascade: is for --prepare face")
    if args.share != OBJECT_SHARE and args.prepare != "object":
        raise UsageError("--share: is for --prepare object")


def _fitter(saved: SavedGenerator, args: argparse.Namespace) -> Fitter:
    options = fitting.render_options(
        saved, size=args.fit_size, fov_degrees=args.fov, is_locked=args.lock_view_dependence
    )
    encoder = encoders.beside(saved) if args.candidates is None else None
    if args.instant and encoder is None:
        raise UsageError(f"--instant: there is no {encoders.NAME} beside {args.generator}; "
                         "train_encoder.py makes it")  # fmt: skip
    candidates = args.candidates or DEFAULTS.num_candidates
    effort = FitOptions(
        num_candidates=candidates,
        num_starts=min(args.starts, candidates),
        latent_steps=args.latent_steps,
        film_steps=args.film_steps,
        fits_fov=args.fov is None,
    )
    return Fitter(
        saved=saved,
        options=options,
        effort=effort,
        critic=checkpoints.pose_critic(saved),
        encoder=encoder,
        is_instant=args.instant,
        tuning_steps=args.tune,
        seed=args.seed,
    )


def _crop(args: argparse.Namespace) -> Crop | Preparation:
    if args.prepare is not None:
        find = preparing.finder(args.prepare, cascade=args.cascade, share=args.share)
        return Preparation(kind=args.prepare, find=find)
    if args.crop == "none":
        return "none"
    if args.crop == "center":
        return "center"
    try:
        return flags.positive_int(args.crop)
    except argparse.ArgumentTypeError:
        text = f"--crop {args.crop}: choose none, center, or a number of pixels"
        raise UsageError(text) from None


def _fit_one(fitter: Fitter, opened: Sequence[Opened], args: argparse.Namespace) -> None:
    """Fit the one object of all photos, and write everything."""
    stem = Path(opened[0].name).stem
    folder = args.output_dir or Path(f"{stem}_fit")
    is_filmed = args.num_frames is not None or not args.instant
    video_path = _video_path(fitter, folder, args) if is_filmed else None
    with filled_folder(folder), progress_bar(fitter.num_steps(len(opened)), "step") as bar:
        fit = fitter.fit(opened, _reporter(bar))
    options = viewing.render_options(fitter.saved, args)
    names = fit_files.save(
        folder, fitter, fit, options, depth_map=args.depth_map, shows_progress=True
    )
    poor = fitting.poor_because(fitter, fit)
    _tell(fitter, fit, poor)
    if len(opened) > 1 or args.prepare:
        names.append(fit_batch.RECORD)
        write_file(folder / names[-1], json_bytes(fit_files.record(fit, poor), indent=1))
    if video_path is not None:
        start = fit.shots[0]
        _save_video(video_path, fitter.saved, start, _way(args, start.camera), args)
        names.append(video_path.name)
    print(f"in {folder}: {' '.join(names)}")


def _way(args: argparse.Namespace, usual: Camera) -> list[Camera]:
    return filming.cameras(args, TRAJECTORIES, [usual])[0]


def _video_path(fitter: Fitter, folder: Path, args: argparse.Namespace) -> Path:
    """Return the path of the video; its flags are checked before the long fit."""
    usual = Camera(*fitter.saved.curriculum.poses().center(), fitter.options.fov_degrees)
    return filming.destination(args, folder, "reconstructed", len(_way(args, usual)))


def _reporter(bar: "tqdm[int]") -> Report:
    """Return a function that shows the progress of one fit."""
    done: dict[str, int] = {}

    def report(name: str, count: int, loss: float) -> None:
        bar.set_postfix_str(f"{name}, loss {loss:.5f}", refresh=False)
        bar.update(count - done.get(name, 0))
        done[name] = count

    return report


def _tell(fitter: Fitter, fit: Fit, poor: Sequence[str]) -> None:
    """Print the camera of each photo, how well it is reproduced, and what is poor."""
    several = len(fit.shots) > 1
    untuned = replace(fit, views=fit.untuned).psnrs() if fit.untuned else []
    before = [f"{decibels:.1f} dB, tuned " for decibels in untuned] or [""] * len(fit.shots)
    for shot, earlier, decibels in zip(fit.shots, before, fit.psnrs(), strict=True):
        pitch, yaw, fov = shot.camera[:3]
        print(
            f"{f'{shot.name}: ' if several else ''}"
            f"pitch {math.degrees(pitch):.1f}, yaw {math.degrees(yaw):.1f}, angle of view "
            f"{fov:.1f} degrees (--pitch {pitch:.4f} --yaw {yaw:.4f} --fov "
            f"{fov:.2f}); {earlier}{decibels:.1f} dB at {fitter.options.image_size} px, "
            f"loss {fit.loss:.5f}"
        )
    for reason in poor:
        print(f"a poor fit: {reason}")


def _save_video(
    path: Path, saved: SavedGenerator, fit: SceneObject, way: list[Camera], args: argparse.Namespace
) -> None:
    """Write the video in which the camera moves around the photo's camera."""
    options = viewing.render_options(saved, args)
    shots = [fit.seen_from(camera) for camera in way]
    with filming.progress(len(shots), options) as bar:
        frames = filming.frames(saved, shots, options, args, bar)
        video.save_video(path, frames, kind=args.format, fps=args.fps)


def _folder_of_fits(word: str) -> Path:
    path = Path(word)
    if not path.is_dir() and path.suffix != ".zip":  # a picture or a glob
        path = path.parent
    return Path(f"{path.resolve().stem}_fits")


def _fit_each(fitter: Fitter, crop: Crop | Preparation, args: argparse.Namespace) -> int:
    """Fit each photo into a folder of its own."""
    listing = fit_batch.list_photos(args.photos)
    folder = args.output_dir or _folder_of_fits(args.photos[0])
    depends_on = {
        "generator": checkpoints.fingerprint(fitter.saved.generator),
        "encoder": fitter.encoder and checkpoints.fingerprint(fitter.encoder),
        **{name: str(value) for name, value in vars(args).items() if name not in OF_MACHINE},
    }
    if listing.left_out:
        print(listing.left_out, file=sys.stderr)
    rows, steps = [], fitter.num_steps(1)
    with filled_folder(folder), progress_bar(listing.count * steps, "step") as bar:

        def work(stream: IO[bytes], name: str, own: Path) -> dict[str, Any]:
            return _fit_into(own, stream, name, fitter, crop, args, _reporter(bar))

        for row in fit_batch.fit_each(listing, folder, depends_on, work):
            rows.append(row)
            bar.update(max(0, len(rows) * steps - bar.n))  # a fit may end early
    fits = [row for row in rows if "folder" in row]
    if not fits:
        raise UsageError(f"no photo can be fitted; see {folder / fit_batch.TABLE}")
    fit_batch.write_sheet(folder, rows)
    num_poor = sum(bool(row["poor"]) for row in fits)
    print(f"in {folder}: fits: {len(fits)}, of them poor: {num_poor}, photos that cannot be "
          f"fitted: {len(rows) - len(fits)}; {fit_batch.TABLE} tells of each, look at "
          f"{fit_batch.SHEET}")  # fmt: skip
    return 0


def _fit_into(
    folder: Path,
    stream: IO[bytes],
    name: str,
    fitter: Fitter,
    crop: Crop | Preparation,
    args: argparse.Namespace,
    report: Report,
) -> dict[str, Any]:
    """Fit the photo of a stream and write its files, as fit_batch.fit_each asks for."""
    try:
        image = read_photo(stream)
    except ValueError as error:
        raise UsageError(f"unreadable: {error}") from error
    opened = photos.open_photo(
        image, name, fitter.options.image_size, crop=crop, background=fitter.background
    )
    fit = fitter.fit([opened], report)
    options = viewing.render_options(fitter.saved, args)
    names = fit_files.save(folder, fitter, fit, options, depth_map=args.depth_map)
    return {**fit_files.record(fit, fitting.poor_because(fitter, fit)), "files": names}


if __name__ == "__main__":
    sys.exit(flags.run(main))
