"""Measure how well photos are inverted, and how fast.

    python -m benchmarks.inversion runs/demo/generator.pth demo.json
    python -m benchmarks.inversion runs/cars/generator.pth cars.json --photos held_out.zip
    python -m benchmarks.inversion --table demo.json cars.json

Two kinds of photos, both fitted at the size of the curriculum's last stage:
- the generator's own renders at random latents and poses, whose answer is known exactly, from
  random starts, and from the encoder's guess where encoder.pth lies beside the generator;
- held-out photos, fitted and then tuned: toy cars that training has not seen, whose other sides are
  known, or the pictures of --photos, whose other sides are not. An unposed generator finds objects
  up to a turn that all of them share, so yaw errors are about that turn.
Rows are saved one by one: the same command goes on where it was stopped. Seconds are of the
processor.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import psnr
from benchmarks.table import Table, processor
from checkpoint_io import checkpoints, encoders
from checkpoint_io.checkpoints import SavedGenerator
from generators import guided_fit, inversion
from generators.cameras import Poses, sample_poses
from generators.encoder import Encoder
from generators.generators import View
from generators.inversion import FitOptions, FitTask, Guess, Photo
from generators.sampling import sample_latents
from generators.tuning import tune, tuned_film
from generators.volumetric_rendering import RenderOptions
from image_io.decoding import read_picture
from metrics import consistency, report
from metrics.surfaces import surface
from rendering import photos
from scenes.rendering import render_cars
from scenes.toy_car_images import toy_car_scenes
from siren.film import Film
from system import flags
from system.files import json_bytes, write_file
from system.screen import progress_bar

HELD_OUT = 1_000_000  # number of the first car; training sees the first thousands
OFFSETS = (-0.5, -0.25, 0.25, 0.5)  # radians of yaw from the fitted view
CONSISTENCY_SIZE = 128  # pixels per side, the default of eval_metrics.py
FAILED = 10.0  # degrees of yaw or pitch
Row = dict[str, float]


def degrees(angle: Tensor) -> float:
    """Convert an angle in radians to degrees within +-180."""
    return (math.degrees(float(angle)) + 180) % 360 - 180


def task_of(saved: SavedGenerator, options: RenderOptions) -> FitTask:
    """Return what a fit as inverse_render.py does it, or tuning, begins with."""
    return FitTask(
        generator=saved.generator, poses=saved.curriculum.poses(), options=options,
        effort=FitOptions(), kind=saved.curriculum.settings.z_dist,
        rng=torch.Generator().manual_seed(0), report=lambda *_: None,
    )  # fmt: skip


def fit(
    saved: SavedGenerator, photo: Photo, options: RenderOptions, encoder: Encoder | None
) -> tuple[Guess, float]:
    """Fit a photo as inverse_render.py does; return the guess and seconds."""
    start, task = time.process_time(), task_of(saved, options)
    if encoder is not None:
        guess, _ = guided_fit.fit_from_guess(task, encoder, photo)
    else:
        guess, _ = inversion.fit_photo(task, photo)
    return guess, time.process_time() - start


@torch.no_grad()
def look(
    saved: SavedGenerator, film: Film, poses: Poses, options: RenderOptions, fov: float
) -> View:
    """Render one view with twice the samples of training."""
    finer = replace(options, num_steps=2 * options.num_steps, fov_degrees=fov)
    return saved.generator.render(film, poses, finer)


def whole(image: Tensor) -> Photo:
    """Return an image (3, H, W) as a photo whose pixels all count."""
    return Photo(image, torch.ones_like(image[0]))


def own_render(
    saved: SavedGenerator, options: RenderOptions, encoder: Encoder | None, index: int
) -> Row:
    """Fit a render of the generator: PSNR at the input view, errors of the pose, seconds."""
    rng = torch.Generator().manual_seed(1000 + index)
    kind = saved.curriculum.settings.z_dist
    z = sample_latents(1, saved.generator.z_dim, kind=kind, rng=rng)
    poses = sample_poses(saved.curriculum.poses(), 1, rng=rng)
    with torch.no_grad():
        film = saved.generator.mapping(z)
    image = look(saved, film, poses, options, options.fov_degrees).images[0]
    guess, seconds = fit(saved, whole(image), options, encoder)
    shown = look(saved, guess.film, guess.poses, options, float(guess.fov_degrees))
    return {
        "seconds": seconds,
        "psnr": psnr(shown.images[0], image),
        "yaw": abs(degrees(guess.poses.yaw - poses.yaw)),
        "pitch": abs(degrees(guess.poses.pitch - poses.pitch)),
    }


def overlap(one: Tensor, other: Tensor) -> float:
    """Return the intersection over union of two masks."""
    return float((one & other).sum() / (one | other).sum())


def seen_from_sides(
    saved: SavedGenerator, film: Film, guess: Guess, options: RenderOptions
) -> tuple[list[View], Row]:
    """Return views from the photo's camera and OFFSETS, and how consistent they are in 3D."""
    fov = float(guess.fov_degrees)
    poses = [Poses(guess.poses.pitch, guess.poses.yaw + turn) for turn in (0.0, *OFFSETS)]
    views = [look(saved, film, pose, options, fov) for pose in poses]
    samples = report.FINER * options.num_steps // 2  # look doubles them
    large = replace(options, fov_degrees=fov, image_size=CONSISTENCY_SIZE, num_steps=samples)
    here, *others = (surface(look(saved, film, pose, large, fov), pose, large) for pose in poses)
    found = [consistency.compare(here, there) for there in others]
    figures = {
        name: statistics.fmean(float(getattr(each, name)) for each in found)
        for name in ("l1", "depth_error", "depth_agreement")
    }
    return views, figures


