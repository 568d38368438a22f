"""Fit an object and a camera to a photo, then render the object from other sides.

    python inverse_render.py out/generator.pth photo.jpg

Writes into PHOTO_fit/ in the current folder: fit.pth, which other commands take with --fit instead
of a seed; fit.png (photo, fit, difference); views.png; and reconstructed.mp4, a video that moves
around the photo's camera.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import own_modules  # noqa: F401
from checkpoint_io import checkpoints, encoders
from checkpoint_io.checkpoints import SavedGenerator
from generators import guided_fit, inversion
from generators.cameras import Poses
from generators.encoder import Encoder
from generators.inversion import FitOptions, Guess, Photo
from generators.trajectories import TRAJECTORIES, Camera, SceneObject
from generators.tuning import Tuning, tune, tuned_film
from generators.volumetric_rendering import RenderOptions
from image_io import png, video
from image_io.decoding import Crop
from metrics.consistency import psnr
from rendering import filming, photos, viewing
from system import flags
from system.errors import UsageError
from system.files import filled_folder
from system.screen import progress_bar

VIEW_OFFSETS = (-0.5, -0.25, 0.0, 0.25, 0.5)  # radians of yaw around the photo's camera
DEFAULTS = FitOptions()
MAX_CANDIDATES = 1_000_000
POOR_GAIN = 6.0  # dB better than a single color: the error is a quarter of the photo's variance


def build_parser() -> flags.ArgumentParser:
    """Return a parser of all flags of this command."""
    parser = flags.ArgumentParser(description="Fit an object and a camera to a photo.")
    viewing.add_generator(parser)
    add = parser.add_argument
    add("photo", type=Path, help="a picture; its alpha channel says where the object is")
    add("--mask", type=Path, help="picture of the photo's size: white where the object is and "
        "black elsewhere, or a cut-out")  # fmt: skip
    add("--crop", default="center", help="none, center (the largest square), or pixels")
    add("--output_dir", type=Path, help="default: PHOTO_fit in the current folder")
    add("--fit_size", type=flags.pixels, help="pixels per side for the comparison; "
        "default: those of the curriculum's last stage")  # fmt: skip
    add("--candidates", type=flags.whole(1, MAX_CANDIDATES), help="random objects and poses that "
        f"are tried first; default: {DEFAULTS.num_candidates}, or none where encoder.pth beside "
        "the generator guesses")  # fmt: skip
    add("--starts", type=flags.positive_int, default=DEFAULTS.num_starts, help="number of the best "
        "candidates that are optimized")  # fmt: skip
    add("--latent_steps", type=flags.positive_int, default=DEFAULTS.latent_steps)
    add("--film_steps", type=flags.positive_int, default=DEFAULTS.film_steps)
    add("--instant", action="store_true", help="take the encoder's guess as it is")
    add("--tune", type=flags.whole(0, MAX_CANDIDATES), default=0, metavar="N", help="tune the "
        "generator to the photo for N steps, for this object alone; 200 is enough")  # fmt: skip
    add("--fov", type=flags.positive_float, help="the photo's angle of view in degrees; default: "
        "fit it")  # fmt: skip
    add("--seed", type=flags.non_negative_int, default=0, help="of the candidates")
    filming.add_video(parser, TRAJECTORIES, default="around")
    viewing.add_rendering(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fit the photo, then write the fit and its pictures."""
    args = build_parser().parse_args(argv)
    saved = viewing.open_generator(args)
    options = _fit_options(saved, args)
    photo = _open_photo(saved, args, options)
    folder = args.output_dir or Path(f"{args.photo.stem}_fit")
    video_path = _video_path(saved, folder, options, args)
    encoder = _encoder(saved, args)
    with filled_folder(folder):
        guess, loss = _fitted(saved, encoder, photo, options, args)
        tuning = _tuned(saved, guess, photo, options, args) if args.tune else None
    pitch, yaw, fov = (float(angle) for angle in (*guess.poses, guess.fov_degrees))
    film = guess.film if tuning is None else tuned_film(saved.generator.siren, guess.film, tuning)
    fit = SceneObject(args.photo.stem, film, Camera(pitch, yaw, fov))
    checkpoints.save_fit(folder / "fit.pth", fit, saved, tuning)
    decibels = _save_comparison(folder / "fit.png", saved, fit, photo, options, args)
    print(
        f"pitch {math.degrees(pitch):.1f}, yaw {math.degrees(yaw):.1f}, angle of view "
        f"{fov:.1f} degrees (--pitch {pitch:.4f} --yaw {yaw:.4f} --fov "
        f"{fov:.2f}); {decibels:.1f} dB at {options.image_size} px, loss {loss:.5f}"
    )
    gain = decibels - _flat_psnr(photo)
    if gain < POOR_GAIN:
        print(f"a poor fit: only {gain:.1f} dB better than a single color (less than {POOR_GAIN:g} "
              "is poor); look at fit.png")  # fmt: skip
    _save_views(folder / "views.png", saved, fit, args)
    _save_video(video_path, saved, fit, _way(args, fit.camera), args)
    print(f"in {folder}: fit.pth fit.png views.png {video_path.name}")
    return 0


