"""Measure how well photos are inverted: python -m benchmarks.inversion out/generator.pth.

Two tests, both with the defaults of inverse_render.py:
- renders of the generator itself at random latents and poses, whose answer is known exactly;
- toy cars that training has not seen, for a generator that was trained on ToyCars: one view is
  fitted, and views from other sides are compared with renders of the same car. An unposed
  generator finds the cars up to a turn that all of them share, so yaw errors are about that turn.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.bench import psnr
from benchmarks.table import Table
from checkpoint_io import checkpoints
from checkpoint_io.checkpoints import SavedGenerator
from generators import inversion
from generators.cameras import Poses, sample_poses
from generators.generators import View
from generators.inversion import FitOptions, Guess, Photo
from generators.sampling import sample_latents
from generators.volumetric_rendering import RenderOptions
from scenes.rendering import CarViews, render_cars
from scenes.toy_car_images import toy_car_scenes
from siren.film import Film

HELD_OUT = 1_000_000  # number of the first car; training sees the first thousands
OFFSETS = (-0.5, -0.25, 0.25, 0.5)  # radians of yaw from the fitted view
INPUT, OTHERS = "PSNR at the input view, dB", "PSNR of turned views, dB"
YAW, PITCH, OVERLAP = "yaw error, degrees", "pitch error, degrees", "overlap of silhouettes (IoU)"


def degrees(angle: Tensor) -> float:
    """Convert an angle in radians to degrees within +-180."""
    return (math.degrees(float(angle)) + 180) % 360 - 180


def fit(saved: SavedGenerator, image: Tensor, options: RenderOptions) -> Guess:
    """Fit the object and camera of an image (3, H, W), as inverse_render.py does."""
    guess, _ = inversion.fit_photo(
        saved.generator,
        Photo(image, torch.ones_like(image[0])),
        saved.curriculum.poses(),
        options,
        FitOptions(),
        kind=saved.curriculum.settings.z_dist,
        rng=torch.Generator().manual_seed(0),
        report=lambda *_: None,
    )
    return guess


@torch.no_grad()
def look(saved: SavedGenerator, film: Film, poses: Poses, options: RenderOptions) -> View:
    """Render one view with twice the samples of training."""
    finer = replace(options, num_steps=2 * options.num_steps)
    return saved.generator.render(film, poses, finer)


def own_render(saved: SavedGenerator, options: RenderOptions, index: int) -> dict[str, float]:
    """Fit a render of the generator: PSNR at the input view and errors of the pose."""
    rng = torch.Generator().manual_seed(1000 + index)
    kind = saved.curriculum.settings.z_dist
    z = sample_latents(1, saved.generator.z_dim, kind=kind, rng=rng)
    poses = sample_poses(saved.curriculum.poses(), 1, rng=rng)
    with torch.no_grad():
        film = saved.generator.mapping(z)
    image = look(saved, film, poses, options).images[0]
    guess = fit(saved, image, options)
    camera = replace(options, fov_degrees=float(guess.fov_degrees))
    return {
        INPUT: psnr(look(saved, guess.film, guess.poses, camera).images[0], image),
        YAW: abs(degrees(guess.poses.yaw - poses.yaw)),
        PITCH: abs(degrees(guess.poses.pitch - poses.pitch)),
    }


def held_out_car(saved: SavedGenerator, options: RenderOptions, index: int) -> dict[str, float]:
    """Fit one view of a car; compare it, and views at OFFSETS by their mean, with the car."""
    car, (pitch, yaw) = toy_car_scenes([HELD_OUT + index], seed=0, poses=saved.curriculum.poses())

    def truth(offset: float) -> CarViews:
        return render_cars(car, Poses(pitch, yaw + offset), options.image_size, options.fov_degrees)

    image = truth(0).images[0] * 2 - 1
    guess = fit(saved, image, options)
    camera = replace(options, fov_degrees=float(guess.fov_degrees))
    row = {
        INPUT: psnr(look(saved, guess.film, guess.poses, camera).images[0], image),
        YAW: degrees(guess.poses.yaw - yaw),
        PITCH: abs(degrees(guess.poses.pitch - pitch)),
    }
    others, overlaps = [], []
    for offset in OFFSETS:
        true = truth(offset)
        there = Poses(guess.poses.pitch, guess.poses.yaw + offset)
        seen = look(saved, guess.film, there, camera)
        others.append(psnr(seen.images[0], true.images[0] * 2 - 1))
        inside, covered = true.depths[0].isfinite(), seen.opacities[0] > 0.5
        overlaps.append(float((inside & covered).sum() / (inside | covered).sum()))
    return {**row, OTHERS: statistics.mean(others), OVERLAP: statistics.mean(overlaps)}


def about_shared_turn(offsets: Sequence[float]) -> list[float]:
    """Return the absolute deviations of yaw offsets, degrees, from their most common value."""

    def errors(shared: float) -> list[float]:
        return [abs((offset - shared + 180) % 360 - 180) for offset in offsets]

    return min(map(errors, offsets), key=statistics.median, default=[])


def summary(rows: Sequence[dict[str, float]], name: str) -> str:
    """Return median and quartiles of one figure, or nothing if it was not measured."""
    if not rows or name not in rows[0]:
        return ""
    low, middle, high = np.quantile([row[name] for row in rows], [0.25, 0.5, 0.75])
    return f"{middle:.2f} ({low:.2f}, {high:.2f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Fit the photos and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--num_latents", type=int, default=20)
    parser.add_argument("--num_cars", type=int, default=20)
    parser.add_argument("--image_size", type=int, default=64)
    args = parser.parse_args(argv)
    saved = checkpoints.load_generator(args.generator)
    options = saved.curriculum.preview_render(saved.step, args.image_size)
    own = [own_render(saved, options, i) for i in tqdm(range(args.num_latents), unit="latent")]
    cars = [held_out_car(saved, options, i) for i in tqdm(range(args.num_cars), unit="car")]
    for car, error in zip(cars, about_shared_turn([car[YAW] for car in cars]), strict=True):
        car[YAW] = error
    columns = ["median (quartiles)", f"{len(own)} own renders", f"{len(cars)} held-out toy cars"]
    names = (INPUT, YAW, PITCH, OTHERS, OVERLAP)
    print(Table(columns, [(n, summary(own, n), summary(cars, n)) for n in names]).markdown())
    good = sum(row[INPUT] >= 30 and max(row[YAW], row[PITCH]) <= 3 for row in own)
    print(f"\nAt least 30 dB and both angles within 3 degrees: {good} of {len(own)} renders.")


if __name__ == "__main__":
    main()