def held_out(
    saved: SavedGenerator,
    options: RenderOptions,
    encoder: Encoder | None,
    steps: int,
    photo: Photo,
    truth: Callable[[float], tuple[Tensor, Tensor]] | None,
) -> Row:
    """Fit a photo, then tune for some steps; return figures of both, named before and after.

    truth gives image (3, H, W) and mask (H, W) at a turn, where they are known. Where not, turned
    views after tuning are compared with those before: how much of them has changed.
    """
    guess, seconds = fit(saved, photo, options, encoder)
    start = time.process_time()
    found = tune(task_of(saved, options), guess, [photo], steps=steps)
    row = {"seconds": seconds, "tuning_seconds": time.process_time() - start}
    films = {
        "before": guess.film, "after": tuned_film(saved.generator.siren, guess.film, found)
    }  # fmt: skip
    row["yaw"], row["pitch"] = (float(angle) for angle in reversed(guess.poses))
    untuned: list[View] = []
    for when, film in films.items():
        (front, *views), figures = seen_from_sides(saved, film, guess, options)
        untuned = untuned or views
        row |= {f"{name}_{when}": value for name, value in figures.items()}
        row[f"psnr_{when}"] = psnr(front.images[0], photo.image)
        for turn, view, old in zip(OFFSETS, views, untuned, strict=True):
            image, mask = truth(turn) if truth else (old.images[0], old.opacities[0] > 0.5)
            row[f"side{turn}_{when}"] = psnr(view.images[0], image)
            row[f"iou{turn}_{when}"] = overlap(view.opacities[0] > 0.5, mask)
    return row


def toy_car(
    saved: SavedGenerator, options: RenderOptions, index: int
) -> tuple[Photo, Callable[[float], tuple[Tensor, Tensor]], Row]:
    """Return the photo of a car that training has not seen, its other sides, its true pose."""
    car, (pitch, yaw) = toy_car_scenes([HELD_OUT + index], seed=0, poses=saved.curriculum.poses())

    def truth(turn: float) -> tuple[Tensor, Tensor]:
        views = render_cars(car, Poses(pitch, yaw + turn), options.image_size, options.fov_degrees)
        return views.images[0] * 2 - 1, views.depths[0].isfinite()

    return whole(truth(0.0)[0]), truth, {"true_yaw": float(yaw), "true_pitch": float(pitch)}