def _way(args: argparse.Namespace, usual: Camera) -> list[Camera]:
    return filming.cameras(args, TRAJECTORIES, [usual])[0]


def _video_path(
    saved: SavedGenerator, folder: Path, options: RenderOptions, args: argparse.Namespace
) -> Path:
    """Return the path of the video; its flags are checked before the long fit."""
    usual = Camera(*saved.curriculum.poses().center(), options.fov_degrees)
    return filming.destination(args, folder, "reconstructed", len(_way(args, usual)))


def _crop(text: str) -> Crop:
    if text == "none":
        return "none"
    if text == "center":
        return "center"
    try:
        return flags.positive_int(text)
    except argparse.ArgumentTypeError:
        raise UsageError(f"--crop {text}: choose none, center, or a number of pixels") from None


def _fit_options(saved: SavedGenerator, args: argparse.Namespace) -> RenderOptions:
    """Return the render options for the fit: those of training, without randomness."""
    curriculum = saved.curriculum
    size = args.fit_size or max(stage.img_size for _, stage in curriculum.stages)
    options = replace(curriculum.preview_render(saved.step, size))
    lock = options.lock_view_dependence or args.lock_view_dependence
    fov = args.fov or options.fov_degrees
    try:
        return replace(options, lock_view_dependence=lock, fov_degrees=fov)
    except ValueError as error:
        raise UsageError(f"--fov {fov}: {error}") from error


def _open_photo(saved: SavedGenerator, args: argparse.Namespace, options: RenderOptions) -> Photo:
    background = {"white": 1.0, "black": -1.0, "last_sample": None}[options.background]
    photo = photos.open_photo(
        args.photo,
        options.image_size,
        crop=_crop(args.crop),
        mask=args.mask,
        background=background,
    )
    device = next(saved.generator.parameters()).device
    alpha = None if photo.alpha is None else photo.alpha.to(device)
    return Photo(photo.image.to(device), photo.weight.to(device), alpha)


def _encoder(saved: SavedGenerator, args: argparse.Namespace) -> Encoder | None:
    """Return the encoder beside the generator, unless --candidates asks for a random search."""
    encoder = encoders.beside(args.generator, saved) if args.candidates is None else None
    if args.instant and encoder is None:
        reason = f"is no {encoders.NAME} beside {args.generator}; train_encoder.py makes it"
        if args.candidates is not None:
            reason = "are no random --candidates"
        raise UsageError(f"--instant: there {reason}")
    return encoder


def _fitted(
    saved: SavedGenerator,
    encoder: Encoder | None,
    photo: Photo,
    options: RenderOptions,
    args: argparse.Namespace,
) -> tuple[Guess, float]:
    """Fit the photo with a progress bar; return the best guess and its loss."""
    candidates = args.candidates or DEFAULTS.num_candidates
    fit = FitOptions(
        num_candidates=candidates,
        num_starts=min(args.starts, candidates),
        latent_steps=args.latent_steps,
        film_steps=args.film_steps,
        fits_fov=args.fov is None,
    )
    num_steps = candidates + fit.latent_steps + fit.film_steps
    done: dict[str, int] = {}
    with progress_bar(
        num_steps
        if encoder is None
        else sum(each.steps for each in guided_fit.passes(options.image_size)),
        "step",
    ) as bar:

        def report(name: str, count: int, loss: float) -> None:
            bar.set_postfix_str(f"{name}, loss {loss:.5f}", refresh=False)
            bar.update(count - done.get(name, 0))
            done[name] = count

        if encoder is not None:
            return guided_fit.fit_from_guess(
                encoder, saved.generator, photo, options,
                fits_fov=fit.fits_fov, is_instant=args.instant, report=report,
            )  # fmt: skip
        return inversion.fit_photo(
            saved.generator,
            photo,
            saved.curriculum.poses(),
            options,
            fit,
            kind=saved.curriculum.settings.z_dist,
            guessed_pose=_guessed_pose(saved, args.generator, photo),
            rng=torch.Generator().manual_seed(args.seed),
            report=report,
        )