def open_photos(archive: Path, count: int, options: RenderOptions) -> list[tuple[Photo, Row]]:
    """Return the first photos of a .zip, with the true poses of its poses.csv."""
    found = []
    with zipfile.ZipFile(archive) as file, tempfile.TemporaryDirectory() as folder:
        lines = file.read("poses.csv").decode().splitlines()[1:]
        for name, pitch, yaw in (line.split(",") for line in lines[:count]):
            image = read_picture(Path(file.extract(name, folder)))
            opened = photos.open_photo(
                image, name, options.image_size, crop="center", background=1.0
            )
            pose = {"true_yaw": float(yaw), "true_pitch": float(pitch)}
            found.append((opened.photo, pose))
    return found


def about_shared_turn(offsets: Sequence[float]) -> list[float]:
    """Return the absolute deviations of yaw offsets, degrees, from their most common value."""

    def errors(shared: float) -> list[float]:
        return [abs((offset - shared + 180) % 360 - 180) for offset in offsets]

    return min(map(errors, offsets), key=statistics.median, default=[])


class Result:
    """Rows of measurements in a file, saved one by one."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {**about, "rows": {}}
        if path.is_file():
            earlier = json.loads(path.read_text("utf-8"))
            if all(earlier[key] == value for key, value in about.items() if key != "date"):
                self.content = earlier

    def fill(self, name: str, count: int, measure: Callable[[int], Row]) -> None:
        """Measure the rows of that name that are missing."""
        rows = self.content["rows"].setdefault(name, [])
        for index in progress_bar(max(0, count - len(rows)), "photo", name):
            rows.append(measure(len(rows)))
            write_file(self.path, json_bytes(self.content, indent=1) + b"\n")
            del index


def measure_all(args: argparse.Namespace) -> None:
    """Fit all photos that the arguments name, and save the figures."""
    saved = checkpoints.load_generator(args.generator)
    size = args.image_size or saved.curriculum.stage_settings(saved.last_step).img_size
    options = saved.curriculum.preview_render(saved.last_step, size)
    encoder = encoders.beside(saved)
    about = {
        "date": time.strftime("%Y-%m-%d"), "machine": processor(), "torch": torch.__version__,
        "step": saved.step, "image_size": size, "tuning_steps": args.tune,
        "generator": checkpoints.fingerprint(saved.generator),
        "photos": args.photos.name if args.photos else "toy cars",
    }  # fmt: skip
    result = Result(args.result, about)
    opened = open_photos(args.photos, args.num_photos, options) if args.photos else []

    def photo(index: int) -> Row:
        truth = None
        if opened:
            one, pose = opened[index]
        else:
            one, truth, pose = toy_car(saved, options, index)
        return pose | held_out(saved, options, encoder, args.tune, one, truth)

    if encoder is not None:
        result.fill("encoder", args.num_renders, lambda i: own_render(saved, options, encoder, i))
    result.fill("held out", args.num_photos, photo)
    result.fill("search", args.num_searches, lambda i: own_render(saved, options, None, i))


def median(rows: Sequence[Row], name: str) -> float:
    """Return the median of one figure."""
    return statistics.median(row[name] for row in rows)


def change(rows: Sequence[Row], names: Sequence[str], digits: int, scale: float = 1) -> str:
    """Return the mean of figures before and after tuning; a figure can be unknown in some rows."""
    texts = []
    for when in ("before", "after"):
        values = [row[f"{name}_{when}"] for row in rows for name in names]
        known = [value for value in values if value is not None]
        texts.append(f"{scale * statistics.fmean(known):.{digits}f}" if known else "unknown")
    return " → ".join(texts)


def _own_rows(rows: dict[str, list[Row]]) -> dict[str, str]:
    """Return the lines of the table about own renders: random starts, then the encoder's guess."""
    count = min(len(rows.get(name, [])) for name in ("search", "encoder"))
    if not count:
        return {}
    pairs = [rows[name][:count] for name in ("search", "encoder")]

    def line(text: Callable[[list[Row]], str]) -> str:
        return " → ".join(map(text, pairs))

    def failed(part: list[Row]) -> int:
        return sum(max(row["yaw"], row["pitch"]) > FAILED for row in part)

    return {
        "own renders: random starts → encoder": str(count),
        "processor seconds": line(lambda part: f"{median(part, 'seconds'):.1f}"),
        "PSNR, dB": line(lambda part: f"{median(part, 'psnr'):.1f}"),
        f"poses worse than {FAILED:g} degrees": line(lambda part: str(failed(part))),
    }


def _held_out_rows(rows: list[Row], is_known: bool) -> dict[str, str]:
    """Return the lines of the table about held-out photos: before tuning, then after."""
    against = "the true ones" if is_known else "those before tuning"
    turns = [degrees(torch.tensor(row["yaw"] - row["true_yaw"])) for row in rows]
    middle = statistics.median(about_shared_turn(turns))
    found = {
        "held-out photos: fit → tuned (means)": str(len(rows)),
        "processor seconds of the fit, of tuning": f"{median(rows, 'seconds'):.1f}, "
        f"{median(rows, 'tuning_seconds'):.1f}",
        "yaw error about the shared turn, median, degrees": f"{middle:.1f}",
        "PSNR at the photo's view, dB": change(rows, ["psnr"], 1),
    }
    for turn in (0.25, 0.5):
        side, shape = ([f"{name}{sign * turn}" for sign in (-1, 1)] for name in ("side", "iou"))
        texts = [change(rows, side, 1), change(rows, shape, 3)]
        if not is_known:  # those before tuning equal themselves
            texts = [text.split(" → ")[1] for text in texts]
        found[f"views turned by {turn:g} radians against {against}, dB"] = texts[0]
        found[f"silhouettes turned by {turn:g} against {against}, IoU"] = texts[1]
    return found | {
        "reprojection L1 x 1000": change(rows, ["l1"], 1, 1000),
        "depth error x 1000": change(rows, ["depth_error"], 1, 1000),
        "depths that agree, %": change(rows, ["depth_agreement"], 1),
    }


def table(paths: Sequence[Path]) -> Table:
    """Return the table of results."""
    columns, parts = ["photos"], []
    for path in paths:
        content = json.loads(path.read_text("utf-8"))
        columns.append(f"{path.stem}, {content['image_size']} px")
        rows, is_known = content["rows"], content["photos"] == "toy cars"
        parts.append(_own_rows(rows) | _held_out_rows(rows["held out"], is_known))
    names = list(dict.fromkeys(name for part in parts for name in part))
    return Table(columns, [(name, *(part.get(name) for part in parts)) for name in names])


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the photos, or print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generator", type=Path, nargs="?")
    parser.add_argument("result", type=Path, nargs="?")
    parser.add_argument("--table", type=Path, nargs="+", help="print results, measure nothing")
    parser.add_argument("--photos", type=Path, help=".zip of pictures and poses.csv")
    parser.add_argument("--num_renders", type=int, default=20)
    parser.add_argument("--num_searches", type=int, default=20, help="own renders, random starts")
    parser.add_argument("--num_photos", type=int, default=20)
    parser.add_argument("--tune", type=int, default=200, help="steps")
    parser.add_argument("--image_size", type=int, help="default: that of the last stage")
    args = parser.parse_args(argv)
    if args.table:
        print(table(args.table).markdown())
    elif args.result is None:
        parser.error("name a generator and the file for its result")
    else:
        measure_all(args)


if __name__ == "__main__":
    sys.exit(flags.run(main))