def _tuned(
    saved: SavedGenerator, guess: Guess, photo: Photo, options: RenderOptions,
    args: argparse.Namespace,
) -> Tuning:  # fmt: skip
    """Tune the generator's field to the photo, with a progress bar."""
    with progress_bar(args.tune, "step") as bar:

        def report(_: int, loss: float) -> None:
            bar.set_postfix_str(f"tune, loss {loss:.5f}", refresh=False)
            bar.update()

        return tune(
            saved.generator,
            guess,
            photo,
            saved.curriculum.poses(),
            options,
            steps=args.tune,
            kind=saved.curriculum.settings.z_dist,
            rng=torch.Generator().manual_seed(args.seed),
            report=report,
        )


def _guessed_pose(saved: SavedGenerator, generator: Path, photo: Photo) -> Poses | None:
    """Return the camera that the discriminator beside the generator predicts, if it learned to."""
    path = checkpoints.beside(generator, "discriminator.pth")
    if saved.curriculum.settings.pos_lambda == 0 or not path.is_file():
        return None
    _, critic = checkpoints.load_discriminator(path, saved.curriculum)
    size = saved.curriculum.stage_settings(saved.step).img_size  # the level that was trained last
    with torch.no_grad():
        pose = critic.to(photo.image.device)(photo.at(size).image[None], alpha=1.0).pose
    return None if pose is None else Poses(pose[:, 0], pose[:, 1])


def _save_comparison(
    path: Path,
    saved: SavedGenerator,
    fit: SceneObject,
    photo: Photo,
    options: RenderOptions,
    args: argparse.Namespace,
) -> float:
    """Write photo, fit and difference side by side; return the PSNR in dB, weighted."""
    (view,) = filming.views(saved, [fit], options)
    shown = view.images[0]
    difference = (shown - photo.image).abs() - 1  # 0 is black
    sheet = png.grid(torch.stack([photo.image, shown, difference]), 3)
    png.save_png(path, png.to_uint8(sheet))
    return _psnr(shown, photo)


def _psnr(shown: Tensor, photo: Photo) -> float:
    """Return the PSNR of (3, H, W) against the photo, weighted by photo.weight, dB."""
    error = ((shown - photo.image) / 2).square().mean(0) * photo.weight
    return float(psnr(error.sum() / photo.weight.sum()))


def _flat_psnr(photo: Photo) -> float:
    """Return the PSNR of the best single color, dB: its error is the photo's variance."""
    mean = (photo.image * photo.weight).sum((1, 2)) / photo.weight.sum()
    return _psnr(mean[:, None, None].expand_as(photo.image), photo)


def _save_views(
    path: Path, saved: SavedGenerator, fit: SceneObject, args: argparse.Namespace
) -> None:
    """Write views of the object from both sides of the photo's camera, with depths on request."""
    options = viewing.render_options(saved, args)
    shots = [fit.seen_from(fit.camera.turned(0, offset)) for offset in VIEW_OFFSETS]
    with filming.progress(len(shots), options) as bar:
        views = filming.views(saved, shots, options, bar=bar)
        columns = [
            torch.cat(filming.pictures(view, options, depth_map=args.depth_map), dim=2)
            for view in views
        ]
    png.save_png(path, png.grid(torch.cat(columns), len(columns)))


def _save_video(
    path: Path, saved: SavedGenerator, fit: SceneObject, way: list[Camera], args: argparse.Namespace
) -> None:
    """Write the video in which the camera moves around the photo's camera."""
    options = viewing.render_options(saved, args)
    shots = [fit.seen_from(camera) for camera in way]
    with filming.progress(len(shots), options) as bar:
        frames = filming.frames(saved, shots, options, args, bar)
        video.save_video(path, frames, kind=args.format, fps=args.fps)


if __name__ == "__main__":
    sys.exit(flags.run(main))
